"""What others wrote or damaged: templates and tokenizers that go wrong, files that are none, runs'
records that no run wrote, streams and signals; and sixty cases of tests/fuzz.py."""

import ctypes
import io
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import fuzz
import pytest
from conftest import write_model

import ptalign
from evals.judge import Judge
from support import limits
from support.files import InputError
from tokenizer import Tokenizer

CASES = 60
ROOT = Path(ptalign.__file__).parent
USER = [{"role": "user", "content": fuzz.MILD}]


@pytest.fixture(scope="module")
def world():
    with fuzz.small_world() as folder:
        yield folder


@pytest.fixture
def place(world, tmp_path, monkeypatch) -> Path:
    """A copy of the world, to spoil; the working directory."""
    shutil.copytree(world, tmp_path / "world")
    monkeypatch.chdir(tmp_path / "world")
    return tmp_path / "world"


def line_of(capsys, command: str) -> str:
    """The line in which a command ends."""
    code = ptalign.main(command.split())
    *_, last = capsys.readouterr().err.splitlines()
    assert code == 2 and last.startswith("ptalign: error: ") and fuzz.MILD[:20] not in last, last
    return last


@pytest.mark.parametrize("part", range(4))  # so that none takes long
def test_fuzz(world, part):
    seeds = (f"ci/{n}" for n in range(part, CASES, 4))
    faults = {seed: (damaged, fault, told) for seed in seeds
              for damaged, fault, told in [fuzz.run_case(world, seed)] if fault}
    assert not faults, "\n".join(map(str, faults.items()))


# ---- what others wrote ----

@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(limits, "SECONDS", 0.2)
    return write_model(tmp_path / "model")


@pytest.mark.parametrize("bomb", fuzz.BOMBS, ids=lambda bomb: repr(bomb)[:40])
def test_template_is_bounded(folder, bomb):
    """Time, memory and output; afterwards the process is as free as before."""
    (folder / "chat_template.jinja").write_text(bomb)
    before, began = resource.getrlimit(resource.RLIMIT_AS), time.process_time()
    told = ""
    try:
        assert len(Tokenizer(folder).render(USER)) <= limits.LONGEST
    except InputError as error:
        told = str(error)
    assert time.process_time() - began < 5 and len(told) < 600
    assert fuzz.MILD[:20] not in told and "\x1b" not in told
    assert resource.getrlimit(resource.RLIMIT_AS) == before
    assert signal.getitimer(signal.ITIMER_VIRTUAL) == (0, 0)


def test_template_quotes_no_text(folder):
    """Its own words are told where they do not depend on the text."""
    for template, told in (("{{ raise_exception(messages[0].content) }}", ""),
                           ("{{ raise_exception('only ' ~ messages[0].role) }}", " (only user)"),
                           ("{% if 'care' in messages[0].content %}{{ 1 / 0 }}{% endif %}", "")):
        (folder / "chat_template.jinja").write_text(template)
        with pytest.raises(InputError, match="refuses this conversation") as caught:
            Tokenizer(folder).render(USER)
        assert fuzz.MILD[:20] not in str(caught.value) and told in str(caught.value)


def test_judge_quotes_no_answer(folder, tmp_path):
    """Its chat template runs on what is judged, and its own template stands around that."""
    (tmp_path / "t.json").write_text(json.dumps({
        "template": "{chat}so:", "tokens": {"harmful": ["y"], "harmless": ["n"]}}))
    for said in ("messages[1].content", "'\x1b[2J' ~ messages[1].content", "'x' * 9999",
                 "messages[1].content * 999"):
        (folder / "chat_template.jinja").write_text(
            "{% if 'care' in messages[1].content %}{{ raise_exception(" + said + ") }}{% endif %}"
            "{% for m in messages %}{{ m.content }} {% endfor %}")
        with pytest.raises(InputError, match="refuses this conversation") as caught:
            Judge(str(folder), str(tmp_path / "t.json")).prompt("Why?", fuzz.MILD)
        told = str(caught.value)
        assert fuzz.MILD[:20] not in told and "\x1b" not in told and len(told) < 600
        assert caught.value.__suppress_context__ or caught.value.__context__ is None


