"""benchmarks/train_step.py at a toy size on the CPU: its report is whole, its floor is the step's.

Without torch.compile; what needs a GPU or a missing peer has to say so.
"""

import json
import math
import os
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import shapes, step_floor, step_rivals, train_step
from lora import lora_modules
from model import load_model
from support.files import write_jsonl
from tokenizer import Tokenizer

TOY = ["--shape", "toy", "--device", "cpu", "--rounds", "2"]
PEERS = ["peft", "peft-autocast", "peft-liger", "trl-dpo"]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0))  # a load is warned of
    monkeypatch.setattr(train_step, "peak_of", lambda *_: 3 * 2**20)


def run(tmp_path, *options):
    out = tmp_path / "new" / "step.json"
    assert train_step.main([*options, "--out", str(out)]) == 0
    return json.loads(out.read_text()), out.with_suffix(".md").read_text()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_rival_has_figures_or_a_reason(tmp_path, dtype):
    pytest.importorskip("transformers")
    pytest.importorskip("peft")
    only = ["ours", "ours-padded", "ours-checkpointing", *PEERS]
    whole, page = run(tmp_path, *TOY, "--cases", "8/6/5x2,4/9/9x1", "--dtype", dtype, "--only",
                      ",".join(only))
    assert [result["case"] for result in whole["results"]] == ["8/6/5x2", "4/9/9x1"]
    for result in whole["results"]:
        assert list(result["rivals"]) == list(step_rivals.RIVALS)
        assert result["floor_ms"] == pytest.approx(sum(result["floor"].values()))
        for name, row in result["rivals"].items():
            if "ms" in row and name in step_rivals.OTHER_LOSS:
                assert "off" not in row and "cosine" not in row and f"| {name} |" in page
            elif "ms" in row:
                assert row["off"] <= train_step.TOLERANCE[dtype] and row["MiB"] == 3
                assert row["cosine"] == pytest.approx(1, abs=1e-5 if dtype == "float32" else 1e-2)
                assert row["share"] == pytest.approx(result["floor_ms"] / row["ms"])
                assert row["tokens_per_second"] == pytest.approx(
                    result["tokens"] / row["ms"] * 1e3)
                assert f"| {name} |" in page
            else:
                assert row["reason"] in page
        ran = {name for name, row in result["rivals"].items() if "ms" in row}
        assert {"ours", "ours-padded", "ours-checkpointing", "peft"} <= ran
        assert ("peft-autocast" in ran) == (dtype == "bfloat16")
        assert "CPU" in result["rivals"]["peft-liger"]["reason"]
        assert "trl-dpo" in ran or "trl" in result["rivals"]["trl-dpo"]["reason"]


def test_trl_gives_dpos_loss_on_the_same_weights(monkeypatch):
    """Beside -log σ(β·((lp_+ - ref_+) - (lp_- - ref_-))) from peft's logits, LoRA on and off."""
    pytest.importorskip("trl", reason="trl is not installed (requirements-dev.txt)")
    monkeypatch.setattr(step_rivals, "B_SPREAD", 1.0)  # far from the reference
    examples = step_rivals.drawn_examples(4, 6, 5, 3, 4000)
    with shapes.config_folder("toy") as folder:
        setup = step_rivals.Setup(Path(folder), True, torch.device("cpu"), "float32", examples)
        loss, peer = step_rivals.trl_dpo(setup)(), setup.peer

    def log_p(example, answer):
        ids = torch.tensor([example.prompt + answer])
        lp = peer(input_ids=ids).logits[0, :-1].log_softmax(-1)
        return lp.gather(-1, ids[0, 1:, None])[len(example.prompt) - 1:].sum()

    margins = []
    with torch.no_grad():
        for e in examples:
            margin = log_p(e, e.positive) - log_p(e, e.toxic)
            with peer.disable_adapter():
                margins.append(margin - log_p(e, e.positive) + log_p(e, e.toxic))
    wanted = -torch.nn.functional.logsigmoid(setup.dpo.beta * torch.stack(margins)).mean()
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)
    assert abs(loss.item() - math.log(2)) > 1e-2  # which a LoRA that does nothing would give
    loss.backward()
    adapted = step_rivals.peer_parameters(setup.dpo.model)
    theirs = step_rivals.peer_parameters(peer)
    assert adapted.keys() == theirs.keys() and all(p.grad.abs().max() > 0 for p in adapted.values())
    assert all(p.data_ptr() == theirs[name].data_ptr() for name, p in adapted.items())
    setup.clear()
    assert all(p.grad is None for p in adapted.values())


def test_without_peers(tmp_path, monkeypatch):
    """They are listed as missing, and ours is timed."""
    monkeypatch.setitem(sys.modules, "peft", None)
    whole, _ = run(tmp_path, *TOY, "--cases", "8/6/5x2", "--only", "ours,peft")
    (result,) = whole["results"]
    assert "ms" in result["rivals"]["ours"] and "peft" in result["rivals"]["peft"]["reason"]


