"""train.py started again and turned away: a killed run must end with the bits of an unbroken one.

Killed by an exception at every step and place, and once by a real SIGKILL of a process; then
damaged checkpoints, changed settings, input refused before a folder is made, what is told.
"""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_train import OPTIONS, ROWS, metrics, trainer

import train
from support import checkpoint
from support.adapters import WEIGHTS
from support.files import InputError, write_jsonl
from support.watch import check_step, say_counts
from triplets import Example


@pytest.fixture
def run(tiny_folder, tmp_path):
    return trainer(tiny_folder, tmp_path)


@pytest.fixture
def data(tmp_path):
    return tmp_path / "triplets.jsonl"  # written by trainer


def assert_same(one, other):
    """The same bits: adapter, optimizer and every figure."""
    for name in (WEIGHTS, train.CHECKPOINT, "adapter_config.json", "prompts.jsonl"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    assert metrics(one) == metrics(other)


# ---- killed and started again ----

STEPS = 12  # of OPTIONS on ROWS; checkpoints at 5, 10 and 12


def kill_at(monkeypatch, step, place):
    """KeyboardInterrupt when the step's figures are written, or before or after its checkpoint."""
    append, checkpoint = train.AppendLog.append, train.save_checkpoint

    def new_append(log, row):
        append(log, row)
        if place == "metrics" and row["step"] == step:
            raise KeyboardInterrupt

    def new_checkpoint(path, done, *rest):
        if place == "after checkpoint" or done < step:
            checkpoint(path, done, *rest)
        if done >= step and place != "metrics":
            raise KeyboardInterrupt
        return 0.0, 0.0  # when it was written and the seconds it took

    monkeypatch.setattr(train.AppendLog, "append", new_append)
    monkeypatch.setattr(train, "save_checkpoint", new_checkpoint)


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(train, "CHECKPOINT_STEPS", 5)


@pytest.mark.parametrize("place, steps", [
    ("metrics", range(1, STEPS + 1)), ("before checkpoint", (5, 10, 12)),
    ("after checkpoint", (5, 10, 12))])
def test_killed(run, few, monkeypatch, place, steps):
    whole = run("whole")
    assert len(metrics(whole)) == STEPS
    for step in steps:
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            kill_at(patch, step, place)
            run(f"killed {step}")
        assert not (whole.parent / f"killed {step}" / WEIGHTS).exists()
        assert_same(run(f"killed {step}"), whole)


def test_killed_at_every_step(run, monkeypatch):
    """Killed after each step in turn, the run still gets there, bit for bit."""
    monkeypatch.setattr(train, "CHECKPOINT_STEPS", 1)
    whole = run("whole")
    for step in range(1, STEPS + 1):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            kill_at(patch, step, "after checkpoint")
            run("often")
    assert_same(run("often"), whole)
    assert_same(run("often"), whole)  # a finished run started again changes nothing


def test_the_mean_loss_goes_on(run, few, monkeypatch):
    """What a spike is told by is read from the log."""
    seen = []
    monkeypatch.setattr(train, "check_step", lambda *args: seen.append(args))
    run("whole")
    whole, seen[:] = seen[:], []
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        kill_at(patch, 5, "after checkpoint")
        run("killed")
    run("killed")
    assert seen == whole and len(whole) == STEPS


CHILD = """
import json, os, signal, sys, train
append = train.AppendLog.append
def killed(log, row):
    append(log, row)
    if row["step"] == 8:
        log.file.write(b'{"step": 9, "lo'); log.file.flush()  # torn, as a kill in mid-write leaves
        os.kill(os.getpid(), signal.SIGKILL)
train.AppendLog.append, train.CHECKPOINT_STEPS = killed, 5
train.torch.set_num_threads(1)
train.train(**json.loads(sys.argv[1]))
"""


def test_sigkill(run, few, tiny_folder, data, tmp_path):
    """No handler runs, the lock is the system's to release, the last line is torn."""
    options = {**OPTIONS, "model": str(tiny_folder), "data": str(data), "out": str(tmp_path / "a")}
    ended = subprocess.run([sys.executable, "-c", CHILD, json.dumps(options)], timeout=120,
                           cwd=Path(train.__file__).parent, env={**os.environ,
                                                                 "OMP_NUM_THREADS": "1"})
    assert ended.returncode == -signal.SIGKILL
    assert (tmp_path / "a" / "metrics.jsonl").read_text().count("\n") == 8
    assert_same(run("a"), run("whole"))


def change(path, tensor=None, kind="value", **metadata):
    """A checkpoint with metadata of its own, or with a change to its first tensor of a kind."""
    tensors = load_file(path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() | metadata
    if tensor:
        key = next(key for key in sorted(tensors) if key.endswith(f"|{kind}"))
        tensors[key] = tensor(tensors[key])
    save_file(tensors, path, metadata=metadata)


SPOILED = {
    "NaN": lambda path: change(path, lambda t: t.fill_(math.nan)),
    "infinite": lambda path: change(path, lambda t: t.index_fill(0, torch.tensor([0]), math.inf)),
    "another shape": lambda path: change(path, lambda t: t[:1]),  # copy_ would spread it
    **{f"{kind} {name}": lambda path, kind=kind, edit=edit: change(path, edit, kind)
       for kind in ("exp_avg", "exp_avg_sq") for name, edit in (
           ("NaN", lambda t: t.fill_(math.nan)), ("another shape", lambda t: t[:1]))},
    "a step too many": lambda path: change(path, step="5"),
    "step 0": lambda path: change(path, step="0"),
    "a step too far": lambda path: change(path, step="99"),
    "step -1": lambda path: change(path, step="-1"),
    "step no number": lambda path: change(path, step="four"),
    "empty": lambda path: path.write_bytes(b""),
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-5]),
    "other bytes": lambda path: path.write_bytes(b"x" * 4000),
    "a tensor gone": lambda path: save_file(dict(list(load_file(path).items())[1:]), path,
                                            metadata={"step": "4"}),
    "no step": lambda path: save_file(load_file(path), path),
}


