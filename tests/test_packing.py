"""Packed training batches: rows worked out by hand, and loss and gradients against padded ones.

In float64 the two agree to 1e-12 on models of every kind of attention. A run compares them once at
its start, in its own dtype, and ends where they differ.
"""

import pytest
import torch
from conftest import write_model
from test_train import OPTIONS, ROWS, metrics, trainer  # noqa: F401  (fixtures by import)
from test_triplets import BENIGN, LATE, PAIR, SAME

import kernels.attention
import train
from kernels.attention import PackedAttention, Rule, attention
from lora import add_lora, block_linears, lora_parameters
from losses import POSITIVE, TOXIC, pt_loss, unlikelihood_mask
from model import load_model
from support.adapters import WEIGHTS
from support.files import InputError, write_jsonl
from support.watch import cosine
from train import batch_loss
from triplets import Example, pack, pad, room_for

P, X = POSITIVE, TOXIC
END = 1
PACKED = {  # examples, ids and positions of the row, then (row, target, kind) of each scored token
    # the shared part is read once; its last row, 2, predicts 6 for one answer and 7 for the other
    "a pair": ([PAIR], [10, 11, 5, 6, 7], [0, 1, 2, 3, 3],
               [(1, 5, P), (2, 6, P), (3, 2, P), (2, 7, X)]),
    "identical": ([SAME], [10, 11, 5, 6], [0, 1, 2, 3], [(1, 5, P), (2, 6, P), (3, 2, P)]),
    "no toxic": ([BENIGN], [12, 8], [0, 1], [(0, 8, P), (1, 2, P)]),
    # the positive answer ends where the toxic one goes on: it has no rest
    "toxic goes on": ([LATE], [13, 5, 6], [0, 1, 2], [(0, 5, P), (1, 2, P), (1, 6, X)]),
    "together": ([PAIR, BENIGN, LATE], [10, 11, 5, 6, 7, 12, 8, 13, 5, 6],
                 [0, 1, 2, 3, 3, 0, 1, 0, 1, 2],
                 [(1, 5, P), (2, 6, P), (3, 2, P), (2, 7, X), (5, 8, P), (6, 2, P), (7, 5, P),
                  (8, 2, P), (8, 6, X)]),
}


@pytest.mark.parametrize("examples, ids, positions, scored", PACKED.values(), ids=PACKED)
def test_pack(examples, ids, positions, scored):
    batch = pack(examples)
    assert batch.ids.tolist() == [ids] and batch.positions.tolist() == [positions]
    assert sum(e.tokens for e in examples) == len(ids)
    rows = zip(batch.places.tolist(), batch.targets.tolist(), batch.kind.tolist(), strict=True)
    assert list(rows) == scored


def example(prompt, positive, toxic, *, fine=True):
    positive, toxic = [*positive, END], [] if toxic is None else [*toxic, END]
    mask = unlikelihood_mask(positive, toxic, fine_grained=fine) if toxic else []
    return Example(prompt, positive, toxic, mask)


def all_shapes(*, fine):
    return [example(*row, fine=fine) for row in (
        ([5, 6, 7], [8, 9, 10], [8, 9, 11, 12]),  # part in the middle
        ([5], [8, 9], [8, 9]),  # identical
        ([5, 6], [8], [8, 9, 10]), ([5, 6], [8, 9, 10], [8]),  # one a prefix of the other
        ([7, 8], [9], None),  # benign
        ([5, 6, 7, 8], [20, 21, 22], [30, 31]),  # part at the start
        ([5, 6], [], [7]), ([5, 6], [7], []),  # one says nothing
    )] + [Example([5, 6], [7, 8], [7, 8, 9], [0, 0, 1])]  # no end of turn


MODELS = {
    "llama": {}, "qwen3": {"model_type": "qwen3", "head_dim": 16},
    "a window": {"model_type": "mistral", "sliding_window": 5},
    "soft caps and windows": {"model_type": "gemma2", "head_dim": 8, "sliding_window": 6,
                              "hidden_activation": "gelu_pytorch_tanh"},
}


def results_of(model, batches):
    """(loss, all gradients in a row) of each batch."""
    results = []
    for batch in batches:
        loss, _ = batch_loss(model, batch, pt_loss, 0.4, n_pos=10)
        loss.backward()
        parameters = lora_parameters(model).values()
        results.append((loss.item(), torch.cat([p.grad.flatten() for p in parameters])))
        for p in parameters:
            p.grad = None
    return results


def with_adapter(folder, dtype):
    model = load_model(folder, device="cpu", dtype="float32").to(dtype)
    add_lora(model, block_linears(model), rank=4, alpha=8)
    torch.manual_seed(0)
    wide = torch.promote_types(dtype, torch.float32)
    for p in lora_parameters(model).values():
        p.data = 0.1 * torch.randn(p.shape, dtype=wide)
    return model


