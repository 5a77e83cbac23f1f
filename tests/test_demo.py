"""`ptalign.py demo` in small: the three commands in order, their table, resuming, nothing toxic."""

import pytest

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


def test_a_failing_step_ends_the_demo(small, tmp_path):
    codes = iter([0, 2])
    assert demo.demo(lambda argv: next(codes), out=str(tmp_path), device="cpu", seed=0, fresh=False,
                     show_toxic=False) == 2
