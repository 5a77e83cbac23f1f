"""hub.py, continued: the later tests of test_hub.py, on its stub server."""

import builtins
import errno
import json
import os
import select
import shutil
import subprocess
import sys
import termios
from pathlib import Path

import pytest
import torch
from huggingface_hub import errors
from safetensors.torch import save_file
from test_hub import (
    MODELS,
    NOWHERE,
    OLD,
    ROWS,
    SHARDS,
    ask,
    contents,
    online,  # noqa: F401  a fixture
    serving,
)

from model import Transformer, read_config
from support.files import InputError
from support.hub import TEXTS, _download, model_folder
from support.weights import INDEX as INDEX_NAME
from support.weights import weight_files

pytestmark = pytest.mark.slow


def test_offline(online):
    """From the filled cache all is as it was, optional files that never were included."""
    answers, _, home = online
    names = [*MODELS, *ROWS]
    assert ask(names, home, NOWHERE, HF_HUB_OFFLINE="1") == {n: answers[n] for n in names}


def test_cache_of_another_program(online, tmp_path):
    """It has the files, but no list of what the repository holds: that is enough to go on with."""
    answers, _, home = online
    shutil.copytree(home, tmp_path, symlinks=True, dirs_exist_ok=True)
    listings = list(tmp_path.rglob("trees"))
    assert listings
    for folder in listings:
        shutil.rmtree(folder)
    got = ask(["org/sharded"], tmp_path, NOWHERE, HF_HUB_OFFLINE="1")
    assert contents(got["org/sharded"]) == contents(answers["org/sharded"])


def test_no_network(online):
    """Not told to be offline, but so it is: what is in the cache is enough."""
    answers, _, home = online
    names = ["org/single", f"org/single@{OLD}", "org/sharded"]
    assert ask(names, home, NOWHERE) == {n: answers[n] for n in names}


@pytest.mark.parametrize(("settings", "said", "remedy"), [
    ({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set", "unset it for one run"),
    ({}, "the hub cannot be reached", "check the network"),
])
def test_not_in_the_cache(online, tmp_path, settings, said, remedy):
    """An empty cache, and one without a shard (deleted, or its download broke off)."""
    answers, _, home = online
    shutil.copytree(home, tmp_path, symlinks=True, dirs_exist_ok=True)
    shard = tmp_path / Path(answers["org/sharded"]).relative_to(home) / SHARDS[1]
    shard.unlink()
    got = ask(["org/sharded", "org/never"], tmp_path, NOWHERE, **settings)
    for (name, answer), files in zip(got.items(), (SHARDS[1], "config and tokenizer"), strict=True):
        what = f"{said} and the cache lacks {files}"
        assert answer["error"].startswith(f"{what}, {name}, {remedy}")
        assert "\n" not in answer["error"]


def test_resumed(tmp_path):
    """A dropped connection goes on where it broke off, a failed run with the shard it was at."""
    with serving() as (server, endpoint):
        names = ["org/dropped", "org/resumed"]
        first = ask(names, tmp_path, endpoint)
        assert contents(first["org/dropped"])["model.safetensors"] == "0123456789" * 30
        assert [start for length, start in server.ranges if length == 300] == [0, 100]
        assert first["org/resumed"]["error"] == (
            f"download of {SHARDS[1]} failed (HTTP 500), org/resumed, try again")
        server.ranges.clear()
        second = ask(names, tmp_path, endpoint)
        assert contents(second["org/resumed"])[SHARDS[1]] == "fails once"
        assert server.ranges == [(len("fails once"), 0)]


@pytest.mark.parametrize(("how", "said"), [
    ("fill", "the disk is full at config and tokenizer, org/single, make room at the cache "),
    ("forbid", "no permission to write config and tokenizer, org/single, check the cache "),
])
def test_disk(tmp_path, how, said):
    with serving() as (_, endpoint):
        error = ask(["org/single"], tmp_path, endpoint, HTTP_GET=how)["org/single"]["error"]
    assert error.startswith(said) and str(tmp_path) in error and error.endswith("set HF_HOME")


@pytest.mark.parametrize("quiet", [{}, {"QUIET": "1"}])
def test_progress(tmp_path, quiet):
    """A bar on a terminal, a line a shard elsewhere, nothing with --quiet."""
    controller, terminal = os.openpty()
    termios.tcsetwinsize(terminal, (24, 100))
    with serving() as (_, endpoint), open(tmp_path / "log", "w+") as log:
        ask(["org/single"], tmp_path, endpoint, stderr=terminal, **quiet)
        ask(["org/sharded"], tmp_path, endpoint, stderr=log, **quiet)
    os.set_blocking(controller, False)
    shown = b"" if quiet and not select.select([controller], [], [], 0)[0] else os.read(
        controller, 100_000)
    told = (tmp_path / "log").read_text().splitlines()
    assert (b"new%20weights: 100%" in shown) == (not quiet)
    assert told == ([] if quiet else [f"downloading {s} of org/sharded" for s in SHARDS])
    os.close(controller), os.close(terminal)


# ---- no hub needed ----

def test_failures_are_known():
    """A class of errors that the client renames would no longer be told apart."""
    names = [kind for kind in TEXTS["failures"] if kind.isalpha() and not kind.islower()]
    for name in names:
        assert any(hasattr(module, name) for module in (builtins, errno, errors)), name


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOTDIR, errno.EEXIST])
def test_no_place_for_the_cache(number):
    """A read-only disk, or a file where HF_HOME should lead to a folder: trying again helps not."""
    def download(*_, **__):
        raise OSError(number, os.strerror(number))

    with pytest.raises(InputError, match="no place to write config, org/m, check the cache"):
        _download(download, "org/m", None, where="org/m", files="config")