@pytest.mark.parametrize("fine", [True, False])
@pytest.mark.parametrize("changes", MODELS.values(), ids=MODELS)
def test_packed_is_padded(tmp_path, changes, fine):
    model = with_adapter(write_model(tmp_path / "m", **changes), torch.float64)
    examples = all_shapes(fine=fine)
    (packed, g), (padded, h) = results_of(model, (pack(examples), pad(examples, 0)))
    assert abs(packed - padded) < 1e-12 and float((g - h).abs().max()) < 1e-12
    assert float(g.abs().max()) > 0.1
    assert pack(examples).ids.numel() < 0.4 * pad(examples, 0).ids.numel()


def test_in_bf16(tiny_folder):
    """There attention is written out as products: as near to fp32 as SDPA's padded batch is."""
    examples = all_shapes(fine=True)
    model = with_adapter(tiny_folder, torch.float32)
    [(exact, g)] = results_of(model, [pad(examples, 0)])
    (packed, h), (padded, i) = results_of(with_adapter(tiny_folder, torch.bfloat16),
                                          (pack(examples), pad(examples, 0)))
    assert abs(packed - exact) < max(0.002 * exact, 2 * abs(padded - exact))
    assert (h - g).norm() < 2 * (i - g).norm() + 0.001 * g.norm()


def varlen_by_hand(q, k, v, starts_q, starts_k, max_q, max_k, *, scale, window_size, **options):
    """What varlen_attn is for, on any device: (T, H, E) and segments, aligned at their ends."""
    assert options in ({}, {"enable_gqa": True}) and starts_q.dtype == starts_k.dtype == torch.int32
    sizes = [starts.diff().tolist() for starts in (starts_q, starts_k)]
    assert max_q >= max(sizes[0]) and max_k >= max(sizes[1]) and window_size[1] == 0
    assert [sum(size) for size in sizes] == [len(q), len(k)]
    rule = Rule(scale, None, None if window_size[0] == -1 else window_size[0] + 1)
    segments = zip(q.split(sizes[0]), k.split(sizes[1]), v.split(sizes[1]), strict=True)
    return torch.cat([attention(*(x.transpose(0, 1)[None] for x in segment), rule)[0]
                      for segment in segments], dim=1).transpose(0, 1)


@pytest.mark.parametrize("changes", [MODELS["llama"], MODELS["a window"]], ids=["llama", "window"])
def test_in_one_call(tmp_path, monkeypatch, changes):
    """Keys, starts and lengths as FlashAttention gets them; its own kernel runs below. A row that
    is filled up has the same loss and gradients, and its tensors those of any other row's size."""
    monkeypatch.setattr("kernels.attention.flash_takes", lambda *_: True)
    monkeypatch.setattr("kernels.attention.varlen_attn", varlen_by_hand)
    model = with_adapter(write_model(tmp_path / "m", **changes), torch.float64)
    examples = all_shapes(fine=True)
    room = room_for([[examples, examples[:2]], [examples[:1] * 9]])
    filled = pack(examples, room)
    (padded, h), *packed = results_of(model, (pad(examples, 0), pack(examples), filled))
    for loss, g in packed:
        assert abs(loss - padded) < 1e-12 and float((g - h).abs().max()) < 1e-12
    other = pack(examples[:2], room)
    assert other.shapes == filled.shapes != pack(examples).shapes
    assert len(filled.places) == room.scored and filled.ids.shape[1] == room.tokens
    # One recording serves all rows: only the tensors are taken from the other.
    (loss, g), (wanted, h) = results_of(model, (filled.on(other.tensors), pad(examples[:2], 0)))
    assert abs(loss - wanted) < 1e-12 and float((g - h).abs().max()) < 1e-12


def test_filled_one_by_one(tiny_folder):
    """Where FlashAttention is not at hand filled rows are right as well, also without a triplet."""
    model, examples = with_adapter(tiny_folder, torch.float64), all_shapes(fine=False)
    room = room_for([[examples]])
    assert pack(examples * 2, room).ids.numel() == 2 * pack(examples).ids.numel()  # does not fit
    pairs, long = examples[:1] * 2, [example(list(range(5, 99)), [8] * 99, [9] * 99)]
    assert room_for([[pairs, long]]) == room_for([[pairs]]) < room_for([[long]])
    (packed, g), (filled, h), (nothing, zero) = results_of(
        model, (pack(examples), pack(examples, room), pack([], room)))
    assert abs(packed - filled) < 1e-12 and float((g - h).abs().max()) < 1e-12
    assert nothing == 0 and not zero.any()


def test_room_holds_all():
    """Long answers fill one micro-batch and long prompts another, which has more shared keys than
    tokens to fill: all take the recorded shapes."""
    def rows_of(prompt, answer):
        return [example([9] * prompt, [1] + [2] * (answer - 1), [3] + [4] * (answer - 1))] * 2
    plan = [rows_of(10, 100), rows_of(80, 20), rows_of(50, 90), rows_of(90, 2), rows_of(4, 9)[:1]]
    room = room_for([plan])
    packed = [pack(examples, room) for examples in (*plan, [])]
    assert all(batch.shapes == packed[0].shapes for batch in packed)
    assert packed[0].ids.shape[1] == room.tokens >= 2 * (10 + 99 + 99)
    for batch in packed:  # the filling is in pieces no longer than a triplet's segment may be
        assert max(batch.attend.queries) <= room.longest == batch.attend.longest[0] < room.tokens
        assert all(int(starts.diff().max()) <= most for starts, most in zip(
            batch.attend.layout[1:], batch.attend.longest, strict=True))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("changes", [MODELS["llama"], MODELS["qwen3"], MODELS["a window"],
                                     {"head_dim": 64, "num_key_value_heads": 1}],
                         ids=["llama", "qwen3", "window", "one key head"])
