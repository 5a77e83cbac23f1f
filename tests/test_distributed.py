"""Gloo processes under torchrun on the CPU against one process on the same tiny random models: two,
three, and two machines that are one over loopback.

Figures, adapters and moments; what each process holds; runs killed and resumed with another number
of processes; and failures, which one process tells and all end for. NCCL needs two GPUs: not here.
"""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import write_model
from safetensors.torch import load_file
from test_resume import kill_at
from test_train import OPTIONS, ROWS, assert_close, metrics, moments, trainer

import ptalign
import train
from support import validation
from support.adapters import WEIGHTS
from support.files import write_jsonl

pytestmark = pytest.mark.slow

# Runs train for the jobs of a file, in one process group, up to one that fails; notes by job how
# many bytes of the blocks, of LoRA and of everything else this process held, and what was raised.
CHILD = """
import contextlib, json, os, sys
from collections import Counter
from pathlib import Path
import torch, train
from support import distributed
from support.files import InputError
from torch.distributed.tensor import DTensor

def held(model):
    count = Counter()
    for name, p in model.named_parameters():
        part = "lora" if "lora_" in name else "blocks" if ".layers." in name else "rest"
        count[part] += (p.to_local() if isinstance(p, DTensor) else p).nbytes
    return count

def loop(model, *rest, **options):
    notes[name]["held"] = held(model)
    inner(model, *rest, **options)

def fail(step, total, *rest):
    if (name, os.environ["RANK"], step) == ("late", "1", 2):
        raise InputError("rank 1 has had enough", "step 3", "rest")
    if (name, os.environ["RANK"], step) == ("killed", "1", 7):
        os.kill(os.getpid(), 9)

torch.set_num_threads(1)
inner, train.optimise, train.check_step, train.CHECKPOINT_STEPS = train.optimise, loop, fail, 5
notes = {}
jobs = Path(sys.argv[1])
try:
    with distributed.processes():
        distributed.processes = contextlib.nullcontext
        for name, options in json.loads(jobs.read_text()).items():
            notes[name] = {}
            train.train(**options)
except (InputError, SystemExit) as error:
    notes[name]["raised"] = f"{type(error).__name__} {error}"
jobs.with_name(f"notes-{os.environ['RANK']}.json").write_text(json.dumps(notes))
"""

RUNS = {  # 12 micro-batches: with accumulate 5 the last step has 2, with 1 rank 1 has none at all
    "one each": ("tied", {"accumulate": 1}),
    "three": ("tied", {"accumulate": 3}),
    "five": ("tied", {"accumulate": 5, "loss": "eager"}),
    "untied": ("untied", {"accumulate": 3}),
    "odd rows": ("odd", {"accumulate": 3, "targets": ["q_proj", "down_proj"]}),
    "gemma2": ("gemma2", {"accumulate": 3}),
    "checkpointing": ("tied", {"accumulate": 3, "gradient_checkpointing": True}),
    "bf16": ("tied", {"accumulate": 3, "dtype": "bfloat16"}),
    "dpo": ("tied", {"accumulate": 3, "objective": "dpo"}),
    "held out": ("untied", {"accumulate": 3, "validation": 0.4, "seed": 1}),
}
MODELS = {
    "tied": {},
    "untied": {"tie_word_embeddings": False},
    # Rows that two processes cannot share evenly, and a bias.
    "odd": {"tie_word_embeddings": False, "intermediate_size": 61, "vocab_size": 321,
            "num_hidden_layers": 3, "attention_bias": True},
    "gemma2": {"model_type": "gemma2", "head_dim": 8, "sliding_window": 16,
               "hidden_activation": "gelu_pytorch_tanh"},
}


TIMEOUT = 300  # seconds for what takes 6 on an idle machine


@contextlib.contextmanager
def torchrun(*argv, start=("--standalone", "--nproc-per-node", 2)):
    """torchrun with the processes of a script, in a process group of its own that ends with it."""
    command = [sys.executable, "-m", "torch.distributed.run", *map(str, (*start, *argv))]
    root = Path(train.__file__).parent
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    process = subprocess.Popen(command, cwd=root, env=env, text=True, stderr=subprocess.PIPE,
                               stdout=subprocess.PIPE, start_new_session=True)
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def run_jobs(folder, jobs):
    """(exit code, stderr) of the jobs, and the notes of each process that lived to write them."""
    (folder / "jobs.json").write_text(json.dumps(jobs))
    (folder / "child.py").write_text(CHILD)
    with torchrun(folder / "child.py", folder / "jobs.json") as process:
        _, err = process.communicate(timeout=TIMEOUT)
    notes = [json.loads(path.read_text()) for path in sorted(folder.glob("notes-?.json"))]
    return process.returncode, err, notes


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {name: write_model(folder / name, **changes) for name, changes in MODELS.items()}


