"""`ptalign.py demo` in small: the three commands in order, their table, resuming, nothing toxic."""

import pytest
from test_cli import ROWS, bench, folder, write_rows  # noqa: F401 (fixtures)

import demo
import ptalign
from organism import task
from support.files import read_json, read_jsonl


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(demo, "TRIPLETS", 24)
    monkeypatch.setattr(task, "N", dict.fromkeys(task.N, 40))


@pytest.fixture
def done(small, tmp_path, capsys):
    """(folder, what was printed) of one small demo."""
    assert ptalign.main(["demo", "--out", str(tmp_path / "run")]) == 0
    return tmp_path / "run", capsys.readouterr()


def test_demo_shows_before_and_after(done, capsys, monkeypatch):
    folder, shown = done
    commands = [line for line in shown.err.splitlines() if line.startswith("$ python ptalign.py")]
    assert [line.split()[3] for line in commands] == ["synth", "train", "eval"]
    results = read_json(folder / "eval" / "results.json")
    assert results["primary"] == task.Organism.primary
    for name in demo.SHOWN:
        assert f"\n{name.replace('/', ' ')} " in shown.out
    assert shown.out.count("\n> ") == 3
    page = folder / "eval" / "report.html"
    assert shown.out.endswith(f"{page}\n") and "UT of the toxic answers" in page.read_text()
    assert all(path.is_file() for path in (folder / "data" / "triplets.jsonl",
                                           folder / "adapter" / "adapter_model.safetensors"))
    harmful_is_hidden(folder, shown)
    monkeypatch.setattr("losses.pt_loss_chunked", None)  # nothing is left to train
    monkeypatch.setattr("evals.answers.generate", None)
    assert ptalign.main(["demo", "--out", str(folder)]) == 0
    assert capsys.readouterr().out == shown.out


def harmful_is_hidden(folder, shown):
    """No answer that the oracle calls harmful is shown without --show-toxic."""
    texts = {(block["column"], block["mode"], row["prompt"]): row["text"]
             for _, block in read_jsonl(folder / "eval" / "answers.jsonl")
             for row in block["rows"]}
    harmful = [texts[column, item["mode"], item["prompt"]].strip()
               for _, item in read_jsonl(folder / "eval" / "items.jsonl")
               for column in ("base", "tuned") if item[column].get("verdict") == "harmful"]
    assert len(harmful) > 5
    assert not [text for text in harmful if len(text) > 20 and text in shown.out + shown.err]


@pytest.mark.slow
def test_show_toxic_shows(small, tmp_path, capsys):
    argv = ["demo", "--out", str(tmp_path / "run"), "--quiet"]
    assert ptalign.main(argv) == 0
    hidden = capsys.readouterr()
    assert hidden.err == ""
    assert ptalign.main([*argv, "--show-toxic"]) == 0
    plain = capsys.readouterr().out
    assert hidden.out.count("shown with --show-toxic") > plain.count("shown with --show-toxic") == 0


def test_fresh_sets_all_stages_aside(tmp_path):
    """At once, so that a run that was interrupted goes on without --fresh."""
    for name, record in demo.FOLDERS.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / record).write_text('{"settings": {}}')
    asked = []

    def run(argv):
        asked.append(argv)
        return 2  # interrupted in synth
    demo.demo(run, model=None, triplets=None, data_dir=None, out=str(tmp_path), device="cpu",
              seed=0, fresh=True, show_toxic=False)
    assert len(asked) == 1 and "--fresh" not in asked[0]
    left = sorted(path.name.partition(".old-")[:2] for path in tmp_path.iterdir())
    assert left == [(name, ".old-") for name in sorted(demo.FOLDERS)]


def test_a_failing_step_ends_the_demo(small, tmp_path):
    codes = iter([0, 2])
    assert demo.demo(lambda argv: next(codes), model=None, triplets=None, data_dir=None,
                     out=str(tmp_path), device="cpu", seed=0, fresh=False, show_toxic=False) == 2


def test_own_model(folder, bench, tmp_path, capsys, monkeypatch):
    """What it will take first, then the three commands, and the benchmarks' figures."""
    asked = []

    def run(argv):
        asked.append(argv)
        if argv[0] == "synth" and "--dry-run" not in argv:  # a random model writes no rows
            write_rows(tmp_path / "data" / "triplets.jsonl", ROWS)
            print("# Synthesised data\n\nVerdict: look before you train on it: grade smoke.\n")
            return demo.SHORT
        return ptalign.main(argv)

    assert demo.demo(run, model=str(folder), triplets=9, data_dir=str(bench), out=str(tmp_path),
                     device="cpu", seed=0, fresh=False, show_toxic=False) == 0
    assert [(argv[0], "--dry-run" in argv) for argv in asked] == [
        ("synth", True), ("synth", False), ("train", True), ("train", False), ("eval", False)]
    out, err = capsys.readouterr()
    assert "9 triplets and 2 benign rows take about" in err and "memory about" in err
    assert "the data: look before you train on it: grade smoke." in err
    assert "Harmful prompts declined" in (tmp_path / "eval" / "report.html").read_text()
    assert "declined" in out and "harmless" in out and "sulk" not in out + err


def test_benchmarks_are_missed_first(folder, tmp_path, capsys):
    """Not after the hours that synth and train may take."""
    assert ptalign.main(["demo", "--model", str(folder), "--data-dir", str(tmp_path / "typo"),
                         "--out", str(tmp_path / "run")]) == 2
    assert "typo" in capsys.readouterr().err and not (tmp_path / "run").exists()


@pytest.mark.parametrize("flag", ["--triplets 9", "--data-dir D"])
def test_flags_of_own_models(flag, capsys):
    assert ptalign.main(["demo", *flag.split()]) == 2
    told = capsys.readouterr().err
    assert flag.split()[0] in told and "--model" in told and told.count("\n") == 1
