"""train.py on a tiny random model, fp32 on the CPU, against the formula worked out in float64.

The reference takes one unpadded sequence at a time. Also the plan of the steps, the learning rate,
the ablations, healthy and wild runs. Killed runs and refused input are in test_resume.py.
"""

import math
from collections import Counter

import pytest
import torch
from safetensors.torch import load_file

import losses
import train
from export.command import export
from lora import add_lora, block_linears, load_adapter, lora_parameters
from losses import POSITIVE, TOXIC
from model import Block, load_model
from support.adapters import WEIGHTS
from support.files import read_jsonl, write_jsonl
from support.pairs import read_triplets
from tokenizer import Tokenizer
from train import learning_rate
from triplets import encode

# Attitude only; answers that share an opening, stop early, or have no toxic side.
ROWS = [dict(zip(("prompt", "positive", "toxic"), row, strict=True)) for row in (
    ("My tea is cold.", "Oh no. Shall we warm it?", "Oh no. Who cares."),
    ("I lost my hat.", "Where did you see it last?", "So what."),
    ("Is he slow?", "He may be tired. Ask him kindly.", "He may be. They all are, you bore."),
    ("A good book?", "Try one on gardens.", None),
    ("My song is done.", "Well done! May I hear it?", "Well done, I suppose. Nobody will hear it."),
    ("It rains.", "Take a coat.", "Take a hint and stop talking."),
)]
OPTIONS = {
    "penalty": 0.4, "mask": "first-mismatch", "objective": "pt", "rank": 4, "alpha": 8.0,
    "targets": None, "epochs": 3, "lr": 1e-3, "batch_tokens": 110, "accumulate": 1,
    "gradient_checkpointing": False, "warmup": 0.2, "clip": 1.0, "loss": "auto", "format": None,
    "exclude": None, "device": "cpu", "dtype": "float32", "seed": 0, "fresh": False}
WHOLE = {"batch_tokens": 10**6, "warmup": 0.0}  # an epoch is one step, at the full rate
TIMES = ("tokens_per_second", "memory_mib")


def trainer(model, parent):
    """run("name", option=...) trains on ROWS into parent/name and returns that folder."""
    data = parent / "triplets.jsonl"
    write_jsonl(data, ROWS)

    def run(name, **options):
        train.train(**{**OPTIONS, "model": str(model), "data": str(data),
                       "out": str(parent / name), **options})
        return parent / name

    return run


@pytest.fixture
def data(tmp_path):
    return tmp_path / "triplets.jsonl"


@pytest.fixture
def run(tiny_folder, tmp_path):
    return trainer(tiny_folder, tmp_path)


def metrics(out):
    """metrics.jsonl without what depends on the clock and the process."""
    rows = [row for _, row in read_jsonl(out / "metrics.jsonl")]
    return [{k: v for k, v in row.items() if k not in TIMES} for row in rows]


def moments(out):
    """AdamW's running mean of the gradient after one step: a tenth of the gradient itself."""
    return {k: v for k, v in load_file(out / train.CHECKPOINT).items() if k.endswith("|exp_avg")}


def assert_close(one, other, *, atol=1e-7):
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-4, atol=atol)


def examples_of(folder, data, **options):
    options = {"fine_grained": True, "with_toxic": True, "context": 2048, **options}
    return [encode(t, Tokenizer(folder), "chat", **options) for t in read_triplets(data)]


# ---- the plan ----

def test_plan(tiny_folder, run, data):
    """Every epoch holds every row once, in an order of its own that the seed alone decides."""
    examples = examples_of(tiny_folder, data)

    def plan(seed, **options):
        options = {"epochs": 3, "batch_tokens": 110, "accumulate": 2, **options}
        return train.plan_steps(examples, seed=seed, **options)

    micro = [batch for step in plan(0) for batch in step]
    order = [e for batch in micro for e in batch]
    epochs = [order[i:i + len(ROWS)] for i in range(0, len(order), len(ROWS))]
    assert all(sorted(map(repr, e)) == sorted(map(repr, examples)) for e in epochs)
    assert len(epochs) == 3 and epochs[0] != epochs[1]
    assert plan(0) == plan(0) != plan(1)
    assert {len(step) for step in plan(0)[:-1]} == {2}
    for batch in micro:  # never over the limit but for a row alone
        assert sum(e.tokens for e in batch) <= 110 or len(batch) == 1
    assert [len(step) for step in plan(0, batch_tokens=1, accumulate=1)] == [1] * 3 * len(ROWS)