@pytest.mark.parametrize("file, change", [
    ("generation_config.json", {"eos_token_id": 10**18}),
    ("generation_config.json", {"eos_token_id": 10**400}),
    ("generation_config.json", {"eos_token_id": float("inf")}),
    ("config.json", {"eos_token_id": [1, -(10**400)]}),
    ("tokenizer_config.json", {"added_tokens_decoder": {"9" * 5000: {"content": "x"}}}),
    ("tokenizer_config.json", {"added_tokens_decoder": {"1": {"content": 10**400}}}),
    ("tokenizer_config.json", {"eos_token": {"content": 10**18}}),
    ("tokenizer.json", {"added_tokens": [{"id": 10**18, "content": "x"}]}),
    ("tokenizer.json", {"added_tokens": [{"id": 10**400, "content": "x"}]}),
    ("tokenizer.json", {"truncation": {"max_length": 10**400}})], ids=lambda v: str(v)[:40])
def test_numbers_without_end(folder, capsys, file, change):
    path = folder / file
    raw = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(raw | change))
    assert ptalign.main(["chat", "--model", str(folder)]) == 2
    line, = capsys.readouterr().err.splitlines()
    assert line.startswith("ptalign: error: ") and str(folder) in line and len(line) < 900


@pytest.mark.parametrize("part", [
    {"normalizer": {"type": "Prepend", "prepend": ""}},
    {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
    {"model": {"type": "WordLevel", "unk_token": "X", "vocab": {"<|im_end|>": 0}}},
    {"post_processor": {"type": "TemplateProcessing", "special_tokens": {},
                        "single": [{"SpecialToken": {"id": "X", "type_id": 0}}],
                        "pair": [{"Sequence": {"id": "B", "type_id": 1}}]}}], ids=str)
def test_panic(folder, capfd, part):
    """It is no Exception, and what Rust prints of it may hold the text."""
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | part))
    with pytest.raises(InputError, match=r"tokenizers fails with it \(.*, download tokenizer"):
        Tokenizer(folder).encode(fuzz.MILD)
    assert capfd.readouterr().err == ""


# ---- files ----

NO_FILES = {  # a file that is none, a command that reads it
    **dict.fromkeys(("data.jsonl", "trained/metrics.jsonl", "trained/train_config.json",
                     "trained/checkpoint/state.safetensors"), fuzz.TRAINED),
    **dict.fromkeys(("model/config.json", "model/model.safetensors", "adapter/adapter_config.json",
                     "adapter/adapter_model.safetensors"), fuzz.MERGE),
    **dict.fromkeys(("model/tokenizer.json", "model/tokenizer_config.json",  # not as if absent
                     "model/special_tokens_map.json", "model/generation_config.json",
                     "model/chat_template.jinja"), fuzz.CHAT),
    **dict.fromkeys(("judge.json", "check.jsonl", "bench/xstest.jsonl", "evaled/answers.jsonl",
                     "evaled/config.json"), fuzz.EVALED),
    **dict.fromkeys(("synthed/calls.jsonl", "synthed/config.json"), fuzz.SYNTHED),
    "seeds.json": f"{fuzz.SYNTH} --seeds-file seeds.json",
    "text.txt": fuzz.EVAL.replace("hhh", "perplexity") + " --text text.txt",
}


@pytest.mark.parametrize("kind", ["zero", "fifo", "folder"])
@pytest.mark.parametrize("name", NO_FILES)
def test_no_file(place, capsys, name, kind):
    path = place / name
    path.unlink(missing_ok=True)
    if kind == "zero":
        path.symlink_to("/dev/zero")
    else:
        os.mkfifo(path) if kind == "fifo" else path.mkdir()
    last = line_of(capsys, NO_FILES[name])
    assert path.name in last or "not a run" in last  # a record that is no file is none
    assert path.is_symlink() or not path.is_file()


