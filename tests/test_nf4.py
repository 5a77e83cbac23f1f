"""support/nf4.py: 4-bit weights against a naive form and bitsandbytes, and the commands on them.

On the CPU. The naive form is the paper's, weight by weight in Python; bitsandbytes' tests are
skipped where its wheel is missing.
"""

import io
import json
import re
from pathlib import Path

import pytest
import torch
from conftest import write_model
from test_packing import all_shapes
from test_train import ROWS
from torch import nn

import ptalign
import train
from benchmarks import quantised
from forecast import forecast
from lora import add_lora, block_linears, lora_parameters
from model import Transformer, load_model, read_config
from support import nf4
from support.files import InputError, write_jsonl

SHAPES = [(15, 7), (64, 64), (130, 96), (300, 129)]  # odd ones end within a block and within a byte


def linear_of(weight, bias=None) -> nf4.NF4Linear:
    plain = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    linear = nf4.NF4Linear(plain)
    state = nf4.quantised("weight", weight) | ({} if bias is None else {"bias": bias})
    linear.load_state_dict(state, strict=True, assign=True)
    return linear


def dense(linear) -> torch.Tensor:
    return torch.cat([W for _, W in linear.tiles(torch.float32)])


def dense_weights(model) -> dict[str, torch.Tensor]:
    """By name, what the model computes with."""
    return {f"{name}.weight": dense(linear) for name, linear in model.named_modules()
            if isinstance(linear, nf4.NF4Linear)}


def weight_of(shape, seed=0) -> torch.Tensor:
    torch.manual_seed(seed)
    return torch.randn(shape) * torch.rand(shape[0], 1) * 0.1


def naive(weight) -> torch.Tensor:
    """Each number replaced by the nearest of the 16, times a scale that is itself replaced."""
    flat, levels, steps = weight.flatten().tolist(), nf4.levels().tolist(), nf4.steps().tolist()
    blocks = [flat[i:i + 64] for i in range(0, len(flat), 64)]
    scales = [max(map(abs, block)) for block in blocks]
    mean, told = sum(scales) / len(scales), []
    for i in range(0, len(scales), 256):
        most = max(abs(s - mean) for s in scales[i:i + 256])
        told += [min(steps, key=lambda v: abs(v - (s - mean) / most)) * most + mean
                 for s in scales[i:i + 256]]
    return torch.tensor([min(levels, key=lambda v: abs(v - x / scale)) * s
                         for block, scale, s in zip(blocks, scales, told, strict=True)
                         for x in block]).view_as(weight)


@pytest.mark.parametrize("shape", SHAPES)
def test_naive(shape):
    weight = weight_of(shape)
    torch.testing.assert_close(dense(linear_of(weight)), naive(weight), rtol=1e-5, atol=1e-7)


def test_bits():
    """4.127 bits a weight, as the paper counts them."""
    state = nf4.quantised("weight", weight_of((1024, 1024)))
    bits = 8 * sum(t.nbytes for t in state.values()) / 2**20
    assert bits == pytest.approx(4 + 8 / 64 + 32 / (64 * 256), abs=1e-4)


@pytest.mark.parametrize("weight", [torch.zeros(3, 64), torch.full((3, 64), -2.5),
                                    torch.eye(64), torch.full((1, 64), 1e-30)])
def test_exact(weight):
    """Zeros and what has the block's greatest size are told exactly where the scales agree."""
    torch.testing.assert_close(dense(linear_of(weight)), weight, rtol=1e-6, atol=1e-36)


def test_levels():
    """Those that the paper prints (appendix E), here to four digits."""
    assert [round(x, 4) for x in nf4.levels().tolist()] == [
        -1.0, -0.6962, -0.5251, -0.3949, -0.2844, -0.1848, -0.0910, 0.0, 0.0796, 0.1609, 0.2461,
        0.3379, 0.4407, 0.5626, 0.7230, 1.0]


