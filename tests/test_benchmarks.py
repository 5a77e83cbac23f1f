"""benchmarks/head.py at a toy size on the CPU: its report is whole and agrees with itself.

Without the peers and without torch.compile; what needs a GPU is run with stand-ins or not at all.
"""

import importlib
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from benchmarks import cases, generate, head, rivals, shares, timing
from losses import IGNORED, pt_loss

PLAIN = ["naive-all", "naive", "torch-ce", "trl", "liger", "ours", "ours-triton"]
TOY = ["--device", "cpu", "--sizes", "toy", "--rows", "48", "--rounds", "3"]
CPU = torch.device("cpu")


@pytest.fixture
def report(tmp_path, monkeypatch, capsys):
    """(what the run wrote as JSON, its standard output)."""
    monkeypatch.setattr(head, "peak_of", lambda *_: 3 * 2**20)
    out = tmp_path / "new" / "toy.json"
    command = [*TOY, "--dtype", "float32", "--only", ",".join(PLAIN), "--out", str(out)]
    assert head.main(command) == 0
    assert "share of floor" in out.with_suffix(".md").read_text()
    return json.loads(out.read_text()), capsys.readouterr().out


def test_every_rival_has_figures_or_a_reason(report):
    whole, printed = report
    (result,) = whole["results"]
    assert list(result["rivals"]) == list(head.RIVALS)
    for name, row in result["rivals"].items():
        if name in PLAIN and not name.startswith(("liger", "ours-")):
            assert row["p10"] <= row["ms"] <= row["p90"] and row["MiB"] == 3
            assert f"| {name} |" in printed
        else:
            assert "CPU" in row["reason"] or row["reason"] == "left out by --only"
            assert row["reason"] in printed


def test_shares_are_of_the_same_run(report):
    (result,) = report[0]["results"]
    assert result["floor_ms"] == min(row["ms"] for row in result["floors"].values())
    for row in result["rivals"].values():
        if "ms" in row:
            assert row["share"] == pytest.approx(result["floor_ms"] / row["ms"], abs=1e-4)


def test_exact_rivals_agree_with_float64(report):
    (result,) = report[0]["results"]
    assert result["rivals"]["ours"]["error"] < 1e-5
    for name in ("naive-all", "naive", "torch-ce", "trl"):  # exact until 1 - p is lost in fp32
        assert result["rivals"][name]["error"] < 1e-2


def test_truth_is_the_gradient_of_the_whole():
    """Also for rows beyond those compared, and with ignored rows between the scored ones."""
    every = cases.synthetic(64, 1000, cases.CHECKED + 9, CPU, torch.float64)
    exact, p = cases.truth(cases.scored(every))
    head.step(lambda *case: pt_loss(*case)[0], every)
    assert len(exact) == len(p) == cases.CHECKED
    assert cases.error_of(every.hidden.grad, every.kind, exact) < 1e-12
    assert not every.hidden.grad[every.kind == IGNORED].any()


def test_rows_look_like_a_language_models():
    case = cases.scored(cases.synthetic(64, 1000, 1024, CPU, torch.bfloat16))
    _, p = cases.truth(case)
    assert p.min() < 1e-2 and p.max() > 0.99 and 0.05 < (p > 0.9).double().mean() < 0.5
    assert 10 < (case.hidden @ case.head.T).abs().max() < 80


def test_a_fused_loss_made_unlikelihood_is_finite_where_it_can_be():
    """p = 1 in a positive row is no fault; in a toxic row the formula has no answer."""
    kind, weight = torch.tensor([1, -1]), torch.ones(2)
    nll = torch.tensor([0.0, math.log(2)], requires_grad=True)
    loss = rivals.from_nll(nll, kind, weight)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(2)) and nll.grad.tolist() == pytest.approx([1, -1])
    assert rivals.from_nll(nll.detach(), -kind, weight).isinf()


def test_memory_is_what_a_new_process_takes():
    options = SimpleNamespace(device=CPU, model=None, dtype="float32")
    case = cases.scored(cases.synthetic(*head.SIZES["toy"], 4096, CPU, torch.float32))
    peak = head.peak_of("naive", case, "toy", options)
    if peak is None:
        pytest.skip("no /proc/self/clear_refs to be written here")
    logits = 4096 * 1000 * 4
    assert 2 * logits < peak < 8 * logits


def test_memory_freed_by_another_hides_no_peers_own():
    def fills():
        return [torch.ones(25_000) for _ in range(400)]  # 38 MiB in pieces that glibc keeps
    others = fills()
    above = torch.ones(25_000)
    del others
    _, mib = generate.timed(lambda: len(fills()), CPU)
    del above
    if mib is None:
        pytest.skip("no /proc/self/clear_refs to be written here")
    assert 30 < mib < 50