@pytest.mark.parametrize("command, file, field", [
    (fuzz.DRY, "data.jsonl", "prompt"), (fuzz.DRY, "data.jsonl", "positive"),
    (fuzz.TRAIN, "data.jsonl", "toxic"), (fuzz.EVAL, "bench/hhh_alignment.jsonl", "prompt"),
    (fuzz.EVALED.replace("evaled", "new"), "bench/xstest.jsonl", "prompt"),
    (fuzz.EVALED.replace("evaled", "new"), "check.jsonl", "answer")])
def test_endless_text(place, capsys, command, file, field):
    first, *rest = (json.loads(row) for row in (place / file).read_text().splitlines())
    fuzz.write_lines(place / file, first, rest[0] | {field: "x " * 5_000_000}, *rest[1:])
    began = time.process_time()
    last = line_of(capsys, command)
    assert re.search(r"\b(1000|999)\d{4} characters", last), last
    assert f"{file} line 2" in last or file.startswith(("bench/xstest", "check"))
    assert time.process_time() - began < 4


def test_endless_line(place, monkeypatch, capsys):
    """Said to chat, at once or as its system text."""
    for typed, options in (("x " * 5_000_000 + "\n", ""), ("Hi\n", "--system S")):
        monkeypatch.setattr("sys.stdin", io.StringIO(typed))
        argv = ["x " * 5_000_000 if word == "S" else word
                for word in f"{fuzz.CHAT} {options}".split()]
        began = time.process_time()
        assert ptalign.main(argv) == 2
        line, = capsys.readouterr().err.splitlines()
        assert "characters" in line and len(line) < 600 and time.process_time() - began < 4


# ---- records of runs ----

@pytest.mark.parametrize("command, file, change", [
    (fuzz.TRAINED, "train_config.json", {"began": "x"}),
    (fuzz.TRAINED, "train_config.json", {"began": None}),
    (fuzz.TRAINED, "metrics.jsonl", {"step": None}), (fuzz.TRAINED, "metrics.jsonl", {"step": []}),
    (fuzz.SYNTHED, "config.json", {"began": 7}),
    (fuzz.SYNTHED, "calls.jsonl", {"block": []}), (fuzz.SYNTHED, "calls.jsonl", {"first": {}}),
    (fuzz.SYNTHED, "calls.jsonl", {"calls": [[fuzz.MILD]]}),
    (fuzz.SYNTHED, "calls.jsonl", {"calls": None}),
    (fuzz.EVALED, "config.json", {"began": []}),
    (fuzz.EVALED, "scores.jsonl", {"block": None, "rows": None}),
    (fuzz.EVALED, "scores.jsonl", {"rows": fuzz.MILD}),
    (fuzz.EVALED, "scores.jsonl", {"block": {}}),
    (fuzz.EVALED, "answers.jsonl", {"rows": [{"text": 3}]}),
    (fuzz.EVALED, "judged.jsonl", {"rows": [{}]})], ids=str)
def test_damaged_record(place, capsys, command, file, change):
    """One line that names the run and --fresh; all that it had is still there."""
    out = command.split("--out ")[1].split()[0]
    path = place / out / file
    if path.suffix == ".json":
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
    else:
        # splitlines would also part lines within a text, at its own kinds of line ends.
        row, *rest = map(json.loads, path.read_text().rstrip("\n").split("\n"))
        fuzz.write_lines(path, row | change, *rest)
    text = path.read_bytes() if path.suffix == ".jsonl" else None
    before = {p.relative_to(place) for p in place.rglob("*")}
    code = ptalign.main(command.split())
    err = capsys.readouterr().err
    if change != {"block": None, "rows": None}:  # a block that nobody asks for is passed over
        assert code == 2
        assert f"--out {out}, " in err.splitlines()[-1] and "--fresh" in err.splitlines()[-1], err
    assert fuzz.MILD[:20] not in err and "Traceback" not in err
    assert before <= {p.relative_to(place) for p in place.rglob("*")}
    assert text is None or path.read_bytes().startswith(text)
    if command == fuzz.TRAINED:
        assert ptalign.main([*command.split(), "--fresh"]) == 0