@pytest.mark.parametrize("spoil", SPOILED.values(), ids=SPOILED)
def test_damaged_checkpoint(run, spoil):
    out = run("a", epochs=1)
    before = (out / WEIGHTS).read_bytes(), metrics(out)
    spoil(out / train.CHECKPOINT)
    with pytest.raises(InputError, match=f"(damaged checkpoint |has NaN or).*"
                       f"{out / train.CHECKPOINT}.*--fresh"):
        run("a", epochs=1)
    assert ((out / WEIGHTS).read_bytes(), metrics(out)) == before
    assert metrics(run("a", epochs=1, fresh=True)) == before[1]


# ---- refused ----

CHANGED = [("lr", 2e-3), ("penalty", 0.5), ("mask", "none"), ("objective", "mle"), ("rank", 2),
           ("alpha", 4.0), ("targets", ["q_proj"]), ("epochs", 2), ("batch_tokens", 120),
           ("accumulate", 2), ("warmup", 0.0), ("clip", 2.0), ("loss", "eager"), ("format", "raw"),
           ("dtype", "bfloat16"), ("seed", 1)]


def test_changed_settings(run):
    """Each by its name with both values; nothing of the old run is touched."""
    out = run("a", epochs=1)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    for name, value in CHANGED:
        with pytest.raises(InputError, match=rf"settings changed: {name} \(.* -> .*--fresh"):
            run("a", **{"epochs": 1, name: value})
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_gradient_checkpointing_may_be_added(run, monkeypatch):
    """A run that ran out of memory goes on where it stopped."""
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        kill_at(patch, 3, "after checkpoint")
        run("a")
    out = run("a", gradient_checkpointing=True)
    assert (out / WEIGHTS).read_bytes() == (run("whole") / WEIGHTS).read_bytes()


def test_changed_data(run, data, tmp_path):
    """Other rows are refused by the file's hash; the same rows elsewhere are the same run."""
    out = run("a")
    moved = tmp_path / "moved.jsonl"
    data.rename(moved)
    adapter = (out / WEIGHTS).read_bytes()
    assert (run("a", data=str(moved)) / WEIGHTS).read_bytes() == adapter
    write_jsonl(moved, ROWS[1:])
    with pytest.raises(InputError, match="settings changed: data_sha256"):
        run("a", data=str(moved))
    fresh = run("a", data=str(moved), fresh=True)
    assert (fresh / WEIGHTS).read_bytes() != adapter
    (old,) = tmp_path.glob("a.old-*")
    assert (old / WEIGHTS).read_bytes() == adapter


@pytest.mark.parametrize("file, change", [
    ("tokenizer_config.json", lambda raw: raw | {
        "chat_template": "{% for m in messages %}{{ m['content'] }}{% endfor %}"}),
    ("config.json", lambda raw: raw | {"rope_theta": 5e5}),
    ("generation_config.json", lambda raw: {"eos_token_id": 0}),
])
def test_changed_model_files(tiny_folder, tmp_path, file, change):
    """The weights are not the whole model: its template, say, is named as what has changed."""
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    run = trainer(folder, tmp_path)
    run("a", epochs=1)
    raw = json.loads((folder / file).read_text()) if (folder / file).exists() else {}
    (folder / file).write_text(json.dumps(change(raw)))
    with pytest.raises(InputError, match=f"settings changed: model_files_sha256 {file} "):
        run("a", epochs=1)


@pytest.mark.parametrize("options, told", [
    ({"lr": 2e-3}, "settings changed: lr"), ({"targets": ["q_prj"]}, "no linear named q_prj"),
    ({"targets": []}, "no linear named .none given., --targets"), ({"out": "."}, "not a run")])
def test_told_before_the_model_is_read(run, monkeypatch, options, told):
    run("a", epochs=1)
    monkeypatch.setattr(train, "load_model", None)
    with pytest.raises(InputError, match=told):
        run("a", **{"epochs": 1, **options})


def with_prompt(tmp_path, prompt):
    """A folder of evaluation files whose second row of the second file has this prompt."""
    folder = tmp_path / "evals"
    folder.mkdir()
    write_jsonl(folder / "a.jsonl", [{"prompt": "Is it noon?"}])
    write_jsonl(folder / "b.jsonl", [{"prompt": ""}, {"prompt": prompt}])
    return folder


