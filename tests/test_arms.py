"""`--objective ga|npo|dpo`: the weighted rows against each arm's formula as it stands, in float64.

The naive form takes one unpadded sequence at a time, sums its log p, and lets autograd do the rest.
Also a run of each arm: what it learns, killed and resumed, its log, its data.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from loss_cases import (
    CASES,
    FORMS,
    grad_of,
    make,
    needs_triton,
    options_of,
    small_blocks,  # noqa: F401  a fixture
)
from test_packing import all_shapes, varlen_by_hand, with_adapter
from test_resume import STEPS, assert_same, few, kill_at  # noqa: F401  (few is a fixture)
from test_train import (  # noqa: F401  (fixtures by import)
    OPTIONS,
    ROWS,
    WHOLE,
    data,
    examples_of,
    knowing,
    metrics,
    run,
    sums_by_hand,
)

import losses
from lora import adapter_disabled, lora_parameters
from losses import BETA, POSITIVE, TOXIC, pt_loss, pt_loss_chunked
from support.files import write_jsonl
from train import batch_loss, with_reference
from triplets import Batch, Example, pack, pad, room_for

ARMS = ("ga", "npo", "dpo")
PENALTY, N_POS = 0.7, 13
arms = pytest.mark.parametrize("objective", ARMS)


def whole(examples):
    """As `encode(whole=True)`: what dpo is trained on."""
    return [Example(e.prompt, e.positive, e.toxic, [int(e.toxic != e.positive)] * len(e.toxic))
            for e in examples]


def examples_for(objective, *, fine=True):
    examples = all_shapes(fine=fine)
    return whole(examples) if objective == "dpo" else examples


def log_p(model, e, answer, mask=None):
    """Σ m_t log p(y_t | x, y_<t)."""
    logits = model(torch.tensor([e.prompt + answer]))[0, len(e.prompt) - 1:-1]
    own = F.log_softmax(logits, -1)[torch.arange(len(answer)), answer]
    return own.sum() if mask is None else (own * torch.tensor(mask, dtype=own.dtype)).sum()


def naive(model, objective, examples):
    """The arm's loss over all examples, over |P|: DPO's eq. 7, NPO's eq. 3, plain ascent."""
    total = 0
    for e in examples:
        positive = log_p(model, e, e.positive)
        if not any(e.mask):
            total = total - positive
            continue
        toxic = log_p(model, e, e.toxic, e.mask)
        with torch.no_grad(), adapter_disabled(model):
            base_positive = log_p(model, e, e.positive)
            base_toxic = log_p(model, e, e.toxic, e.mask)
        if objective == "ga":
            total = total - positive + PENALTY * toxic
        elif objective == "npo":
            ratio = toxic - base_toxic
            total = total - positive - PENALTY * 2 / BETA * F.logsigmoid(-BETA * ratio)
        else:
            margin = BETA * (positive - base_positive) - BETA * (toxic - base_toxic)
            total = total - 2 / BETA * F.logsigmoid(margin)
    return total / N_POS


def gradient_of(model, loss):
    loss.backward()
    parameters = lora_parameters(model).values()
    gradient = torch.cat([p.grad.flatten() for p in parameters])
    for p in parameters:
        p.grad = None
    return loss.item(), gradient


@pytest.mark.parametrize("form", [pt_loss, pt_loss_chunked], ids=["eager", "chunked"])
@pytest.mark.parametrize("fine", [True, False], ids=["mask", "none"])
@arms
def test_formula(tiny_folder, objective, fine, form):
    """Loss and LoRA gradient, packed, padded, filled up and cut into two micro-batches."""
    model = with_adapter(tiny_folder, torch.float64)
    examples = with_reference(model, examples_for(objective, fine=fine), form, 10**6)
    exact, wanted = gradient_of(model, naive(model, objective, examples))
    room = room_for([[examples]])

    def of(*batches):
        return gradient_of(model, sum(batch_loss(model, b, form, PENALTY, N_POS, objective)[0]
                                      for b in batches))

    for batches in ([pack(examples)], [pad(examples, 0)], [pack(examples, room)],
                    [pack(examples[:3], room), pack(examples[3:]), pack([], room)]):
        loss, gradient = of(*batches)
        assert loss == pytest.approx(exact, rel=1e-11)
        assert float((gradient - wanted).abs().max()) < 1e-11
    assert float(wanted.abs().max()) > 0.01