def test_own_fault_keeps_its_traceback(place, monkeypatch):
    """Only a run that goes on can have damaged files."""
    def fail(*_, **__):
        raise KeyError("ours")

    monkeypatch.setattr("train.optimise", fail)
    with pytest.raises(KeyError):
        ptalign.main(fuzz.TRAIN.split())

def test_missing_shared_library_is_named(monkeypatch, capsys):
    """Torch without its cuDNN says so in an OSError that has neither number nor file."""
    def fail(*_):
        ctypes.CDLL("libnosuch.so.9")

    monkeypatch.setattr(ptalign, "run", fail)
    assert ptalign.main(["chat", "--model", "m"]) == 2
    error = capsys.readouterr().err
    assert "libnosuch.so.9" in error and "install" in error and "--out" not in error


# ---- streams and signals ----

def ended(shell: str, **options) -> subprocess.CompletedProcess:
    line = f'exec "$PYTHON" "{ROOT}/ptalign.py" {shell}'
    return subprocess.run(["bash", "-c", line], text=True, timeout=120, env={
        **os.environ, "PYTHON": sys.executable}, **{"capture_output": True, **options})


def test_full_streams():
    done = ended("eval --list > /dev/full")
    assert done.returncode == 2 and done.stderr == (
        "ptalign: error: No space left on device, standard output, check space and rights\n")
    assert ended("train --epochs 0 2> /dev/full").returncode == 2


def test_a_reader_that_left():
    """Of standard error, whose loss ends no run, and of the table, which nobody wants any more."""
    reader, writer = os.pipe()
    os.close(reader)
    lost = {"capture_output": False, "stdout": subprocess.DEVNULL, "stderr": writer}
    assert ended("train --epochs 0", **lost).returncode == 2
    done = ended("eval --list", **{**lost, "stdout": writer, "stderr": subprocess.PIPE})
    os.close(writer)
    assert done.returncode == 141 and done.stderr == ""


def test_an_unknown_home():
    done = ended("chat --model '~nosuchuser/m'")
    assert done.returncode == 2 and "~nosuchuser/m" in done.stderr and done.stderr.count("\n") == 1


def test_closed_streams():
    done = ended("eval --list >&- <&-")
    assert done.returncode == 0 and done.stderr == ""
    assert ended("train --epochs 0 2>&-").returncode == 2


def test_streams_of_a_talk(place):
    """Nobody types; nothing can be shown."""
    done = ended(f"{fuzz.CHAT} <&-", cwd=place)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    done = ended(f"{fuzz.CHAT} <<< Hello > /dev/full", cwd=place)
    assert done.returncode == 2 and done.stderr.startswith("ptalign: error: No space left on dev")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_while_importing(place, number):
    """The heavy imports take the first seconds; one of them may swallow an exception."""
    process = subprocess.Popen(
        [sys.executable, "-X", "importtime", ROOT / "ptalign.py", *fuzz.TRAIN.split()], text=True,
        stderr=subprocess.PIPE, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    for line in process.stderr:
        if "torch" in line:
            break
    process.send_signal(number)
    rest = [line for line in process.stderr if not line.startswith("import time:")]
    assert process.wait() == 130
    assert rest == ["ptalign: interrupted before anything was begun\n"]
    assert not (place / "new").exists()


def test_terminated(place):
    """SIGTERM ends a run as Ctrl-C does, and it goes on from there."""
    command = [sys.executable, ROOT / "ptalign.py",
               *fuzz.TRAIN.replace("--epochs 1", "--epochs 1000").split()]
    process = subprocess.Popen(command, text=True, stderr=subprocess.PIPE)
    while not (place / "new" / "metrics.jsonl").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.terminate()
    *_, last = process.communicate()[1].splitlines()
    assert last.startswith("ptalign: interrupted; run the same command again")
    assert process.returncode == 130