@pytest.mark.parametrize("prompt, found", [
    ("I lost my hat.", True),
    ("  i LOST, my\nhat?!", True),  # case, marks and spaces do not make it another prompt
    ("I lost my hats.", False),
    ("...", False),
])
def test_exclude(run, data, tmp_path, prompt, found):
    """Both places are named; a clean run is made as without the option."""
    folder = with_prompt(tmp_path, prompt)
    if found:
        where = rf"\(b.jsonl line 2\) among the training rows, {data} line 2"
        with pytest.raises(InputError, match=where):
            run("a", exclude=str(folder))
        assert not (tmp_path / "a").exists()
    else:
        assert metrics(run("a", exclude=str(folder))) == metrics(run("b"))


@pytest.mark.parametrize("make", [lambda f: None, Path.mkdir, Path.touch])
def test_exclude_without_files(run, tmp_path, make):
    """An empty or missing folder would exclude nothing without a word."""
    make(tmp_path / "none")
    with pytest.raises(InputError, match=f"no .jsonl files, --exclude {tmp_path / 'none'}"):
        run("a", exclude=str(tmp_path / "none"))


def test_mended_command(run, data, tmp_path):
    """Refused input leaves no folder, so that the mended command needs no --fresh."""
    write_jsonl(data, [*ROWS, {**ROWS[0], "prompt": "far too long " * 2000}])
    with pytest.raises(InputError, match=f"context holds 2048, {data} line {len(ROWS) + 1}, "):
        run("a")
    write_jsonl(data, ROWS)
    with pytest.raises(InputError, match="no linear named q_prj, --targets"):
        run("a", targets=["q_prj"])
    assert not (tmp_path / "a").exists()
    assert len(metrics(run("a", targets=["q_proj"]))) == STEPS
    write_jsonl(data, [*ROWS, {**ROWS[0], "prompt": "far too long " * 2000}])
    with pytest.raises(InputError, match="context holds 2048"):
        run("a", fresh=True)
    assert len(metrics(tmp_path / "a")) == STEPS and not [*tmp_path.glob("a.old-*")]  # put back


def test_checkpoints_that_take_long_are_few(run, monkeypatch):
    """The last step's is written all the same."""
    written = []
    monkeypatch.setattr(train, "CHECKPOINT_STEPS", 1)
    monkeypatch.setattr(train, "save_checkpoint", lambda path, step, *rest: (
        written.append(step) or (time.monotonic(), 100.0)))
    run("a")
    assert written == [1, STEPS]


@pytest.mark.parametrize("ago, seconds, due", [
    (0.1, 0.9, True), (39.0, 2.0, False), (41.0, 2.0, True), (1999.0, 100.0, False)])
def test_when_a_checkpoint_is_due(monkeypatch, ago, seconds, due):
    """At once if the last one took under a second, else after 20 times as long as it took."""
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: 5000.0)
    assert checkpoint.is_worth_it(5000.0 - ago, seconds) is due


# ---- told ----

WARNINGS = [  # step (from 0), loss, UT, mean loss so far, what is warned of
    (0, 3.0, 2.5, None, "UT starts at 2.5 nats"),
    (0, 3.0, 1.9, None, ""),
    (1, 3.0, 2.5, 3.0, ""),  # later on a high UT is the loss's own business
    (7, 6.5, 0.5, 3.0, "loss 6.50 at step 8, 2.2 times"),
    (7, 5.9, 0.5, 3.0, ""),
]


@pytest.mark.parametrize("step, total, ut, average, told", WARNINGS)
def test_warnings(capsys, step, total, ut, average, told):
    check_step(step, total, ut, 1.0, average)
    err = capsys.readouterr().err
    assert err.startswith("warning: ") and told in err and "lower" in err if told else err == ""


@pytest.mark.parametrize("total, norm", [(math.nan, 1.0), (math.inf, 1.0), (3.0, math.nan)])
def test_not_finite(total, norm):
    with pytest.raises(InputError, match="not finite, step 5, lower --lr"):
        check_step(4, total, 0.5, norm, 3.0)


def test_nothing_shown(run, capsys):
    """No answer on the terminal, and none in any file of the run."""
    out = run("a")
    shown = "".join(capsys.readouterr())
    kept = b"".join(path.read_bytes() for path in out.rglob("*") if path.is_file())
    for row in ROWS:
        for text in filter(None, row.values()):
            assert text not in shown and text.encode() not in kept


def test_counts(capsys):
    """Pairs that are equal as tokens carry MLE alone and are told."""
    same, benign, pair = (Example([1], [5, 2], toxic, mask) for toxic, mask in (
        ([5, 2], [0, 0]), ([], []), ([6, 2], [1, 0])))
    say_counts([same, benign, pair], "pt", 1)
    err = capsys.readouterr().err
    assert "3 rows: 2 pairs, 1 positive only; 6 positive and 1 penalised toxic tokens" in err
    assert "warning: 1 pairs are identical" in err