@arms
def test_in_one_recording(tiny_folder, monkeypatch, objective):
    """As a GPU replays a micro-batch: only tensors are taken from another row, and its pairs'
    weights are its own."""
    monkeypatch.setattr("kernels.attention.flash_takes", lambda *_: True)
    monkeypatch.setattr("kernels.attention.varlen_attn", varlen_by_hand)
    model = with_adapter(tiny_folder, torch.float64)
    examples = with_reference(model, examples_for(objective), pt_loss, 10**6)
    room = room_for([[examples, examples[:4]]])
    recorded, other = pack(examples, room), pack(examples[:4], room)
    assert recorded.shapes == other.shapes
    (loss, gradient), (exact, wanted) = (
        gradient_of(model, batch_loss(model, batch, pt_loss, PENALTY, N_POS, objective)[0])
        for batch in (recorded.on(other.tensors), pad(examples[:4], 0)))
    assert loss == pytest.approx(exact, rel=1e-11)
    assert float((gradient - wanted).abs().max()) < 1e-11


def test_dpo_needs_no_mask(tiny_folder):
    """What both answers open with cancels: scored or not, the gradient is the same."""
    model = with_adapter(tiny_folder, torch.float64)
    pair = Example([5, 6, 7], [8, 9, 10, 1], [8, 9, 11, 1], [1, 1, 1, 1])
    batch = pack(with_reference(model, [pair], pt_loss, 99))
    late = batch.places >= 4  # the hidden state at which they part, and those after it
    part = Batch(batch.ids, batch.positions, batch.attend, *(
        x[late] for x in (batch.places, batch.targets, batch.kind, batch.pair, batch.reference)))
    assert len(part.places) == len(batch.places) - 4
    (_, gradient), (_, same) = (gradient_of(model, batch_loss(model, b, pt_loss, 1, 1, "dpo")[0])
                                for b in (batch, part))
    assert float((gradient - same).abs().max()) < 1e-12 < float(gradient.abs().max())


def test_the_reference_is_the_base(tiny_folder):
    """Whatever the adapter and the micro-batches; without an adapter no pair has moved."""
    model = with_adapter(tiny_folder, torch.float64)
    examples = whole(all_shapes(fine=True))
    known = with_reference(model, examples, pt_loss, 10**6)
    for a, b in zip(known, with_reference(model, examples, pt_loss_chunked, 1), strict=True):
        assert a.reference == pytest.approx(b.reference, rel=1e-12)
        assert len(a.reference) == a.scored
    for p in lora_parameters(model).values():
        p.data.zero_()
    for objective, pairs in (("npo", 7), ("dpo", 7)):
        batch = pack(known)
        weight, _ = losses.arm(objective, 0.4, batch.kind, batch.reference, batch.reference,
                               batch.pair)
        toxic = batch.kind == TOXIC
        assert len(batch.pair[toxic].unique()) == pairs
        torch.testing.assert_close(weight[toxic].abs().max().item(),
                                   0.4 if objective == "npo" else 1.0)
        assert torch.all(weight[~toxic] == 1)  # MLE's own, also in dpo


def test_weights_by_hand():
    """A pair far on the right side is let go, one on the wrong side weighs up to 2."""
    kind = torch.tensor([POSITIVE, POSITIVE, TOXIC, POSITIVE, TOXIC, POSITIVE])
    pair = torch.tensor([0, 0, 0, 3, 3, 1])
    reference = torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0, 5.0], dtype=torch.float64)
    nll = torch.tensor([0.5, 0.5, 501.0, 501.0, 1.0, 2.0])
    weight, loss = losses.arm("dpo", 9.0, kind, nll, reference, pair)
    assert weight.tolist() == pytest.approx([0, 0, 0, 2, -2, 1], abs=1e-6)
    assert loss.item() == pytest.approx(2 + 2 / BETA * BETA * 500, rel=1e-6)
    weight, loss = losses.arm("npo", 0.5, kind, nll, reference, pair)
    assert weight.tolist() == pytest.approx([1, 1, 0, 1, -0.5, 1], abs=1e-6)
    assert loss.item() == pytest.approx(504 + 0.5 * 2 / BETA * math.log(2), rel=1e-6)
    weight, loss = losses.arm("ga", 0.5, kind, nll, reference, pair)
    assert weight.tolist() == [1, 1, -0.5, 1, -0.5, 1] and loss.item() == 504 - 0.5 * 502


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["one row", "N not a multiple of chunk",
                                  "V of many tiles, the last one short"])