@pytest.mark.parametrize("code, wanted", [(0, 0), (1, 1), (124, 0)])
def test_a_part_that_failed_on_a_gpu_is_in_the_exit_code(tmp_path, code, wanted):
    """One that was cut short by its time limit has not failed."""
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\necho "| row |"\ncase "$*" in *head.py*) exit {code};; esac\n')
    python.chmod(0o755)
    place = {"PYTHON": str(python), "OUT": str(tmp_path / "out"), "TRY": "1"}
    done = subprocess.run(["bash", Path(head.__file__).with_name("on_gpu.sh")],
                          env=os.environ | place, capture_output=True, text=True, check=False)
    ended = {line.partition(":")[0]: line[-1] for line in done.stdout.splitlines()
             if "exit code" in line}
    assert done.returncode == wanted and ended["head"] == str(code)[-1]
    assert ended["all-tests"] == "0"  # one that fails stops no other
    assert done.stderr == ("failed: head-qwen3-8b head\n" if wanted else "")


def test_a_failing_rival_does_not_end_the_run():
    def fails():
        raise ValueError("no kernel in /some/where/kernels.py\nat line 3")

    def fills():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")

    got = timing.take_turns({"a": fails, "b": fills, "c": lambda: None}, 2, CPU)
    assert got["a"] == {"reason": "ValueError: no kernel in kernels.py"}
    assert got["b"] == {"reason": "out of memory"} and "ms" in got["c"]


def test_sweep_sets_the_kernels_constants_and_puts_them_back(monkeypatch):
    seen, kernels = [], ModuleType("kernels")

    def loss(*case, budget=None):
        seen.append((kernels.chunked.MAX_ROWS, kernels.rows.BLOCK, kernels.flash_head.STAGES))
        return pt_loss(*case)

    kernels.rows, kernels.chunked, kernels.flash_head = map(ModuleType, ("rows", "chunked", "f"))
    vars(kernels.rows).update(BLOCK=0, WARPS=0)
    vars(kernels.chunked).update(MAX_ROWS=0, pt_loss_chunked=loss)
    vars(kernels.flash_head).update(BLOCK_M=0, BLOCK_N=0, WARPS=0, STAGES=0, pt_loss_flash=loss,
                                    fits=lambda *_: True)
    monkeypatch.setitem(sys.modules, "kernels", kernels)
    options = SimpleNamespace(device=CPU, model=None, dtype="float32", rounds=1)
    result = head.sweep("toy", 4, options)
    assert len(result["rivals"]) == len(head.grid(head.SWEPT)) + len(head.grid(head.SWEPT_FLASH))
    assert set(seen) == {(rows, block, 0) for rows in head.SWEPT["MAX_ROWS"]
                         for block in head.SWEPT["BLOCK"]} | {(0, 0, 2), (0, 0, 3)}
    loss(*cases.scored(cases.synthetic(64, 1000, 2, CPU, torch.float32)))
    assert seen[-1] == (0, 0, 0)


@pytest.mark.parametrize("wrong, told", [
    (["--only", "naive,nobody"], "nobody"), (["--sizes", "huge"], "huge"),
    (["--rows", "0"], "at least 1"), (["--sweep"], "GPU"), (["--model", "nowhere"], "nowhere"),
    (["--out", "/dev/null/x.json"], "/dev/null")])
def test_bad_input_is_told_in_one_line(wrong, told, capsys, monkeypatch):
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0))  # a load is warned of
    assert head.main([*TOY, *wrong]) == 2
    error = capsys.readouterr().err
    assert told in error and error.count("\n") == 1


@pytest.mark.parametrize("name", ["arms", "arms_depth", "audit", "gate_scores", "qwen_tables",
                                  "refine", "requests", "servers"])
def test_an_unknown_option_is_told_in_one_line(name, capsys):
    assert importlib.import_module(f"benchmarks.{name}").main(["--nonsense"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_shares_by_kind_of_work():
    """A large product is most of its call, waiting is Python's; together they are the call."""
    a = torch.randn(600, 600)
    products = shares.shares_of(lambda: [a @ a for _ in range(20)])
    waiting = shares.shares_of(lambda: time.sleep(0.05))
    assert products["matrix products"] > 0.7 and waiting[shares.PYTHON] > 0.9
    assert sum(products.values()) == pytest.approx(1, abs=0.05)
    text = shares.table({"products": products})
    assert text.splitlines()[0] == ("| time of | matrix products | fused attention | "
                                    "the rest of torch | Python |")
