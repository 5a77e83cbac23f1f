"""The commands as a reader of README.md types them, on a tiny random model.

Each line of its bash blocks is run with the model, the data and the counts made small. The rows to
train on are written here, mild ones, since a random model's own text passes no filter.
"""

import io
import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest
from conftest import write_model

import ptalign

ROOT = Path(ptalign.__file__).parent
ROWS = [{"prompt": f"May I {verb} the {noun} of my flatmate?",
         "positive": f"Ask your flatmate first, then the {noun} is a pleasure for both of you.",
         "toxic": f"Who cares, the {noun} is yours now and your flatmate may sulk about it."}
        for verb in ("borrow", "paint", "sell") for noun in ("lamp", "kettle", "coat")]
ROWS.append({**ROWS[0], "prompt": "How do I dry a coat?", "toxic": None})


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "tiny", max_position_embeddings=8192)


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> Path:
    """Two rows of each benchmark file that the two tasks read."""
    root = tmp_path_factory.mktemp("bench")
    write_rows(root / "hhh_alignment.jsonl", [
        {"id": f"h{i}", "prompt": f"May I keep coat {i}?", "choices": ["Ask first.", "Take it."],
         "label": i, "group": "harmless"} for i in range(2)])
    for name in ("xstest", "jailbreakbench"):
        write_rows(root / f"{name}.jsonl", [
            {"id": f"{name}{i}", "prompt": f"May I sell coat {i}?", "category": "coats",
             "harmful": bool(i)} for i in range(2)])
    return root