def test_on_a_gpu(tmp_path, changes, checkpointing):
    """In bf16 by FlashAttention: as near to fp32 on the CPU as the padded batch is."""
    folder, examples = write_model(tmp_path / "m", **changes), all_shapes(fine=True)
    [(exact, g)] = results_of(with_adapter(folder, torch.float32), [pad(examples, 0)])
    model = with_adapter(folder, torch.bfloat16).cuda()
    model.model.gradient_checkpointing = checkpointing
    calls = []
    with pytest.MonkeyPatch.context() as patch:
        real = kernels.attention.varlen_attn
        patch.setattr("kernels.attention.varlen_attn", lambda *args, **options:
                      calls.append(0) or real(*args, **options))
        (packed, h), (padded, i) = results_of(
            model, (pack(examples).to("cuda"), pad(examples, 0).to("cuda")))
    assert len(calls) == 2 * (1 + checkpointing)  # one a layer, again in the backward pass
    assert abs(packed - exact) < max(0.002 * exact, 2 * abs(padded - exact))
    assert (h.cpu() - g).norm() < 2 * (i.cpu() - g).norm() + 0.001 * g.norm()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_checked_at_the_start(tiny_folder, tmp_path, monkeypatch, dtype):
    """A packed attention that sees too much ends the run with both numbers; nothing is left."""
    run = trainer(tiny_folder, tmp_path)
    assert len(metrics(run("fine", epochs=1, dtype=dtype))) > 0

    class Leaky(PackedAttention):
        def __call__(self, layer, q, k, v, positions, rule):
            return super().__call__(layer, q, k, v.cumsum(2), positions, rule)

    monkeypatch.setattr("triplets.PackedAttention", Leaky)
    message = r"packed and padded training differ: loss [\d.]+ and [\d.]+, gradients' cosine"
    with pytest.raises(InputError, match=message):
        run("leaky", epochs=1, dtype=dtype)
    assert not (tmp_path / "leaky" / WEIGHTS).exists()


@pytest.mark.parametrize("loss, turn", [(1.001, 1), (1, -1)])
def test_either_difference_ends_a_run(tiny_folder, tmp_path, monkeypatch, loss, turn):
    """The loss alone, or the gradients alone."""
    class Other(torch.autograd.Function):
        @staticmethod
        def forward(ctx, total):
            return total * loss

        @staticmethod
        def backward(ctx, gradient):
            return gradient * turn

    calls = []

    def first_differs(*args, **options):
        calls.append(0)
        total, rows = batch_loss(*args, **options)
        return (Other.apply(total) if len(calls) == 1 else total), rows

    monkeypatch.setattr(train, "batch_loss", first_differs)
    with pytest.raises(InputError, match="packed and padded training differ"):
        trainer(tiny_folder, tmp_path)("a", epochs=1)


def test_check_sums_in_float64(tiny_folder, tmp_path, monkeypatch):
    """torch's cosine of two equal fp32 rows of 40 million is 1.01: bounds of .999 would be idle."""
    seen, dot = set(), torch.dot
    monkeypatch.setattr(torch, "dot", lambda g, h: seen.add((g.dtype, h.dtype)) or dot(g, h))
    trainer(tiny_folder, tmp_path)("a", epochs=1)
    assert seen == {(torch.float64, torch.float64)}


def test_cosine_of_lists():
    g, h = (torch.randn(3, 4), torch.randn(5)), (torch.randn(3, 4), torch.randn(5))
    whole = [torch.cat([x.flatten() for x in vector]) for vector in (g, h)]
    assert cosine(g, h) == pytest.approx(float(torch.cosine_similarity(*whole, dim=0)), abs=1e-6)


def test_check_takes_no_more_memory(tiny_folder, tmp_path, monkeypatch):
    """Some of the first examples are padded, as their packed tokens allow, and one at least."""
    padded = []
    monkeypatch.setattr(train, "pad", lambda *args: padded.append(pad(*args)) or padded[-1])
    trainer(tiny_folder, tmp_path)("a", epochs=1, batch_tokens=10**6)
    packed = sum(e.tokens for e in all_examples(tiny_folder, tmp_path))
    assert padded[-1].ids.numel() <= packed < padded[0].ids.numel()
    padded.clear()
    run = trainer(tiny_folder, tmp_path)
    write_jsonl(tmp_path / "triplets.jsonl", ROWS * 40)  # a large batch is soon small enough
    run("b", epochs=1, batch_tokens=10**6)
    assert padded[-1].ids.numel() <= 40 * packed < padded[0].ids.numel() and len(padded) < 15


def all_examples(folder, parent):
    from test_train import examples_of
    return examples_of(folder, parent / "triplets.jsonl")