def test_every_form_takes_negative_weights(form, name):
    """Toxic rows as MLE rows of weight -w, in each form; eager is the reference."""
    kinds, V, chunk, _ = CASES[name]
    hidden, head, targets, kind, weight = make(kinds, V, dtype=torch.float32)
    case = hidden, head, targets, kind.abs(), torch.where(kind == TOXIC, -weight, weight)
    wide = [x.double() if x.is_floating_point() else x for x in case]
    got, exact = grad_of(FORMS[form], case, **options_of(form, chunk)), grad_of(pt_loss, wide)
    for x, y in zip(got, exact, strict=True):
        torch.testing.assert_close(x.double(), y, rtol=2e-5, atol=2e-6)
    assert torch.any(case[4] < 0)


# ---- runs ----

@arms
def test_killed(run, few, monkeypatch, objective):
    """The reference is computed again and is the same; so are adapter, moments and figures."""
    whole_run = run("whole", objective=objective)
    assert len(metrics(whole_run)) == STEPS
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        kill_at(patch, 8, "metrics")
        run("killed", objective=objective)
    assert_same(run("killed", objective=objective), whole_run)


@arms
def test_first_step(run, tiny_folder, data, objective):
    """At the start Δ = 0, so that all arms have the same gradient but for λ and DPO's whole answer;
    the log has -log p of the toxic tokens in UT's place."""
    (row,) = metrics(run("a", objective=objective, epochs=1, **WHOLE))
    options = {"whole": True} if objective == "dpo" else {}
    examples = examples_of(tiny_folder, data, **options)
    batch = pack(examples)
    assert (row["positive_tokens"], row["toxic_tokens"]) == (
        int((batch.kind == POSITIVE).sum()), int((batch.kind == TOXIC).sum()))
    pairs, n_pos = sum(any(e.mask) for e in examples), row["positive_tokens"]
    start = 2 / BETA * math.log(2) * pairs / n_pos
    mle, _, _, _ = sums_by_hand(tiny_folder, examples)
    benign, _, _, _ = sums_by_hand(tiny_folder, [e for e in examples if not any(e.mask)])
    toxic = row["toxic_nll"] * row["toxic_tokens"] / n_pos
    wanted = {"ga": mle / n_pos - 0.4 * toxic, "npo": mle / n_pos + 0.4 * start,
              "dpo": benign / n_pos + start}
    assert row["loss"] == pytest.approx(wanted[objective], rel=1e-5) and "ut" not in row
    assert row["mle"] == pytest.approx(mle / n_pos, rel=1e-5)


@arms
def test_it_learns(run, knowing, data, objective):
    """log p of the toxic answers falls against that of the positive ones."""
    examples = examples_of(knowing, data)
    out = run("a", model=str(knowing), objective=objective, epochs=20, lr=3e-3, **WHOLE)
    base, tuned = (sums_by_hand(knowing, examples, adapter) for adapter in (None, out))
    assert tuned[2] < 0.7 * base[2]  # the UT of the penalised tokens, as pt measures it
    rows = metrics(out)
    assert rows[-1]["loss"] < rows[0]["loss"] and rows[-1]["toxic_nll"] > rows[0]["toxic_nll"]
    assert rows[-1]["toxic_nll"] - rows[-1]["mle"] > rows[0]["toxic_nll"] - rows[0]["mle"] + 0.5


@arms
def test_without_toxic_answers_it_is_mle(run, data, capsys, objective):
    write_jsonl(data, [row | {"toxic": None} for row in ROWS])
    rows = metrics(run("a", objective=objective))
    assert f"--objective {objective} is the same as mle" in capsys.readouterr().err
    for row, other in zip(rows, metrics(run("b", objective="mle")), strict=True):
        assert row["loss"] == pytest.approx(other["loss"], rel=1e-5)
        assert row["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-3)


@needs_triton
@arms
def test_triton(run, objective):
    """The kernels under Triton's interpreter make the first step of the torch form."""
    options = {"objective": objective, "epochs": 1, **WHOLE}
    (kernel,), (torch_form,) = (metrics(run(name, loss=loss, **options)) for name, loss in (
        ("a", "triton"), ("b", "eager")))
    assert kernel == pytest.approx(torch_form, rel=1e-4)


@needs_triton
def test_triton_in_bf16(run):
    """Also under the interpreter, which cannot multiply bf16: the flash head is left out there."""
    (kernel,), (torch_form,) = (metrics(run(loss, loss=loss, dtype="bfloat16", epochs=1, **WHOLE))
                                for loss in ("triton", "eager"))
    assert kernel == pytest.approx(torch_form, rel=0.02)


def test_bf16(run, capsys):
    """Packed and padded agree in bf16 too, or the run would end; no arm is warned of."""
    for objective in ARMS:
        assert len(metrics(run(objective, objective=objective, dtype="bfloat16"))) == STEPS
    assert "warning" not in capsys.readouterr().err