@pytest.fixture(scope="module")
def pair(models, tmp_path_factory):
    """All runs of two processes, in one start of torchrun: its folder and both ranks' notes."""
    folder = tmp_path_factory.mktemp("pair")
    write_jsonl(folder / "triplets.jsonl", ROWS)

    def job(name, model, **options):
        return {**OPTIONS, "model": str(models[model]), "data": str(folder / "triplets.jsonl"),
                "out": str(folder / name), **options}

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train, "CHECKPOINT_STEPS", 5)
        kill_at(patch, 8, "metrics")
        trainer(models["tied"], folder)("one then two", accumulate=1)
    jobs = {name: job(name, model, **options) for name, (model, options) in RUNS.items()}
    jobs["one then two"] = job("one then two", "tied", accumulate=1)
    jobs["late"] = job("late", "tied", accumulate=1)
    code, err, notes = run_jobs(folder, jobs)
    assert (code, len(notes)) == (0, 2), err
    return folder, notes, err


def assert_like_one(pair_out, one):
    """The curve to 1e-5 and the adapter to 1e-4, as one process makes them."""
    rows, wanted = metrics(pair_out), metrics(one)
    assert len(rows) == len(wanted)
    for row, other in zip(rows, wanted, strict=True):
        assert row == pytest.approx(other, rel=1e-5)
    assert_close(moments(pair_out), moments(one), atol=1e-6)
    a, b = load_file(pair_out / WEIGHTS), load_file(one / WEIGHTS)
    assert_close(a, b, atol=1e-4)
    assert (pair_out / "adapter_config.json").read_text() == (
        one / "adapter_config.json").read_text()


@pytest.mark.parametrize("name", [name for name in RUNS if name != "bf16"])
def test_same_curve(pair, models, tmp_path, name):
    model, options = RUNS[name]
    one = trainer(models[model], tmp_path)(name, **options)
    assert_like_one(pair[0] / name, one)
    assert sorted(p.name for p in one.rglob("*")) == sorted(
        p.name for p in (pair[0] / name).rglob("*"))


def test_held_out(pair, models, tmp_path):
    """Both measure, one writes."""
    one = trainer(models["untied"], tmp_path)("one", **RUNS["held out"][1])
    rows, wanted = (validation.read(out) for out in (pair[0] / "held out", one))
    assert len(rows) == len(wanted) > 1
    for row, other in zip(rows, wanted, strict=True):
        assert row.pop("ut_gradient_by_p") == pytest.approx(other.pop("ut_gradient_by_p"), abs=1e-4)
        assert row == pytest.approx(other, rel=1e-4)


def test_bf16(pair, models, tmp_path):
    """The base is gathered as it was cut; only the order of the gradients' sum differs."""
    rows = metrics(pair[0] / "bf16")
    one = metrics(trainer(models["tied"], tmp_path)("one", **RUNS["bf16"][1]))
    for row, other in zip(rows, one, strict=True):
        assert row["loss"] == pytest.approx(other["loss"], rel=1e-3)


def test_shares(pair, models):
    """Each process holds about half of the blocks; LoRA and a tied embedding are whole in both."""
    for name, (model, _) in RUNS.items():
        config = json.loads((models[model] / "config.json").read_text())
        width = 2 if name == "bf16" else 4  # bytes
        vocabulary = width * config["vocab_size"] * config["hidden_size"]
        norm = width * config["hidden_size"]
        first, second = (note[name]["held"] for note in pair[1])
        weights = load_file(models[model] / "model.safetensors")
        blocks = sum(width * w.numel() for key, w in weights.items() if ".layers." in key)
        assert first["blocks"] + second["blocks"] == blocks
        assert second["blocks"] <= first["blocks"] < 0.52 * blocks
        assert first["lora"] == second["lora"] > 0
        whole = [vocabulary] * 2 if config["tie_word_embeddings"] else [vocabulary, 2 * vocabulary]
        # After a pass with no way back, DPO's reference, the last norm is still whole in both.
        norms = 2 * norm if name == "dpo" else norm
        assert first["rest"] + second["rest"] == sum(whole) + norms


def test_resumed_by_two(pair, models, tmp_path):
    """One process, killed after step 8 with a checkpoint of step 5, goes on as two."""
    assert_like_one(pair[0] / "one then two", trainer(models["tied"], tmp_path)("a", accumulate=1))


def test_resumed_by_one(models, tmp_path):
    """Two processes, of which one is killed by SIGKILL after step 8, go on as one."""
    run = trainer(models["tied"], tmp_path)
    options = {**OPTIONS, "model": str(models["tied"]), "data": str(tmp_path / "triplets.jsonl")}
    code, err, notes = run_jobs(tmp_path, {"killed": {**options, "out": str(tmp_path / "killed")}})
    assert (code, notes) == (1, []) and "Signal 9 (SIGKILL)" in err
    assert 5 <= len(metrics(tmp_path / "killed")) <= 8
    assert not (tmp_path / "killed" / WEIGHTS).exists()
    assert_like_one(run("killed"), run("whole"))


def training(model, folder, out, *extra):
    write_jsonl(folder / "triplets.jsonl", ROWS)
    options = {**OPTIONS, "model": model, "data": folder / "triplets.jsonl", "out": folder / out}
    flags = [[f"--{key.replace('_', '-')}", value] for key, value in options.items()
             if value is not None and not isinstance(value, bool)]
    return ("ptalign.py", "train", *(str(word) for flag in flags for word in flag), *extra)


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def machine(port, processes=1):
    """torchrun's options for one of two machines, as its documentation gives them."""
    return ("--nnodes", 2, "--nproc-per-node", processes, "--rdzv-id", "two", "--rdzv-backend",
            "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}", "--local-addr", "127.0.0.1")