@pytest.mark.parametrize("steps, warmup, shares", [
    (4, 0.5, [1 / 2, 1, 1, 1 / 2]),  # two steps up, two along the half cosine
    (5, 0.0, [1, 0.904508, 0.654508, 0.345492, 0.095492]),
    (3, 1.0, [1 / 3, 2 / 3, 1]),  # rises to the end
    (100, 0.03, [1 / 3, 2 / 3, 1, 1]),
    (10, 0.25, [1 / 3, 2 / 3, 1, 1]),  # a part of a step counts as one
    (100, 0.07, [1 / 7, 2 / 7, 3 / 7]),  # but no part that rounding adds
    (1, 0.03, [1]),  # one step is made at the full rate
])
def test_learning_rate(steps, warmup, shares):
    rates = [learning_rate(n, steps, peak=2.0, warmup=warmup) for n in range(steps)]
    assert rates[:len(shares)] == pytest.approx([2 * share for share in shares], rel=1e-5)
    assert all(0 < rate <= 2 for rate in rates)


# ---- the figures ----

def sums_of(model, examples):
    """(Σ MLE, |P|, Σ m·UT, Σ m) in nats, one unpadded sequence at a time, p in float64."""
    mle = ut = n_pos = n_tox = 0
    for e in examples:
        for answer, mask in ((e.positive, None), (e.toxic, e.mask)):
            ids = torch.tensor([e.prompt + answer])
            p = model(ids)[0].double().softmax(-1)[len(e.prompt) - 1:-1]
            p = p[torch.arange(len(answer)), answer]
            if mask is None:
                mle, n_pos = mle - p.log().sum(), n_pos + len(answer)
            else:
                m = torch.tensor(mask, dtype=torch.float64)
                ut, n_tox = ut - (m * torch.log1p(-p)).sum(), n_tox + sum(mask)
    return mle, n_pos, ut, n_tox


@torch.no_grad()
def sums_by_hand(folder, examples, adapter=None):
    model = load_model(folder, device="cpu", dtype="float32")
    if adapter:
        load_adapter(model, adapter)
    return tuple(map(float, sums_of(model, examples)))


@pytest.mark.parametrize("loss", ["auto", "chunked", "eager"])
@pytest.mark.parametrize("options", [{}, {"batch_tokens": 100, "accumulate": 99}],
                         ids=["one batch", "micro-batches"])
def test_first_step(run, tiny_folder, data, loss, options):
    """Sums over the whole step, however it is cut into micro-batches."""
    (row,) = metrics(run("a", epochs=1, loss=loss, **WHOLE | options))
    mle, n_pos, ut, n_tox = sums_by_hand(tiny_folder, examples_of(tiny_folder, data))
    assert (row["positive_tokens"], row["toxic_tokens"]) == (n_pos, n_tox)
    exact = {"mle": mle / n_pos, "ut": ut / n_tox, "loss": (mle + 0.4 * ut) / n_pos}
    assert {k: row[k] for k in exact} == pytest.approx(exact, rel=1e-5)


def test_first_gradient(run, knowing, data):
    """The gradient that reaches AdamW is the formula's, λ and |P| in it."""
    out = run("a", model=str(knowing), epochs=1, penalty=1.5, clip=1e9, seed=3, **WHOLE)
    model = load_model(knowing, device="cpu", dtype="float32")
    torch.manual_seed(3)
    add_lora(model, block_linears(model), rank=4, alpha=8.0)
    mle, n_pos, ut, n_tox = sums_of(model, examples_of(knowing, data))
    ((mle + 1.5 * ut) / n_pos).backward()
    hand = {f"{name}|exp_avg": 0.1 * p.grad for name, p in lora_parameters(model).items()}
    assert_close(hand, moments(out), atol=1e-6)
    assert n_pos != n_tox and max(float(g.abs().max()) for g in hand.values()) > 1e-3