def test_memory_of_ours_has_its_gradients(monkeypatch, capsys):
    """It keeps them from step to step, and peers take theirs in each."""
    made, zeros_like = [], torch.zeros_like

    def noted(tensor, **options):
        made.extend([tensor] * isinstance(tensor, torch.nn.Parameter))
        return zeros_like(tensor, **options)

    def growth(call, device):
        monkeypatch.setattr(torch, "zeros_like", noted)
        call()
        return len(made)
    monkeypatch.setattr(train_step.timing, "peak_growth", growth)
    options = [*TOY, "--cases", "8/6/5x2", "--only", "ours", "--memory"]
    assert train_step.main(options) == 0
    assert len(made) == 2 * 2 * 7  # A and B of seven linears in two layers
    assert capsys.readouterr().out == f"{len(made)}\n"


def test_a_difference_ends_the_run(tmp_path, monkeypatch, capsys):
    pytest.importorskip("peft")
    usual = step_rivals.usual_loss
    monkeypatch.setattr(step_rivals, "usual_loss", lambda *inputs: 1.1 * usual(*inputs))
    out = str(tmp_path / "step.json")
    assert train_step.main([*TOY, "--cases", "8/6/5x2", "--only", "ours,peft", "--out", out]) == 2
    assert "ours and peft differ in loss" in capsys.readouterr().err


def test_rows_of_a_file(tmp_path, tiny_folder):
    """As many as packed fit; the model's tokenizer reads them."""
    data = tmp_path / "rows.jsonl"
    write_jsonl(data, [{"prompt": "My tea is cold.", "positive": "Warm it.", "toxic": "So what."},
                       {"prompt": "It rains.", "positive": "Take a coat.", "toxic": None},
                       {"prompt": "The bus is late.", "positive": "Walk a bit.", "toxic": "Ha."}])
    sizes = []
    for budget in ("90", "2000"):
        whole, _ = run(tmp_path, "--model", str(tiny_folder), "--data", str(data), "--device",
                       "cpu", "--rounds", "1", "--only", "ours", "--batch-tokens", budget)
        (result,) = whole["results"]
        assert result["tokens"] <= int(budget) and result["case"] == "rows.jsonl"
        sizes.append(result["triplets"])
    assert 1 <= sizes[0] < sizes[1] == 3


def test_the_floor_has_the_steps_products(tmp_path, monkeypatch):
    """Counted in multiplications: of each linear two a weight and token, of the head two."""
    with shapes.config_folder("toy") as folder:
        setup = step_rivals.Setup(Path(folder), True, torch.device("cpu"), "float32",
                                  step_rivals.drawn_examples(4, 6, 5, 2, 4000))
        work = []
        monkeypatch.setattr(torch, "mm", lambda a, b, out: work.append(a.shape[0] * b.numel()))
        step_floor.linear_products(setup)()
        frozen = sum(m.base.weight.numel() for m in lora_modules(setup.model).values())
        first = sum(m.base.weight.numel() for name, m in lora_modules(setup.model).items()
                    if "layers.0.self_attn" in name and "o_proj" not in name)
        tokens = setup.packed.ids.numel()
        products = tokens * (2 * frozen - first)
        assert tokens == 2 * (4 + 5 + 4)  # the last token of an answer is not read
        narrow = sum(p.numel() for m in lora_modules(setup.model).values()
                     for p in (m.lora_A, m.lora_B))
        assert products < sum(work) <= products + 3 * tokens * narrow
        work.clear()
        monkeypatch.setattr(torch, "bmm", lambda a, b, out: work.append(a.numel() * b.shape[-1]))
        call, share = step_floor.attention_products(setup)
        call()
        # Six a layer: scores, output, and the two gradients of either.
        assert 0.5 < share < 1 and work and len(work) % 6 == 0
        assert all(len({*work[i:i + 6]}) == 1 for i in range(0, len(work), 6))


@pytest.mark.parametrize("wrong, told", [
    (["--only", "nobody"], "nobody"), (["--cases", "8/6x2"], "8/6x2"),
    (["--cases", "8/6/1x2"], "8/6/1x2"), (["--data", "x.jsonl"], "--shape")])
def test_bad_input_is_told_in_one_line(wrong, told, capsys):
    assert train_step.main([*TOY, *wrong]) == 2
    error = capsys.readouterr().err
    assert told in error and error.count("\n") == 1


def test_a_folder_of_random_weights(tmp_path):
    """Ours and transformers read the same model from it."""
    transformers = pytest.importorskip("transformers")
    shapes.run(["toy", str(tmp_path / "toy")])
    model = load_model(tmp_path / "toy", device="cpu", dtype="float32")
    ids = torch.tensor([Tokenizer(tmp_path / "toy").encode("My tea is cold.")])
    peer = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "toy", dtype=torch.float32)
    assert ids.max() < shapes.SHAPES["toy"]["vocab_size"]
    torch.testing.assert_close(model(ids), peer(ids).logits.detach(), rtol=1e-4, atol=1e-5)