def test_three_processes(models, tmp_path):
    """Steps of four micro-batches and a last one of two: no process has as many as another."""
    one = trainer(models["odd"], tmp_path)("one", accumulate=4, gradient_checkpointing=True)
    argv = training(models["odd"], tmp_path, "three", "--accumulate", "4",
                    "--gradient-checkpointing")
    with torchrun(*argv, start=("--standalone", "--nproc-per-node", 3)) as process:
        _, err = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 0, err
    assert_like_one(tmp_path / "three", one)


def test_two_machines(models, tmp_path):
    """One machine has two processes, the other one; they share the disk."""
    one = trainer(models["untied"], tmp_path)("one", accumulate=3)
    argv, port = training(models["untied"], tmp_path, "both", "--accumulate", "3"), free_port()
    with (torchrun(*argv, start=machine(port, 2)) as first,
          torchrun(*argv, start=machine(port, 1)) as second):
        said = [process.communicate(timeout=TIMEOUT)[1] for process in (first, second)]
    assert (first.returncode, second.returncode) == (0, 0), said
    assert sum(err.count("adapter written to") for err in said) == 1
    assert_like_one(tmp_path / "both", one)


def test_machines_with_other_data(models, tmp_path):
    """A file of the same name that differs on the second machine ends both."""
    argv, port = training(models["tied"], tmp_path, "out", "--accumulate", "2"), free_port()
    (tmp_path / "elsewhere").mkdir()
    other = training(models["tied"], tmp_path / "elsewhere", "../out", "--accumulate", "2")
    rows = (tmp_path / "elsewhere" / "triplets.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "elsewhere" / "triplets.jsonl").write_text("".join(rows[:-1]))
    with (torchrun(*argv, start=machine(port)) as first,
          torchrun(*other, start=machine(port)) as second):
        said = [process.communicate(timeout=TIMEOUT)[1] for process in (first, second)]
    assert first.returncode and second.returncode
    lines = [line for err in said for line in re.findall("^ptalign: error: .*", err, re.M)]
    assert lines == ["ptalign: error: this machine has another data_sha256 than the first, "
                     "torchrun --nnodes, give all the same --model, --data and --out"]
    assert not (tmp_path / "out" / WEIGHTS).exists()


# ---- failures ----

def test_failure_of_one(pair):
    """Rank 1 fails while rank 0 waits for its weights: it tells why, rank 0 leaves with 2."""
    raised = [note["late"]["raised"] for note in pair[1]]
    assert raised == ["SystemExit 2", "InputError rank 1 has had enough, step 3, rest"]
    assert not (pair[0] / "late" / WEIGHTS).exists()


def test_told_once(pair):
    """Messages and warnings are rank 0's alone."""
    assert pair[2].count("adapter written to") == len(RUNS) + 1
    assert len(re.findall(r"\d rows: \d pairs", pair[2])) == pair[2].count("positive only")
    assert "2 processes share 5 micro-batches a step" in pair[2]


def command(model, folder, *extra):
    write_jsonl(folder / "triplets.jsonl", ROWS)
    return ("ptalign.py", "train", "--model", model, "--data", folder / "triplets.jsonl", "--out",
            folder / "out", "--batch-tokens", 200, "--device", "cpu", *extra)


@pytest.mark.parametrize("options, message", [
    (("--targets", "q_prj"), "no linear named q_prj, --targets"),  # on both
    (("--lr", 1.0), "settings changed: lr"),  # on rank 0, while rank 1 waits to hear of the run
])
def test_error_of_the_command(models, tmp_path, options, message):
    """One line of ours and exit code 2; the only traceback is torchrun's own, whose code is 1."""
    argv = command(models["tied"], tmp_path)
    if "--lr" in options:
        assert ptalign.main([*map(str, argv[1:]), "--epochs", "1"]) == 0
    with torchrun(*argv, "--epochs", 1, *options) as process:
        out, err = process.communicate(timeout=TIMEOUT)
    (line,) = re.findall("^ptalign: .*", err, re.M)
    assert line.startswith(f"ptalign: error: {message}") and "exitcode  : 2" in err
    assert (process.returncode, out, err.count("Traceback")) == (1, "", 1)
    assert (tmp_path / "out").exists() == ("--lr" in options)


def test_interrupted_command(models, tmp_path):
    """Ctrl-C reaches torchrun and both processes: all end soon, and one tells how to go on."""
    rows = tmp_path / "out" / "metrics.jsonl"
    with torchrun(*command(models["tied"], tmp_path, "--epochs", 500)) as process:
        while not (rows.exists() and rows.read_text().count("\n") > 10):
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=TIMEOUT)
    assert err.count("ptalign: interrupted; run the same command again") == 1
    assert "ptalign: error" not in err and 'train.py", line' not in err
    assert load_file(tmp_path / "out" / train.CHECKPOINT)