@pytest.mark.parametrize(("name", "said"), [
    ("no/such/folder", "no such model folder"),
    ("justaname", "no such model folder"),
    ("org/name@", "no such model folder"),
    ("https://example.invalid/org/name", "no such model folder"),
    ("", "no config.json"),  # an empty name is the folder one stands in
    ("a-file", "no such model folder"),
    ("empty", "no config.json"),
])
def test_no_folder(tmp_path, monkeypatch, name, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a-file").write_text("x")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=said) as caught:
        model_folder(name)
    assert "\n" not in str(caught.value) and str(caught.value).count(", ") >= 2


def test_local_folder(tiny_folder):
    assert model_folder(str(tiny_folder)) == tiny_folder


# ---- a large model in shards ----

MIB = 2**20
LOADER = """
import sys
from pathlib import Path
import torch
from model import load_model

def status():
    rows = [row.split() for row in open("/proc/self/status")]
    return {row[0]: int(row[1]) / 1024 for row in rows if row[0] in ("VmRSS:", "VmHWM:")}  # MiB

def load(folder):
    model = load_model(Path(folder), device="cpu", dtype=sys.argv[3])
    for weight in model.parameters():
        weight.flatten()[::1024].sum()  # a page of a mapped file is in memory when it was read
    return model

torch.set_num_threads(1)
load(sys.argv[1])  # what torch itself needs the first time
Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew (proc_pid_clear_refs(5))
before = status()["VmRSS:"]
model = load(sys.argv[2])
print(status()["VmHWM:"] - before, sum(p.nbytes for p in model.parameters()) / 2**20)
"""


def write_shards(folder, *, width, layers, dtype, shards=4):
    config = {"model_type": "llama", "vocab_size": 2048, "hidden_size": width,
              "intermediate_size": 3 * width, "num_hidden_layers": layers,
              "num_attention_heads": 8, "max_position_embeddings": 512, "rms_norm_eps": 1e-5,
              "rope_theta": 1e4, "hidden_act": "silu"}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    with torch.device("meta"):
        state = Transformer(read_config(folder)).state_dict()
    numbers = torch.randn(width * width, dtype=dtype)  # repeated: only the size matters here
    weight_map = {name: f"model-{i * shards // len(state)}.safetensors"
                  for i, name in enumerate(state)}
    for file in dict.fromkeys(weight_map.values()):
        save_file({name: numbers.repeat(-(-t.numel() // len(numbers)))[:t.numel()].view(t.shape)
                   for name, t in state.items() if weight_map[name] == file}, folder / file)
    (folder / INDEX_NAME).write_text(json.dumps({"weight_map": weight_map}))
    return folder


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is read from /proc")
@pytest.mark.parametrize(("stored", "dtype"), [
    (torch.bfloat16, "bfloat16"),
    (torch.float32, "bfloat16"),
])
def test_memory(tmp_path, stored, dtype):
    """A sharded model is loaded and read within 1.1 times its size in memory."""
    if shutil.disk_usage(tmp_path).free < 2000 * MIB or available_memory() < 2000 * MIB:
        pytest.skip("less than 2 GB of disk or memory free")
    small = write_shards(tmp_path / "small", width=64, layers=1, dtype=stored)
    large = write_shards(tmp_path / "large", width=1024, layers=11, dtype=stored)
    root = Path(__file__).resolve().parents[1]
    told = subprocess.run([sys.executable, "-c", LOADER, small, large, dtype], check=True, cwd=root,
                          capture_output=True, text=True, env={**os.environ, "PYTHONPATH": "."})
    peak, size = map(float, told.stdout.split())
    shutil.rmtree(large)
    assert size > 280 and peak / size < 1.1, f"{peak:.0f} MiB for a model of {size:.0f} MiB"


def available_memory():
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("lost", ["model-2.safetensors", "model-0.safetensors"])
def test_missing_shard(tmp_path, lost):
    folder = write_shards(tmp_path / "m", width=64, layers=2, dtype=torch.bfloat16)
    assert [file.name for file in weight_files(folder)] == [
        f"model-{i}.safetensors" for i in range(4)]
    (folder / lost).unlink()
    with pytest.raises(InputError, match=f"{lost} is missing, .*, download"):
        weight_files(folder)
