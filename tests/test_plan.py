"""The steps of a run (triplets.py), its forecast memory (forecast.py), and `train --dry-run`."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import write_model
from test_packing import all_shapes
from test_train import OPTIONS, ROWS, trainer

import ptalign
import train
from forecast import Forecast, describe, forecast
from lora import add_lora, block_linears, lora_parameters
from model import load_model, read_config
from support.files import write_jsonl
from support.progress import warn_of_stalls
from synthesis.plan import seconds_of
from triplets import Example, pack, plan_steps


def test_micro_batches_are_filled():
    """No padding is left, so that only the last example's size leaves room."""
    examples = [Example([1] * 10, [2] * n, [], []) for n in (11, 21, 31, 41) * 8]  # 20 to 50 tokens
    batches = [b for step in plan_steps(examples, epochs=2, seed=0, batch_tokens=200, accumulate=3)
               for b in step]
    sizes = [sum(e.tokens for e in batch) for batch in batches]
    assert max(sizes) <= 200 and sorted(sizes)[len(sizes) // 8] > 150
    assert sum(map(len, batches)) == 2 * len(examples)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("changes", [{}, {"model_type": "gemma2", "head_dim": 8}], ids=str)
def test_activations(tmp_path, changes, checkpointing):
    """What autograd keeps on the meta device is what it keeps on a CPU."""
    folder = write_model(tmp_path / "m", **changes)
    model = load_model(folder, device="cpu", dtype="bfloat16")
    targets, examples = block_linears(model), all_shapes(fine=True)
    counted = forecast(read_config(folder), examples, targets=targets, rank=4, dtype="bfloat16",
                       loss="chunked", gradient_checkpointing=checkpointing,
                       device=torch.device("cpu"))
    storages = {p.data_ptr(): p.nbytes for p in model.parameters()}  # a tied head is stored once
    assert counted.weights == sum(storages.values())
    add_lora(model, targets, rank=4, alpha=8)
    assert counted.adapter == 4 * sum(p.nbytes for p in lora_parameters(model).values())
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept, batch = {}, pack(examples)

    def keep(tensor):
        if (place := tensor.untyped_storage().data_ptr()) not in parameters:
            kept[place] = tensor.untyped_storage()
        return tensor

    model.model.gradient_checkpointing = checkpointing
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.model(batch.ids, batch.positions, batch.attend)
    held = sum(storage.nbytes() for storage in kept.values())
    if checkpointing:  # the backward pass adds those of the block that it computes again
        assert counted.activations <= held < counted.activations + counted.work
    else:
        assert held == pytest.approx(counted.activations, rel=0.05)


def test_dry_run(tiny_folder, tmp_path, capsys):
    """A line each for steps, memory, time and disk; nothing is trained or written."""
    write_jsonl(tmp_path / "data.jsonl", ROWS)
    argv = ["train", "--model", str(tiny_folder), "--data", str(tmp_path / "data.jsonl"), "--out",
            str(tmp_path / "a"), "--batch-tokens", "110", "--dry-run"]
    assert ptalign.main(argv) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["memory", "time", "disk"]
    assert re.match(r"\d+ steps, \d+ micro-batches of \d+ to \d+ tokens, 963 tokens", lines[0])
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("objective, checkpointing", [("pt", False), ("pt", True), ("dpo", False)])
def test_what_is_told_of_a_plan(tiny_folder, monkeypatch, objective, checkpointing):
    """The largest micro-batch's memory; time by 2 FLOP a weight and token, forward, back and anew;
    the adapter on disk with a checkpoint of three parts, while the next is written."""
    seen, config = [], read_config(tiny_folder)
    monkeypatch.setattr("forecast.product_rate", lambda *_: 1e4)
    monkeypatch.setattr("forecast.forecast", lambda _, batch, **options: seen.append(batch) or
                        Forecast(0, 4 * 2**20, 0, 0))
    small, large = (Example([1] * n, [2] * n, [3] * n, [1] * n) for n in (4, 9))
    told = describe([[[small]], [[large]], [[small]]], config, held_out=[small],
                         dtype="float32", objective=objective,
                         gradient_checkpointing=checkpointing, device=torch.device("cpu"))
    model = load_model(tiny_folder, device="cpu", dtype="float32")
    blocks = sum(p.numel() for p in model.model.layers.parameters())
    few, many = ((blocks * e.tokens, config.vocab_size * config.hidden_size * e.scored)
                 for e in (small, large))
    passes = 6 if checkpointing else 4
    flop = passes * (2 * sum(few) + sum(many)) + 2 * sum(few)
    if objective == "dpo":  # twice through the head, and once over each example for the base
        flop += 4 * (2 * few[1] + many[1]) + 2 * (sum(few) + sum(many))
    assert f"time about {flop / 1e4 / 0.6 / 60:.0f} minutes" in told and "disk 7 MiB" in told
    assert seen == [[large]]


def test_what_synthesis_takes(tiny_folder, monkeypatch):
    """New tokens go through all weights, and tokens that are read through the blocks alone, each at
    its own share of the products' rate."""
    config, cpu = read_config(tiny_folder), torch.device("cpu")
    monkeypatch.setattr("synthesis.plan.product_rate", lambda *_: 1e4)
    model = load_model(tiny_folder, device="cpu", dtype="float32")
    weights, blocks = (sum(p.numel() for p in m.parameters())
                       for m in (model, model.model.layers))
    assert seconds_of(config, 7, 0, "float32", cpu) == pytest.approx(14 * weights / 1e4 / 0.26)
    assert seconds_of(config, 0, 9, "float32", cpu) == pytest.approx(18 * blocks / 1e4 / 0.65)


def test_stalls_are_told_once(capsys):
    """Five steps in a row that take over three times the median; a GPU is not told of."""
    seconds = []
    for step in [1.0] * 20 + [4.0] * 8 + [1.0] * 3 + [4.0] * 4:
        seconds.append(step)
        warn_of_stalls(seconds, "cpu")
    assert capsys.readouterr().err.count("OMP_NUM_THREADS") == 1
    warn_of_stalls([1.0] * 20 + [4.0] * 5, "cuda")
    assert capsys.readouterr().err == ""


CHILD = """
import re, sys
from pathlib import Path
import torch
from lora import add_lora, block_linears, lora_parameters
from losses import pt_loss_chunked
from model import load_model, read_config
from forecast import forecast
from train import batch_loss
from triplets import Example, pack

def resident(field):
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{field}:\\s+(\\d+) kB", status)[1]) * 1024

folder = Path(sys.argv[1])
examples = [Example(list(range(9, 73)), list(range(100, 228)), list(range(300, 428)),
                    [1] * 127 + [0]) for _ in range(4)]
before = {field: resident(field) for field in ("RssAnon", "RssFile")}
model = load_model(folder, device="cpu", dtype="bfloat16")
targets = block_linears(model)
add_lora(model, targets, rank=16, alpha=32)
parameters, batch = lora_parameters(model).values(), pack(examples)
optimizer = torch.optim.AdamW(parameters)
for _ in range(2):
    batch_loss(model, batch, pt_loss_chunked, 0.4, 512)[0].backward()
    optimizer.step()
    optimizer.zero_grad()
counted = forecast(read_config(folder), examples, targets=targets, rank=16, dtype="bfloat16",
                   loss="chunked", gradient_checkpointing=False, device=torch.device("cpu"))
# The weights are mapped from their file. So are the libraries, of which the system maps more or
# less as it happens to cache them: they do not count.
mapped = min(resident("RssFile") - before["RssFile"], counted.weights)
peak = resident("VmHWM") - resident("VmRSS") + resident("RssAnon") - before["RssAnon"] + mapped
print(peak / counted.total(torch.device("cpu")))
"""


@pytest.mark.slow
def test_forecast_of_a_real_model(real_folder):
    """A new process grows by what was forecast, at most 15 % more and 25 % less."""
    if not Path("/proc/self/status").is_file():
        pytest.skip("only Linux tells a process's peak")
    done = subprocess.run([sys.executable, "-c", CHILD, str(real_folder)], capture_output=True,
                          text=True, cwd=Path(train.__file__).parent)
    assert 0.75 < float(done.stdout) < 1.15, done.stderr


def test_options_reach_a_run(tiny_folder, tmp_path):
    """`dry_run` is no setting of a run: one begun without it goes on with the same record."""
    out = trainer(tiny_folder, tmp_path)("a")
    assert "dry_run" not in OPTIONS and "dry_run" not in (out / "train_config.json").read_text()
