"""eval --require: what is told before a run, after it, and by which exit code (tiny model, CPU)."""

import pytest
from test_evals import results_of, rows, run  # noqa: F401 (a fixture)

import ptalign
from evals import answers, gate
from evals.figures import figure
from support.files import InputError

KEY = "refusal/chat/xstest/harmful/declined"


@pytest.mark.parametrize("text", ["", "x", "x >= ", "x = 1", ">= 0.5", "x >= 97", "x >= 1e9"])
def test_no_requirement(text):
    with pytest.raises(InputError, match=r"is no requirement, --require, write"):
        gate.read_requirements([text])


@pytest.mark.parametrize("text, rate, holds", [
    (f"{KEY} >= 0.9", 0.9, True), (f"{KEY}>=.9", 0.89, False), (f" {KEY} > 0.9 ", 0.9, False),
    (f"{KEY} <= 0", 0.0, True), ("a b/c in any of 3 < 0.5", 0.5, False)])
def test_signs_and_bounds(text, rate, holds):
    required = [(key, *_)] = gate.read_requirements([text])
    lines = gate.misses(required, [{"key": key, "base": {"rate": 1 - rate},
                                    "tuned": {"rate": rate}}])
    assert bool(lines) != holds and all(key in line and f"{rate:.4f}" in line for line in lines)
    alone = {"key": key, "base": {"rate": rate}}  # without an adapter the base's
    assert bool(gate.misses(required, [alone])) != holds


@pytest.mark.parametrize("tenths", range(1, 10))
def test_rounding_decides_nothing(tenths):
    """The rate of sampled answers is a mean of shares, which floats do not hold."""
    items = [{"prompt": f"p{i}", "id": i, "base": float(sample < tenths)}
             for i in range(10) for sample in range(10)]
    shares = figure(KEY, items, float, columns=("base",), seed=0, by="id")
    for sign, wrong in ((">=", ">"), ("<=", "<")):
        assert not gate.misses([(KEY, sign, tenths / 10)], [shares])
        assert gate.misses([(KEY, wrong, tenths / 10)], [shares])


def test_a_figure_that_the_run_does_not_have_falls_short():
    (line,) = gate.misses([("judge/a", ">=", 0.0), (KEY, ">=", 0.5)],
                          [{"key": KEY, "base": {"rate": 0.5}}])
    assert "judge/a" in line


def test_a_judge_that_fails_opens_no_gate():
    figure = {"key": KEY, "base": {"rate": 0.5}, "fails": True}
    (line,) = gate.misses([(KEY, ">=", 0.5)], [figure])
    assert "fails its calibration" in line
    assert not gate.misses([(KEY, ">=", 0.5)], [figure | {"fails": False}])


def test_misses_are_lines_and_code_4(tiny_folder, adapter, rows, tmp_path, capsys):
    out, asked = tmp_path / "out", {"adapter": [str(adapter)], "tasks": ["refusal"]}
    assert run(tiny_folder, rows, out, **asked, require=[f"{KEY} >= 0", f"{KEY} <= 1"]) == 0
    capsys.readouterr()
    code = run(tiny_folder, rows, out, **asked, require=[
        f"{KEY} > 1", f"{KEY} <= 1", "refusal/chat/xstest/benign/evaded < 0"])
    shown = capsys.readouterr()
    lines = [line for line in shown.err.splitlines() if line.startswith("ptalign: ")]
    assert code == gate.FALLS_SHORT == 4 and len(lines) == 2 and KEY in lines[0]
    assert "refusal chat" in shown.out and results_of(out)["figures"]


@pytest.mark.parametrize("tasks, key", [
    (["refusal"], "refusal/chat/xstest/harmful/declin"), (["refusal"], "hhh/raw/all/byte"),
    (["refusal"], "judge/refusal/chat/xstest/harmful/judged harmful"),
    (["hhh", "refusal"], "hhh/raw/all/bytes")])
def test_unknown_names_are_told_before_anything_is_generated(tiny_folder, rows, tmp_path,
                                                             monkeypatch, tasks, key):
    monkeypatch.setattr(answers, "generate", None)
    with pytest.raises(InputError, match=r"no figure .* in this run, --require, the nearest: "):
        run(tiny_folder, rows, tmp_path / "out", tasks=tasks, require=[f"{key} >= 0.5"])
    assert not (tmp_path / "out").exists()


def test_every_figure_of_a_run_can_be_named(tiny_folder, adapter, rows, tmp_path,
                                            monkeypatch):
    """The names known beforehand are those that the run has in the end."""
    named, real = [], gate.refuse_unknown
    monkeypatch.setattr(gate, "refuse_unknown", lambda required, tasks, columns, judged:
                        named.append(tasks) or real(required, tasks, columns, judged))
    asked = {"tasks": ["hhh", "hhh_ab", "refusal", "jailbreak", "prefill"], "samples": None,
             "adapter": [str(adapter)], "limit": 1, "max_new_tokens": 2}
    run(tiny_folder, rows, tmp_path / "out", **asked)
    keys = [f["key"] for f in results_of(tmp_path / "out")["figures"]]
    every = gate.read_requirements([f"{key} >= 0" for key in keys])
    real(every, named[0], ("base", "tuned"), None)
    assert len(keys) > 30


def test_the_command_line_passes_it_on(monkeypatch):
    seen = {}
    monkeypatch.setattr("evals.suite.evaluate", lambda **options: seen.update(options) or 4)
    line = ["eval", "--model", "m", "--out", "o", "--require", "a >= 1", "--require", "b <= 0"]
    assert ptalign.main(line) == 4 and seen["require"] == ["a >= 1", "b <= 0"]