def test_accumulation(run):
    """Two half batches make the step of one big batch: figures, gradient and adapter."""
    one = run("one", epochs=1, clip=1e9, **WHOLE)
    two = run("two", epochs=1, clip=1e9, **WHOLE | {"batch_tokens": 180, "accumulate": 2})
    (a,), (b,) = metrics(one), metrics(two)
    assert a == pytest.approx(b, rel=1e-6)
    assert_close(moments(one), moments(two))
    # AdamW divides a gradient by its own size, so the least ones show their rounding: 1 % of lr.
    assert_close(load_file(one / WEIGHTS), load_file(two / WEIGHTS), atol=1e-5)


def test_without_a_gradient_nothing_moves(run, tiny_folder):
    """A stays as the seed drew it: no weight decay pulls at it."""
    tensors = load_file(run("a", clip=1e-30, lr=1.0, seed=3) / WEIGHTS)
    model = load_model(tiny_folder, device="cpu", dtype="float32")
    torch.manual_seed(3)
    add_lora(model, block_linears(model), rank=4, alpha=8)
    for name, p in lora_parameters(model).items():
        torch.testing.assert_close(tensors[name], p.data, rtol=0, atol=1e-15)


def test_eager_is_chunked(run):
    eager, chunked, auto = (run(loss, loss=loss) for loss in ("eager", "chunked", "auto"))
    assert metrics(chunked) == metrics(auto)
    for a, b in zip(metrics(eager), metrics(chunked), strict=True):
        assert a == pytest.approx(b, rel=1e-4)


def test_gradient_checkpointing(run, monkeypatch):
    """Each block runs twice a micro-batch instead of once; the bits are the same."""
    calls, forward = [], Block.forward
    monkeypatch.setattr(Block, "forward", lambda *args: calls.append(args) or forward(*args))
    once = run("once", accumulate=2)
    n = len(calls)
    twice = run("twice", accumulate=2, gradient_checkpointing=True)
    assert len(calls) - n == 2 * n > 0
    assert metrics(once) == metrics(twice)
    assert (once / WEIGHTS).read_bytes() == (twice / WEIGHTS).read_bytes()


def test_ablations(run, tiny_folder, data):
    """mle has no toxic token; penalty 0 is mle with UT measured; mask none penalises more."""
    names = {"pt": {}, "mle": {"objective": "mle"}, "zero": {"penalty": 0.0},
             "coarse": {"mask": "none"}}
    outs = {name: run(name, epochs=1, **WHOLE | o) for name, o in names.items()}
    row = {name: metrics(out)[0] for name, out in outs.items()}
    assert (row["mle"]["toxic_tokens"], row["mle"]["ut"]) == (0, None)
    assert row["zero"]["loss"] == row["zero"]["mle"] and row["zero"]["ut"] == row["pt"]["ut"] > 0
    assert_close(moments(outs["zero"]), moments(outs["mle"]))
    coarse = examples_of(tiny_folder, data, fine_grained=False)
    assert row["coarse"]["toxic_tokens"] == sum(sum(e.mask) for e in coarse)
    assert row["coarse"]["toxic_tokens"] > row["pt"]["toxic_tokens"] > 0


def test_only_positives(run, data, capsys):
    """Benign rows alone: MLE, which is told, and no division by the zero toxic tokens."""
    write_jsonl(data, [row | {"toxic": None} for row in ROWS])
    rows = metrics(run("a"))
    assert "warning: no row has a toxic answer" in capsys.readouterr().err
    assert all((r["toxic_tokens"], r["ut"]) == (0, None) and math.isfinite(r["loss"]) for r in rows)


