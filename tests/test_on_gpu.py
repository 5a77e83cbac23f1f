"""What only a GPU does: decoding and training steps that are recorded once and replayed."""

import gc
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import write_model
from test_packing import MODELS, all_shapes, example, with_adapter

from benchmarks.shapes import config_folder, random_model
from benchmarks.step_rivals import drawn_examples
from benchmarks.timing import peak_growth
from forecast import forecast
from generate import Sampling, generate
from kernels.head import pt_loss
from kernels.prefix import prefix_attention
from lora import add_lora, block_linears, lora_parameters
from losses import POSITIVE
from model import load_model, read_config
from tokenizer import Tokenizer
from train import can_record, micro_step, with_reference
from triplets import pack, room_for

pytestmark = [pytest.mark.gpu,
              pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.mark.parametrize("shared", [0, 30])
@pytest.mark.parametrize("changes", [MODELS["llama"], MODELS["soft caps and windows"]],
                         ids=["llama", "soft caps"])
def test_same_text(tmp_path, monkeypatch, changes, shared):
    """As a CPU writes, over refilled slots and more than one recorded length."""
    folder = write_model(tmp_path / "m", **changes)
    monkeypatch.setattr("generate.RECORDED_SLOTS", 16)
    tokenizer = Tokenizer(folder)
    tokenizer.eos_ids = frozenset(range(0, 20))  # some rows end early
    prompts = [[*range(30, 30 + shared), *range(40 + i, 44 + i % 7 + i)] for i in range(20)]
    answers = {}
    for device in ("cpu", "cuda"):
        model = load_model(folder, device=device, dtype="float32")
        token = model.config.num_hidden_layers * model.config.num_key_value_heads
        row = 51 * 2 * token * model.config.head_dim * 4 + 12 * model.config.vocab_size
        monkeypatch.setattr("generate.cache_bytes", lambda device, row=row: 6 * row)
        answers[device] = [
            generate(model, tokenizer, prompts, sampling, list(range(len(prompts))))
            for sampling in (Sampling(40), Sampling(40, temperature=1.0, top_p=0.9),
                             Sampling(40, temperature=1.0, min_lines=2, opening_penalty=2.0),
                             Sampling(40, temperature=1.0, min_new_tokens=30, no_repeat_ngram=2))]
    assert answers["cpu"] == answers["cuda"]
    assert len({a.n_tokens for a in answers["cpu"][1]}) > 3


def test_same_text_as_rows_end(tmp_path):
    """As a CPU writes, while the recorded steps halve their rows again and again."""
    folder = write_model(tmp_path / "m")
    tokenizer, answers = Tokenizer(folder), []
    tokenizer.eos_ids = frozenset(range(0, 40))
    prompts = [[*range(30, 50), *range(40 + i % 9, 44 + i % 9 + i % 7)] for i in range(70)]
    for device in ("cpu", "cuda"):
        model = load_model(folder, device=device, dtype="float32")
        answers.append(generate(model, tokenizer, prompts, Sampling(40, temperature=1.0, top_p=0.9),
                                list(range(len(prompts)))))
    lengths = sorted(answer.n_tokens for answer in answers[0])
    assert answers[0] == answers[1] and lengths[0] < 5 and lengths[34] < lengths[-16]


@pytest.mark.parametrize("name", ["llama", "a window"])
def test_same_text_of_long_rests(tmp_path, name):
    """As a CPU writes, where a prefill joins the shared prefix's keys and a row's own."""
    folder = write_model(tmp_path / "m", **MODELS[name])
    tokenizer, answers = Tokenizer(folder), []
    prompts = [[*range(30, 60), *range(40 + i, 60 + 2 * i)] for i in range(12)]
    for device in ("cpu", "cuda"):
        model = load_model(folder, device=device, dtype="float32")
        answers.append(generate(model, tokenizer, prompts, Sampling(12), list(range(12))))
    assert answers[0] == answers[1]


def test_batches_are_freed(tmp_path):
    """At their end, caches and recordings and all: not when Python's collector comes by."""
    folder = write_model(tmp_path / "m")
    model, tokenizer, used = load_model(folder, device="cuda"), Tokenizer(folder), []
    gc.disable()
    try:
        for _ in range(4):
            generate(model, tokenizer, [[*range(30, 50), i] for i in range(30, 60)], Sampling(8))
            used.append(torch.cuda.memory_allocated())
    finally:
        gc.enable()
    assert used[1] == used[2] == used[3]


@pytest.mark.parametrize("cap", [None, 30.0])
@pytest.mark.parametrize("P", [0, 48])
def test_prefix_attention_in_bf16(P, cap):
    """Beside float64 on the same numbers; the cache's slots lie apart, as in generate.Cache."""
    torch.manual_seed(0)
    B, G, R, S, E = 5, 2, 3, 24, 32
    q, k, v = (torch.randn(B, G, n, E, device="cuda").bfloat16() * 2 for n in (R, 2 * S, 2 * S))
    k, v = k[:, :, :S], v[:, :, :S]
    bias = torch.zeros(B, 1, R, S, device="cuda").masked_fill(
        torch.rand(B, 1, R, S, device="cuda") < 0.3, -torch.inf)
    bias[..., 0] = 0
    prefix = [torch.randn(1, G, P, E, device="cuda").bfloat16() * 2 for _ in "kv"]

    def attend(dtype):
        wide = [x.to(dtype) for x in prefix] if P else None
        return prefix_attention(q.to(dtype), k.to(dtype), v.to(dtype), bias.to(dtype), wide, None,
                                scale=E ** -0.5, cap=cap).double()
    exact, found = attend(torch.float64), attend(torch.bfloat16)
    assert (found - exact).norm() / exact.norm() < 1e-2


def test_nf4_is_recorded(tmp_path):
    """Decoding steps and a training step of a base in 4 bits, launched and then replayed."""
    folder = write_model(tmp_path / "m", head_dim=16)
    model = load_model(folder, device="cuda", dtype="bfloat16", base_dtype="nf4")
    tokenizer, prompts = Tokenizer(folder), [[*range(30, 34 + i)] for i in range(3)]
    assert len(generate(model, tokenizer, prompts, Sampling(6))) == 3
    add_lora(model, block_linears(model), rank=2, alpha=4)
    for p in lora_parameters(model).values():
        p.grad = torch.zeros_like(p)
    examples = all_shapes(fine=True)
    room = room_for([[examples]])
    take = micro_step(model, pt_loss, 0.4, recorded_as=pack([], room))
    first, *others = [take(pack(examples, room), 9).tolist() for _ in range(3)]
    assert all(sums == pytest.approx(first, rel=1e-2) for sums in others)


@pytest.mark.parametrize("checkpointing, objective", [
    (False, "pt"), (True, "pt"), (False, "ga"), (False, "npo"), (False, "dpo")])
def test_same_gradients(tmp_path, checkpointing, objective):
    """Replayed for rows of other lengths and numbers as they would have been launched; the arms'
    weights, which differ from pair to pair, are found anew in each replay."""
    model = with_adapter(write_model(tmp_path / "m", head_dim=16), torch.bfloat16).cuda()
    model.model.gradient_checkpointing = checkpointing
    assert can_record(model, pt_loss)
    shapes = with_reference(model, all_shapes(fine=True), pt_loss, 10**6)
    rows = [shapes, shapes[:2], shapes[3:], shapes[:1] * 5, shapes[::-1]]
    long = example(list(range(5, 30)), list(range(10, 90)), list(range(40, 130)))
    rows.append(with_reference(model, [long], pt_loss, 10**6))  # launched among the replayed
    room = room_for([rows])
    parameters = lora_parameters(model).values()

    def results(room):
        take = micro_step(model, pt_loss, 0.4, objective, recorded_as=room and pack([], room))
        for p in parameters:
            p.grad = torch.zeros_like(p)
        for examples in rows:
            batch = pack(examples, room)
            sums = take(batch, int((batch.kind == POSITIVE).sum())).tolist()
            yield torch.tensor(sums), torch.cat([p.grad.flatten() for p in parameters])
            for p in parameters:
                p.grad.zero_()

    for (sums, g), (wanted, h) in zip(results(room), results(None), strict=True):
        assert torch.allclose(sums, wanted, rtol=2e-3, atol=2e-3)  # ga's loss may be near 0
        assert (g - h).norm() < 0.02 * h.norm() and float(h.abs().max()) > 0


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("shape", ["smollm2", "1.5b"])
def test_forecast(shape, checkpointing):
    """Of `train --dry-run`, within 15 %: what one step takes besides weights and adapter."""
    with config_folder(shape) as folder:
        config = read_config(Path(folder))
        model = random_model(Path(folder), device="cuda", dtype="bfloat16")
    examples = drawn_examples(64, 128, 128, 8, config.vocab_size)
    targets = block_linears(model)
    add_lora(model, targets, rank=16, alpha=32)
    model.model.gradient_checkpointing = checkpointing
    for p in lora_parameters(model).values():
        p.grad = torch.zeros_like(p)
    batch = pack(examples).to("cuda")
    step = partial(micro_step(model, pt_loss, 0.4), batch, 1024)
    counted = forecast(config, examples, targets=targets, rank=16, dtype="bfloat16", loss="triton",
                       gradient_checkpointing=checkpointing, device=torch.device("cuda"))
    grown = peak_growth(step, torch.device("cuda"))
    assert grown == pytest.approx(counted.activations + counted.work, rel=0.15)