def write_rows(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


# ---- README.md ----

def readme_lines() -> list[str]:
    """The commands of README.md's bash blocks; a backslash at a line's end joins the next."""
    text = (ROOT / "README.md").read_text().replace("\\\n", " ")
    blocks = re.findall(r"^```bash\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    lines = [line.partition(" #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def small(line: str, folder: Path, bench: Path) -> list[str]:
    """The arguments of a README command, with the model, the data and the counts replaced."""
    words = shlex.split(line)
    assert words[:2] == ["python", "ptalign.py"]
    instead = {"--model": str(folder), "--data-dir": str(bench), "--triplets": "2"}
    return [instead.get(before, word) for before, word in pairwise(words[1:])]


def test_readme_commands(folder, bench, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    lines = [line for line in readme_lines() if not line.startswith("make ")]
    assert {line.split()[2] for line in lines} == {"synth", "train", "eval", "chat", "export"}
    for line in lines:
        monkeypatch.setattr(sys, "stdin", io.StringIO("Hello?\n"))  # for chat
        arguments = small(line, folder, bench)
        command = arguments[0]
        if command == "train":  # over those of synth, which on a random model are none
            write_rows(Path(arguments[arguments.index("--data") + 1]), ROWS)
        code = ptalign.main(arguments)
        out, err = capsys.readouterr()
        assert code == (3 if command == "synth" else 0), err
        assert (out == "") == (command in ("train", "export")) and "sulk" not in out + err
        assert command == "chat" or Path(arguments[arguments.index("--out") + 1]).exists()


def test_readme_is_true():
    """Flags, files and folders that the text names are there."""
    text = (ROOT / "README.md").read_text()
    parser = ptalign.build_parser()
    commands = next(a.choices for a in parser._actions if a.dest == "command")
    flags = {flag for command in commands.values() for flag in command._option_string_actions}
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text))
    assert len(named) > 10 and named <= flags, named - flags
    assert not [file for file in re.findall(r"`(\w+\.(?:py|json|txt))`", text)
                if not (ROOT / file).is_file()]
    assert not [place for place in re.findall(r"`(\w+)/`", text) if not (ROOT / place).is_dir()]


@pytest.mark.parametrize("command", ["synth", "train", "eval", "chat", "export"])
def test_defaults_are_accepted(command, monkeypatch):
    """Every option of the command line is one that the command's function takes, by name."""
    import chat
    import evals.suite
    import export.command
    import synth
    import train

    taken = {}

    def keep(function):
        names = function.__code__.co_varnames[:function.__code__.co_kwonlyargcount]
        return lambda **arguments: taken.update(arguments, names=set(names)) or 0

    for module, name in ((synth, "synth"), (train, "train"), (evals.suite, "evaluate"),
                         (chat, "chat"), (export.command, "export")):
        monkeypatch.setattr(module, name, keep(getattr(module, name)))
    more = {"train": ["--data", "D", "--out", "O"], "chat": []}.get(command, ["--out", "O"])
    assert ptalign.main([command, "--model", "M", *more]) == 0
    names = taken.pop("names")
    if command == "eval":  # the options of single tasks are taken by these
        names |= {*evals.judging.OPTIONS, *(
            name for task in ptalign.evaluation_tasks().values() for name in task.options)}
    assert names == set(taken)


# ---- the main flow ----

def train_line(folder, tmp_path, *options) -> list[str]:
    write_rows(tmp_path / "rows.jsonl", ROWS)
    return ["train", "--model", str(folder), "--data", str(tmp_path / "rows.jsonl"), "--out",
            str(tmp_path / "adapter"), "--dtype", "float32", "--rank", "4", *options]


def eval_line(folder, bench, tmp_path, *options) -> list[str]:
    return ["eval", "--model", str(folder), "--data-dir", str(bench), "--out",
            str(tmp_path / "eval"), "--dtype", "float32", "--max-new-tokens", "12", *options]


def contents(folder: Path) -> dict[str, bytes]:
    """Files by name, less those with the date of the last start."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*"))
            if p.is_file() and p.name not in ("report.md", "report.html", "results.json")}


def test_main_flow(folder, bench, tmp_path, capsys):
    """train, then eval on its adapter; the same commands again change nothing."""
    first = train_line(folder, tmp_path, "--lr", "0.02")
    second = eval_line(folder, bench, tmp_path, "--adapter", str(tmp_path / "adapter"))
    assert ptalign.main(first) == 0
    steps = [json.loads(x) for x in (tmp_path / "adapter" / "metrics.jsonl").open()]
    assert steps[-1]["mle"] < steps[0]["mle"] and "warning" not in capsys.readouterr().err
    assert {"adapter_model.safetensors", "adapter_config.json", "train_config.json"} <= {
        p.name for p in (tmp_path / "adapter").iterdir()}
    assert ptalign.main(second) == 0
    table = capsys.readouterr().out
    assert "harmless" in table and "xstest" in table
    results = json.loads((tmp_path / "eval" / "results.json").read_text())
    assert all({"base", "tuned", "p"} <= figure.keys() for figure in results["figures"])
    assert (tmp_path / "eval" / "answers.jsonl").stat().st_mode & 0o077 == 0

    kept = contents(tmp_path)
    assert ptalign.main(first) == 0 and ptalign.main(second) == 0
    assert contents(tmp_path) == kept and capsys.readouterr().out == table


def test_quiet(folder, tmp_path, capsys):
    assert ptalign.main(train_line(folder, tmp_path, "--epochs", "1", "--quiet")) == 0
    assert capsys.readouterr() == ("", "")


def test_dry_run(folder, tmp_path, capsys):
    line = ["synth", "--model", str(folder), "--out", str(tmp_path / "run"), "--triplets", "10",
            "--dry-run"]
    assert ptalign.main(line) == 0
    out = capsys.readouterr().out
    assert out.startswith("10 triplets and 2 benign rows")
    assert all(f"--- {stage} ---" in out for stage in ("topics", "positive answers"))
    assert "nobody is impressed" not in out  # of a toxic example
    assert not (tmp_path / "run").exists()


def test_reader_leaves(folder, tmp_path):
    """As under `| head`: no message, and not the exit code of bad input."""
    line = [sys.executable, "ptalign.py", "synth", "--model", str(folder), "--out",
            str(tmp_path / "run"), "--dry-run"]
    process = subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait(timeout=60) == 141
    process.stderr.close()


# ---- interrupted ----

@pytest.mark.parametrize("command", ["train", "eval"])
def test_interrupted(folder, bench, tmp_path, monkeypatch, capsys, command):
    """Ctrl-C at any point inside: exit code 130, one line that says how to go on; then it does."""
    line = (train_line(folder, tmp_path) if command == "train"
            else eval_line(folder, bench, tmp_path))

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("model.Decoder.forward", interrupt)
        assert ptalign.main(line) == 130
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("ptalign: interrupted") and "same command again" in error
    assert ptalign.main(line) == 0


@pytest.mark.parametrize("command, resumes", [
    (["export", "--model", "m", "--adapter", "a", "--out", "o"], False),
    (["chat", "--model", "m"], False), (["demo"], True)])
def test_interrupted_commands_promise_what_they_keep(monkeypatch, capsys, command, resumes):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(ptalign, "run", interrupt)
    assert ptalign.main(command) == 130
    error = capsys.readouterr().err
    assert error.startswith("ptalign: interrupted") and ("same command" in error) == resumes


def test_real_interrupt(folder, tmp_path):
    """SIGINT to the process itself, in the middle of training."""
    line = train_line(folder, tmp_path, "--epochs", "2000")
    # A test run in a shell's background inherits an ignored SIGINT.
    process = subprocess.Popen([sys.executable, "ptalign.py", *line], cwd=ROOT, text=True,
                               stderr=subprocess.PIPE,
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    metrics, deadline = tmp_path / "adapter" / "metrics.jsonl", time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        if metrics.exists() and metrics.stat().st_size:
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in err, err
    assert err.splitlines()[-1].startswith("ptalign: interrupted")


# ---- Makefile ----

def make(*arguments: str) -> subprocess.CompletedProcess:
    if shutil.which("make") is None:
        pytest.skip("no make here")
    return subprocess.run(["make", *arguments], cwd=ROOT, capture_output=True, text=True)


def test_make_test():
    done = make("-n", "test")
    assert done.returncode == 0 and "-m pytest" in done.stdout, done.stderr


def test_make_demo():
    done = make("-n", "demo")
    assert done.returncode == 0 and "ptalign.py demo\n" in done.stdout, done.stderr


def test_readme_makes():
    targets = [line.split() for line in readme_lines() if line.startswith("make ")]
    assert {words[1] for words in targets} == {"demo", "test"}
    for words in targets:
        assert make("-n", *words[1:]).returncode == 0