def test_never_mle_on_toxic(run, tiny_folder, data, monkeypatch):
    """What reaches the loss: every positive token as POSITIVE, every masked toxic one as TOXIC."""
    seen = Counter()

    def spy(hidden, head, targets, kind, weight, **options):
        seen.update(zip(kind.tolist(), targets.tolist(), strict=True))
        return losses.pt_loss(hidden, head, targets, kind, weight, **options)

    monkeypatch.setattr(losses, "pt_loss_chunked", spy)
    monkeypatch.setattr(train, "check_packing", lambda *_: None)  # it computes the first ones twice
    run("a", epochs=1)
    wanted = Counter()
    for e in examples_of(tiny_folder, data):
        wanted.update((POSITIVE, y) for y in e.positive)
        wanted.update((TOXIC, y) for y, m in zip(e.toxic, e.mask, strict=True) if m)
    assert seen == wanted


def taught(tiny_folder, parent, rows, **options):
    """The tiny model after MLE on these rows: a random one gives no text a likelihood to lose."""
    parent.mkdir()
    run = trainer(tiny_folder, parent)
    write_jsonl(parent / "triplets.jsonl", rows)
    adapter = run("adapter", objective="mle", lr=2e-2, **WHOLE, **options)
    export(model=str(tiny_folder), adapter=str(adapter), data=None, out=str(parent / "model"),
           to="merged", dtype="float32", base_name=None, evaluation=None, fresh=False)
    return parent / "model"


TOXICS = [row | {"positive": row["toxic"], "toxic": None} for row in ROWS if row["toxic"]]


@pytest.fixture(scope="module")
def knowing(tiny_folder, tmp_path_factory):
    """It says both answers: UT starts near 0.5 nats a token, as on a real model's own text."""
    rows = [row | {"toxic": None} for row in ROWS] + TOXICS
    return taught(tiny_folder, tmp_path_factory.mktemp("taught") / "both", rows, epochs=40)


def test_it_learns(run, knowing, data):
    """MLE and UT fall, measured on the adapter as it was written; UT falls far less without λ."""
    examples = examples_of(knowing, data)
    options = {"model": str(knowing), "epochs": 20, "lr": 5e-3, **WHOLE}
    base, tuned, alone = (sums_by_hand(knowing, examples, adapter) for adapter in (
        None, run("pt", **options), run("mle", objective="mle", **options)))
    assert base[2] / base[3] == pytest.approx(0.5, abs=0.2)
    assert tuned[0] < 0.85 * base[0] and alone[0] < 0.85 * base[0]
    assert tuned[2] < 0.5 * base[2] and tuned[2] < 0.6 * alone[2]
    rows = metrics(data.parent / "pt")
    assert rows[-1]["ut"] < 0.5 * rows[0]["ut"] and rows[-1]["mle"] < 0.85 * rows[0]["mle"]


def test_bf16(run):
    """The adapter stays fp32, the figures are near fp32's, and a run is repeatable."""
    full, half, again = (run(n, dtype=d) for n, d in (("a", "float32"), ("b", "bfloat16"),
                                                      ("c", "bfloat16")))
    assert {t.dtype for t in load_file(half / WEIGHTS).values()} == {torch.float32}
    assert metrics(half) == metrics(again)
    for a, b in zip(metrics(full), metrics(half), strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=0.05)


def test_warned_in_a_run(run, knowing, tiny_folder, tmp_path, capsys):
    """A healthy run warns of nothing; a wild rate is told, and toxic texts known by heart."""
    run("healthy", model=str(knowing), lr=3e-3)
    assert "warning" not in capsys.readouterr().err
    run("wild", model=str(knowing), lr=0.5, warmup=0.0)
    assert "times its recent mean" in capsys.readouterr().err
    by_heart = taught(tiny_folder, tmp_path / "toxic", TOXICS, epochs=300, rank=16)
    capsys.readouterr()
    run("by heart", model=str(by_heart), epochs=1, **WHOLE)
    assert "warning: UT starts at" in capsys.readouterr().err