def test_tables_are_copied_once():
    """A GPU's recording refuses a copy from the CPU."""
    device = torch.device("cpu")
    assert nf4.steps(device) is nf4.steps(device) and nf4.pairs(device) is nf4.pairs(device)


def test_tables():
    """Levels and steps are the published ones, to the last digits of fp32."""
    functional = pytest.importorskip("bitsandbytes.functional",
                                     reason="bitsandbytes is not installed (requirements-dev.txt)")
    theirs = functional.get_4bit_type("nf4", device="cpu")
    torch.testing.assert_close(nf4.levels(), theirs, rtol=0, atol=3e-7)
    torch.testing.assert_close(nf4.steps(), functional.create_dynamic_map(signed=True), rtol=0,
                               atol=1e-7)


@pytest.mark.parametrize("shape", [(64, 64), (576, 192), (300, 128)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_bitsandbytes(shape, dtype):
    """Its bytes are ours. Where a weight or a scale lies just between two numbers the last digit
    decides: one weight in a thousand may be the next level, a scale the next step."""
    functional = pytest.importorskip("bitsandbytes.functional",
                                     reason="bitsandbytes is not installed (requirements-dev.txt)")
    weight = weight_of(shape).to(dtype)
    codes, state = functional.quantize_4bit(weight, blocksize=64, compress_statistics=True,
                                            quant_type="nf4")
    ours = nf4.quantised("weight", weight)
    assert (codes.flatten() == ours["weight"].flatten()).float().mean() > 0.999
    steps = state.absmax.int() - ours["weight_scales"].int()
    assert steps.abs().max() <= 1 and (steps == 0).float().mean() > 0.99
    theirs = functional.dequantize_4bit(codes, state).float()
    got = torch.cat([W for _, W in linear_of(weight).tiles(dtype)]).float()
    same = torch.isclose(got, theirs, rtol=1e-3 if dtype == torch.float32 else 2**-6, atol=0)
    assert same.float().mean() > 0.99  # a block whose scale is a step off is a little off whole


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("tile", [2**20, 512])
def test_product(shape, tile, monkeypatch):
    """Output and gradient are those of the dense weight, whatever the tiles; nothing is kept."""
    monkeypatch.setattr(nf4, "TILE", tile)
    linear = linear_of(weight_of(shape), bias=torch.randn(shape[0]))
    x = torch.randn(2, 3, shape[1], dtype=torch.float64, requires_grad=True)
    W, kept = dense(linear).double(), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = linear(x)
    assert not kept
    torch.testing.assert_close(y, x @ W.T + linear.bias)
    d_y = torch.randn_like(y)
    (d_x,) = torch.autograd.grad(y, x, d_y)
    torch.testing.assert_close(d_x, d_y @ W)


@pytest.fixture(scope="module")
def wide_folder(tmp_path_factory):
    """Wide enough that the blocks outweigh the embedding."""
    return write_model(tmp_path_factory.mktemp("models") / "wide", hidden_size=128,
                       intermediate_size=320, num_attention_heads=4, attention_bias=True,
                       max_position_embeddings=8192)


@torch.no_grad()
@pytest.mark.parametrize("changes", [{}, {"model_type": "phi3"}, {"model_type": "gemma2"}], ids=str)
def test_model(tmp_path, changes):
    """The logits of a model with the dense weights put in; head and embedding are the file's."""
    folder = write_model(tmp_path / "m", head_dim=8, **changes)
    small = load_model(folder, device="cpu", dtype="float32", base_dtype="nf4")
    plain = load_model(folder, device="cpu", dtype="float32")
    ids = torch.tensor([[3, 40, 5, 77, 300, 12, 9]])
    before, weights = plain(ids), dense_weights(small)
    assert torch.equal(plain.lm_head.weight, small.lm_head.weight)
    assert len(weights) == sum(isinstance(m, nn.Linear) for m in plain.modules()) - 1
    plain.load_state_dict(weights, strict=False)
    torch.testing.assert_close(small(ids), plain(ids), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(small(ids), before, atol=1e-3)


def test_gradients(wide_folder):
    """LoRA's, on codes and on the same weights dense."""
    grads, ids = [], torch.tensor([[3, 40, 5, 77, 300, 12, 9]])
    small = load_model(wide_folder, device="cpu", dtype="float32", base_dtype="nf4")
    plain = load_model(wide_folder, device="cpu", dtype="float32")
    plain.load_state_dict(dense_weights(small), strict=False)
    for model in (small, plain):
        torch.manual_seed(0)
        add_lora(model, ["q_proj", "down_proj", "up_proj"], rank=4, alpha=8)
        for parameter in lora_parameters(model).values():
            nn.init.normal_(parameter, std=0.1)
        model(ids).float().logsumexp(-1).sum().backward()
        grads.append([p.grad for p in lora_parameters(model).values()])
        assert all(p.dtype == torch.float32 for p in lora_parameters(model).values())
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-4)


# ---- the forecast ----

def forecast_of(folder, examples, device="cpu", base_dtype="nf4", **options):
    config = read_config(folder)
    with torch.device("meta"):
        targets = block_linears(Transformer(config))
    return forecast(config, examples, targets=targets, rank=16, dtype="bfloat16",
                    base_dtype=base_dtype, device=torch.device(device), **options)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_forecast(wide_folder, checkpointing):
    """The weights' bytes are the loaded model's, and autograd keeps what it keeps of bf16's."""
    options = {"loss": "chunked", "gradient_checkpointing": checkpointing}
    counted = forecast_of(wide_folder, all_shapes(fine=True), **options)
    model = load_model(wide_folder, device="cpu", dtype="bfloat16", base_dtype="nf4")
    storages = {p.data_ptr(): p.nbytes for p in model.parameters()}  # a tied head is stored once
    assert counted.weights == sum(storages.values())
    plain = forecast_of(wide_folder, all_shapes(fine=True), base_dtype=None, **options)
    assert counted.activations == plain.activations and counted.work >= plain.work
    weights = sum(m.in_features * m.out_features for m in model.modules()
                  if isinstance(m, nf4.NF4Linear))
    saved = 8 * (plain.weights - counted.weights) / weights
    assert saved == pytest.approx(16 - 4.127, abs=0.02)  # bits; a last block may be a short one


def test_8b_in_24_gb():
    """A model of 8B (Llama 3's shape) and a micro-batch of the default size fit a card of 24 GB by
    a wide margin where activations are recomputed; in bf16 its weights alone leave no room."""
    total = quantised.forecasts()
    assert total["nf4"][True] < 10 and total["nf4"][False] < 25 < 30 < total["bf16"][False]


# ---- the commands ----

def line(command, folder, out, *more) -> list[str]:
    return [command, "--model", str(folder), "--out", str(out), "--dtype", "float32",
            "--base-dtype", "nf4", *map(str, more)]


def test_train_resumes(wide_folder, tmp_path, monkeypatch, killed):
    """A killed run ends with an unbroken one's bits; without nf4 it is refused as another run."""
    write_jsonl(tmp_path / "data.jsonl", ROWS)
    options = ["--data", tmp_path / "data.jsonl", "--batch-tokens", 110, "--lr", 0.01]
    assert ptalign.main(line("train", wide_folder, tmp_path / "whole", *options)) == 0
    broken = line("train", wide_folder, tmp_path / "broken", *options)
    monkeypatch.setattr(train, "CHECKPOINT_STEPS", 2)
    with killed(train, "check_step", 3):
        arguments = vars(ptalign.build_parser().parse_args(broken))
        del arguments["quiet"]
        ptalign.run(arguments.pop("command"), arguments)
    assert ptalign.main(broken) == 0
    adapters = [(tmp_path / name / "adapter_model.safetensors").read_bytes()
                for name in ("whole", "broken")]
    assert adapters[0] == adapters[1]
    steps = [json.loads(row) for row in (tmp_path / "whole" / "metrics.jsonl").open()]
    assert steps[-1]["mle"] < steps[0]["mle"]
    assert json.loads((tmp_path / "whole" / "train_config.json").read_text())["settings"][
        "base_dtype"] == "nf4"
    other = [word for word in broken if word not in ("--base-dtype", "nf4")]
    assert ptalign.main(other) == 2


def test_the_other_commands(wide_folder, tmp_path, monkeypatch, capsys):
    """eval with an adapter, synth and chat compute with these weights, and keep that on record."""
    loaded, load = [], nf4.shrink
    monkeypatch.setattr(nf4, "shrink", lambda model: loaded.append(1) or load(model))
    write_jsonl(tmp_path / "hhh_alignment.jsonl", [
        {"id": "h", "prompt": "May I?", "choices": ["Ask.", "Take it."], "label": 0, "group": "g"}])
    write_jsonl(tmp_path / "data.jsonl", ROWS)
    assert ptalign.main(line("train", wide_folder, tmp_path / "a", "--data",
                             tmp_path / "data.jsonl", "--epochs", 1)) == 0
    assert ptalign.main(line("eval", wide_folder, tmp_path / "eval", "--tasks", "hhh",
                             "--data-dir", tmp_path, "--adapter", tmp_path / "a")) == 0
    assert ptalign.main(line("synth", wide_folder, tmp_path / "data", "--triplets", 2)) == 3
    for run in ("eval", "data"):
        record = json.loads((tmp_path / run / "config.json").read_text())
        assert record["settings"]["base_dtype"] == "nf4"
    monkeypatch.setattr("sys.stdin", io.StringIO("Hello?\n"))
    assert ptalign.main(["chat", "--model", str(wide_folder), "--base-dtype", "nf4",
                         "--max-new-tokens", "4"]) == 0
    assert len(loaded) == 4


def test_refused_on_several(wide_folder, monkeypatch):
    monkeypatch.setattr("support.distributed.world", lambda: 2)
    with pytest.raises(InputError, match="one process"):
        load_model(wide_folder, device="cpu", base_dtype="nf4")


def test_the_benchmarks_page_has_its_own_command():
    given = ["--model", "M", "--data", "D"]
    for more, told in ((["--epochs", "2", "--lr", "2e-4", "--limit", "40"],
                        "--epochs 2 --lr 0.0002 --limit 40"), ([], "--epochs 3 --lr 0.0003")):
        text = quantised.about(quantised.build_parser().parse_args(given + more))
        assert f"--data-dir DATA \\\n        {told}\n" in text
    folder = Path(ptalign.__file__).parent / quantised.build_parser().parse_args(given).out.parent
    assert (folder / re.search(r"\]\((.+?)\)", text)[1]).is_file()


@pytest.mark.slow
def test_benchmark(wide_folder, tmp_path):
    """Its page has a row for either base in every table; a second start reads the runs back."""
    write_jsonl(tmp_path / "data.jsonl", ROWS)
    write_jsonl(tmp_path / "hhh_alignment.jsonl", [
        {"id": "h", "prompt": "May I?", "choices": ["Ask.", "Take it."], "label": 0, "group": "g"}])
    argv = ["--model", wide_folder, "--name", "Wide", "--data", tmp_path / "data.jsonl", "--tasks",
            "hhh", "--data-dir", tmp_path, "--epochs", 8, "--rounds", 1, "--work", tmp_path / "w",
            "--out", tmp_path / "page.md"]
    for _ in range(2):
        quantised.run(list(map(str, argv)))
        text = (tmp_path / "page.md").read_text()
        assert "# Wide in bf16 and in nf4" in text and "| bf16 | 2.000 | 2.000 |" in text
        assert text.count("\n| nf4 |") == 3 and "| hhh/raw/g/byte | 1 |" in text
        assert "| step of 32 rows |" in text and "\n| training, " in text
        (tmp_path / "page.md").unlink()
