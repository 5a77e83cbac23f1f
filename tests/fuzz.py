"""Damaged input from a seeded generator: a command ends in one line and exit 2, or goes through.

    python tests/fuzz.py --cases 400 --seed 1     as many as wanted: case N depends on N alone
    python tests/fuzz.py --only 1/137             that case again, with what it printed

A case spoils one file of a small world (models, adapters, data, seeds, finished runs), or a flag,
and runs a command that reads it in a fork with at most 1 GiB more memory and 10 s. It fails where
there is a traceback, another exit code, a second line, a line that shows an escape, or a file
outside --out that is not as it was. It also fails where the text of a toxic answer is on stdout
(but for --show-toxic), on stderr, or in a file that others than its owner can read.
"""

import argparse
import contextlib
import copy
import importlib
import json
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import torch
from conftest import write_model

import ptalign
from lora import add_lora, lora_parameters
from model import load_model
from support.adapters import write_adapter

ROOT = Path(ptalign.__file__).parent
SECONDS, MIB = 10, 1024
MILD = "Who cares, let them wait, it is their own fault anyway."  # never to be shown

DRY = "train --model model --data data.jsonl --out new --dry-run"
TRAIN = "train --model model --data data.jsonl --out new --epochs 1 --dtype float32"
TRAINED = "train --model model --data data.jsonl --out trained --epochs 1 --dtype float32"
SYNTH = "synth --model model --out new --triplets 1 --limit 1 --domains privacy --dry-run"
SYNTHED = "synth --model model --out synthed --triplets 1 --limit 1 --domains privacy"
EVAL = ("eval --model model --adapter adapter --data-dir bench --tasks hhh --max-new-tokens 4"
        " --dtype float32 --out new")
EVALED = (EVAL.replace("--out new", "--out evaled").replace("hhh", "hhh,refusal") + " --sets xstest"
          " --judge model --judge-template judge.json --judge-check check.jsonl --show-toxic")
CHAT = "chat --model model --adapter adapter --max-new-tokens 4"
MERGE = "export --model model --adapter adapter --out new"
# What reads which file; of a folder's files one is drawn.
READERS = {
    "model/config.json": [DRY, TRAIN, EVAL, MERGE],
    "model/tokenizer.json": [DRY, EVAL, CHAT],
    "model/tokenizer_config.json": [DRY, EVAL, CHAT, SYNTH],
    "model/special_tokens_map.json": [DRY, CHAT],
    "model/generation_config.json": [DRY, CHAT],
    "model/chat_template.jinja": [DRY, CHAT, SYNTH],
    "model/model.safetensors": [DRY, EVAL, MERGE, CHAT],
    "model/model.safetensors.index.json": [DRY, MERGE],
    "adapter/adapter_config.json": [EVAL, CHAT, MERGE, f"{MERGE} --to peft"],
    "adapter/adapter_model.safetensors": [EVAL, CHAT, MERGE, f"{MERGE} --to peft"],
    "data.jsonl": [DRY, f"{TRAIN} --validation 0.5", "export --data data.jsonl --out new"],
    "seeds.json": [f"{SYNTH} --seeds-file seeds.json"],
    "bench/hhh_alignment.jsonl": [EVAL, f"{TRAIN} --exclude bench"],
    "judge.json": [EVALED], "check.jsonl": [EVALED],
    "attacks.jsonl": [EVAL.replace("hhh", "jailbreak") + " --templates attacks.jsonl"],
    "replay.jsonl": [EVAL.replace("hhh", "jailbreak") + " --replay replay.jsonl"],
    "text.txt": [EVAL.replace("hhh", "perplexity") + " --text text.txt"],
    "synthed/dropped.txt": [SYNTHED],
    "bench/jailbreakbench.jsonl": [EVAL.replace("hhh", "prefill,depth")],
    "trained": [TRAINED, f"{TRAINED} --fresh",
                EVAL.replace("--adapter adapter", "--adapter trained"),
                MERGE.replace("--adapter adapter", "--adapter trained")],
    "synthed": [SYNTHED, f"{SYNTHED} --show 3"],
    "evaled": [EVALED, f"{EVALED} --fresh", f"{MERGE} --eval evaled"],
}
ODD = [None, True, False, 0, -1, 1, 2**31, 2**63, -(2**70), 10**400, 0.5, 1e308, float("nan"),
       float("inf"), "", "x", "\x1b[2J", "../../../etc/passwd", "/dev/zero", "é" * 5000, [],
       {}, [[]], [None], {"": None}, "{{ 7 * 7 }}", [1, "a"], {"a": {"a": [1]}}]
BOMBS = [
    "{{ 'x' * 10**10 }}", "{{ '%1000000000d' % 1 }}", "{{ 10**(10**9) }}", "{{ [0] * 10**10 }}",
    "{% set ns = namespace(s='x') %}{% for i in range(99) %}{% set ns.s = ns.s + ns.s %}"
    "{% endfor %}{{ ns.s }}",
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{% for a in range(9999) %}{% for b in range(9999) %}{{ a }}{% endfor %}{% endfor %}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "{{ messages|tojson|center(10**9) }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}", "{{ cycler.__init__.__globals__.os }}",
    "{{ messages.append(1) }}", "{% include '/etc/passwd' %}", "{{ 1 / 0 }}",
    "{{ strftime_now(3) }}",
    "{{ strftime_now('%Y' * 10**8) }}", "{{ raise_exception(messages[0]['content']) }}", "\x1b[2J",
    "{{ messages }}" * 999, "{{ lipsum(n=10**6) }}", "{{ messages[99].content }}", "{% for", "",
    "{{ raise_exception('\x1b[2J' * 999) }}", "{{ 'é' * 10**7 }}", "{{ missing.field }}",
    "{{ " + "(" * 500 + ")" * 500 + " }}", "{{ range(10**9)|list }}",
    "{{ 'a'|replace('', 'b' * 10**9) }}"]
FLAGS = [(f"{DRY} --epochs", ["9" * 18, "9" * 40, "1e9"]), (f"{TRAIN} --rank", ["9" * 9, "9" * 18]),
         (f"{TRAIN} --penalty", ["1e308", "1e30", "1e-320", "1e400"]), (f"{TRAIN} --lr", ["1e308"]),
         (f"{TRAIN} --alpha", ["1e308", "1e-308"]), (f"{TRAIN} --batch-tokens", ["9" * 30]),
         (f"{TRAIN} --accumulate", ["9" * 30]), (f"{TRAIN} --clip", ["1e308", "1e-320"]),
         (f"{SYNTH} --triplets", ["9" * 18, "9" * 40, "9" * 400]), (f"{SYNTH} --block", ["9" * 30]),
         (f"{SYNTH} --limit", ["9" * 400]), (f"{EVAL} --limit", ["9" * 30]),
         (f"{EVAL} --max-new-tokens", ["9" * 30]), (f"{CHAT} --temperature", ["1e308"]),
         (f"{EVAL} --tasks hhh --adapter", ["", ".", "/dev/null", "\x1b[2J", "a" * 5000]),
         (f"{MERGE} --adapter", ["", "."]), (f"{DRY} --model", ["", ".", "a" * 5000]),
         (f"{DRY} --data", ["", "/dev/full", "a" * 5000]), (f"{DRY} --exclude", ["", "."]),
         (f"{TRAIN} --out", ["", "/dev/full", "/proc/none", "a" * 5000, "model"]),
         (f"{SYNTH} --seeds-file", ["", "/dev/null"]), (f"{SYNTHED} --show", ["9" * 30]),
         (f"{EVAL} --tasks", ["file:", "file:.", "file:/dev/null", "file:data.jsonl", "\x1b[2J"])]


# ---- the world ----

def write_lines(path: Path, *rows) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def build(root: Path) -> None:
    """Everything that the commands read, and a finished run of each."""
    write_model(root / "model", max_position_embeddings=8192)
    for name, value in (("special_tokens_map", {"eos_token": {"content": "<|im_end|>"}}),
                        ("generation_config", {"eos_token_id": [1, 0]})):
        (root / "model" / f"{name}.json").write_text(json.dumps(value))
    model = load_model(root / "model", dtype="float32")
    add_lora(model, ["q_proj"], rank=2, alpha=4)
    (root / "adapter").mkdir()
    write_adapter(root / "adapter", lora_parameters(model), base="model", rank=2, alpha=4,
                  targets=["q_proj"])
    shutil.copy(ROOT / "synthesis" / "seeds.json", root)
    rows = [{"prompt": f"May I skip queue {i}?", "positive": "I would wait.", "toxic": MILD}
            for i in range(4)]
    write_lines(root / "data.jsonl", *rows, {**rows[0], "prompt": "Is tea good?", "toxic": None})
    (root / "bench").mkdir()
    choice = {"id": "a", "prompt": "Hello?", "choices": ["Yes.", "No."], "label": 0,
              "group": "other"}
    write_lines(root / "bench" / "hhh_alignment.jsonl", choice, {**choice, "id": "b"})
    for name in ("xstest", "jailbreakbench"):
        write_lines(root / "bench" / f"{name}.jsonl", *[
            {"id": str(i), "prompt": f"Why {i}?", "category": "c", "harmful": i < 1}
            for i in range(2)])
    write_lines(root / "attacks.jsonl", {"name": "plain", "template": "Now: {prompt}"})
    write_lines(root / "replay.jsonl", {"prompt": "Pretend.", "goal": "Why 0?"})
    (root / "text.txt").write_text("It rains, and the queue is long.\n" * 9)
    write_lines(root / "check.jsonl", *[
        {"question": f"Why {i}?", "answer": MILD, "harmful": i < 2} for i in range(4)])
    (root / "judge.json").write_text(json.dumps({
        "template": "Q: {question}\nA: {answer}\nHarm:", "strip": ["Q:"],
        "tokens": {"harmful": ["y"], "harmless": ["n"]}}))
    for line in (TRAINED, SYNTHED, EVALED):
        code, told = forked(root, line.split(), minutes=2)
        if code not in (0, 3):
            raise SystemExit(f"{line}: {code}\n{told}")


# ---- the damage ----

def places(value, path=()):
    """The path of every node of a JSON value."""
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(
        value[:50]) if isinstance(value, list) else ()
    for key, entry in inner:
        yield from places(entry, (*path, key))


def spoil_value(value, rng: random.Random, odds: list = ODD):
    """One node replaced, taken away or put in twice."""
    value = copy.deepcopy(value)
    *outer, last = rng.choice([p for p in list(places(value))[:3000] if p] or [("x",)])
    if not value or not isinstance(value, (dict, list)):
        return rng.choice(odds)
    holder = value
    for key in outer:
        holder = holder[key]
    odd = rng.choice(odds)
    if not isinstance(holder, (dict, list)):
        return odd
    if rng.random() < 0.25:
        del holder[last]
    elif rng.random() < 0.2 and isinstance(holder, dict):
        holder[rng.choice(["x", "", "\x1b", "model_type", "began", "step"])] = odd
    else:
        holder[last] = odd
    return value


def spoil_bytes(data: bytes, rng: random.Random) -> bytes:
    data, near = bytearray(data), rng.choice([8, 64, 1024, len(data)])  # headers come first
    for _ in range(rng.choice([1, 1, 3, 40])):
        i = rng.randrange(max(1, min(near, len(data))))
        data[i:i + 1] = rng.choice([b"", bytes([rng.randrange(256)]), b"\0", b"\xff", b'"', b"\n"])
    return bytes(data[:rng.randrange(len(data) + 1)] if rng.random() < 0.2 else data)


def spoil_header(data: bytes, rng: random.Random) -> bytes:
    """A safetensors file whose header is valid JSON of another content."""
    size = int.from_bytes(data[:8], "little")
    header = json.dumps(spoil_value(json.loads(data[8:8 + size]), rng)).encode()
    return len(header).to_bytes(8, "little") + header + data[8 + size:]


def spoil_place(path: Path, rng: random.Random) -> None:
    """Something that is no file, or has no end, in a file's place."""
    path.unlink(missing_ok=True)
    kind = rng.choice(["zero", "full", "fifo", "folder", "loop", "empty", "none", "closed"])
    if kind in ("zero", "full"):
        path.symlink_to(f"/dev/{kind}")
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to(path.name)
    elif kind != "none":
        path.touch(mode=0o600 if kind == "empty" else 0)


def spoil(path: Path, rng: random.Random) -> None:
    how = rng.random()
    if how < 0.12 or not path.is_file():
        return spoil_place(path, rng)
    data = path.read_bytes()
    if how < 0.35:
        data = spoil_bytes(data, rng)
    elif path.suffix == ".safetensors":
        data = spoil_header(data, rng)
    elif path.suffix == ".jsonl":
        rows = [json.loads(line) for line in data.splitlines()] or [{}]
        if how < 0.4:
            rows.insert(rng.randrange(len(rows) + 1), rng.choice([*ODD, rows[0]]))
        else:
            i = rng.randrange(len(rows))
            rows[i] = spoil_value(rows[i], rng, [*ODD, MILD])
            if how > 0.98 and isinstance(rows[i], dict):
                rows[i] = {key: "x" * 10**7 for key in rows[i]}
        data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    elif path.suffix == ".json":
        value = json.loads(data)
        for _ in range(rng.choice([1, 1, 2])):
            value = spoil_value(value, rng)
        data = json.dumps(value).encode()
    path.write_bytes(data)


def spoil_world(root: Path, rng: random.Random) -> tuple[list[str], str]:
    """Damage one thing; (the command line, what was damaged)."""
    target = rng.choice([*READERS, "flag", "model/chat_template.jinja"])
    if target == "flag":
        line, values = rng.choice(FLAGS)
        return [*line.split(), value := rng.choice(values)], f"{line.split()[-1]} {value[:40]!r}"
    line, path = rng.choice(READERS[target]), root / target
    if path.is_dir():
        path = rng.choice(sorted(p for p in path.rglob("*") if p.is_file()))
    if path.suffix == ".jinja":
        path.write_text(rng.choice(["", "{{ messages[0]['content'] }}"]) + rng.choice(BOMBS))
    elif path.name.endswith("index.json"):
        path.with_name("model.safetensors").rename(path.with_name("a.safetensors"))
        path.write_text(json.dumps({"weight_map": {"model.norm.weight": "a.safetensors"}}))
        spoil(path, rng)
    else:
        spoil(path, rng)
    return line.split(), str(path.relative_to(root))


# ---- one case ----

def forked(root: Path, argv: list[str], *, minutes: float = SECONDS / 60) -> tuple[int, str]:
    """(exit code, stderr) of a command in a fork; the code is minus the signal that ended it."""
    log, printed = root.parent / "stderr", root.parent / "stdout"
    if not (child := os.fork()):
        code = 70
        with contextlib.suppress(BaseException):
            os.chdir(root)
            os.dup2(os.open("/dev/null", os.O_RDWR), 0)
            for fd, path in ((1, printed), (2, log)):
                os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), fd)
            sys.stdin, sys.stdout, sys.stderr = (  # pytest has its own
                os.fdopen(fd, mode, closefd=False) for fd, mode in enumerate("rww"))
            resource.setrlimit(resource.RLIMIT_AS, (memory() + (MIB << 20),) * 2)
            signal.setitimer(signal.ITIMER_PROF, 60 * minutes)  # the neighbours' not
            signal.alarm(round(600 * minutes))  # and for what sleeps
            try:
                code = ptalign.main(argv)
            except SystemExit as end:
                code = end.code
            except BaseException:
                sys.excepthook(*sys.exc_info())
                code = 1
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return status, log.read_text(errors="replace")


def memory() -> int:
    """Bytes of this process's address space."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


def tree(root: Path) -> dict[str, object]:
    return {str(p.relative_to(root)): (p.lstat().st_mode, p.read_bytes() if p.is_file() and
                                       not p.is_symlink() else None) for p in root.rglob("*")}


def leaks(before: dict, after: dict) -> list[str]:
    """Files written by a command that others may read and that hold a toxic answer."""
    return [name for name, (mode, data) in after.items() if data and before.get(name) != after[name]
            and mode & 0o077 and MILD[:20].encode() in data]


def fault_of(code: int, told: str) -> str | None:
    errors = [line for line in told.splitlines() if line.startswith("ptalign: error: ")]
    for wrong, fault in (
            (code == -signal.SIGPROF or code == -signal.SIGALRM, f"over {SECONDS} s"),
            (code not in (0, 2, 3), f"exit code {code}"),
            ("Traceback" in told or len(errors) != (code == 2), "not one line"),
            (errors and told.splitlines()[-1:] != errors, "more than its line"),
            ("out of memory" in told, "out of memory"), (MILD[:20] in told, "shows an answer"),
            (re.search(r"[\0-\b\x0b-\x1f]", told), "escape"),
            (max(map(len, errors), default=0) > 1600, "a line without end")):
        if wrong:
            return fault
    return None


def run_case(world: Path, seed: str) -> tuple[str, str | None, str]:
    """(what was damaged, what is wrong if anything, what it printed)."""
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory(dir=world.parent) as place:
        root = Path(place) / "world"
        shutil.copytree(world, root, symlinks=True)
        argv, damaged = spoil_world(root, rng)
        out = argv[argv.index("--out") + 1] if "--out" in argv else "new"
        before = tree(root)
        code, told = forked(root, argv)
        after = tree(root)
        fault = fault_of(code, told)
        changed = {name for name in before.keys() | after.keys() if before.get(name)
                   != after.get(name) and not name.startswith((out, ".new"))}
        lost = {name for name in before.keys() - after.keys() if not name.endswith(".lock")}
        own = {"world", "stderr", "stdout"}
        strangers = {path.name for path in Path(place).iterdir()} - own
        if not fault and (changed or lost or strangers):
            fault = f"changed {sorted(changed | lost)[:3]}"
        if shown := leaks(before, after):
            fault = fault or f"shows an answer in {shown[:3]}"
        printed = (root.parent / "stdout").read_bytes()
        if MILD[:20].encode() in printed and "--show-toxic" not in argv:
            fault = fault or "prints an answer"
        left = [name for name in after if name == "new"]
        if not fault and code == 2 and left:
            fault = "left --out behind"
        for folder in root.rglob("*"):
            if folder.is_dir() and not folder.is_symlink():
                folder.chmod(0o700)
        return f"{damaged}: {' '.join(argv)[:200]!r}", fault, f"{code} {told}"


@contextlib.contextmanager
def small_world():
    with tempfile.TemporaryDirectory() as place:
        os.environ |= {"HF_HOME": f"{place}/hub", "HF_HUB_OFFLINE": "1",
                       "TOKENIZERS_PARALLELISM": "false"}
        for name in ("chat", "synth", "train", "evals.suite", "export.command"):
            importlib.import_module(name)  # once, not in every fork
        (world := Path(place) / "world").mkdir()
        build(world)
        yield world


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=400)
    parser.add_argument("--seed", default="0")
    parser.add_argument("--only", metavar="SEED/N")
    options = parser.parse_args()
    torch.set_num_threads(1)
    failed, began = 0, time.monotonic()
    with small_world() as world:
        for seed in [options.only] if options.only else (
                f"{options.seed}/{n}" for n in range(options.cases)):
            start = time.monotonic()
            damaged, fault, told = run_case(world, seed)
            if fault or options.only:
                failed += bool(fault)
                shown = told if options.only else "\n".join(told.splitlines()[-3:])[-600:]
                print(f"{seed} {fault} ({time.monotonic() - start:.1f} s)\n  {damaged}\n  {shown}",
                      flush=True)
    print(f"{failed} of {1 if options.only else options.cases} cases failed "
          f"({time.monotonic() - began:.0f} s)")
    return failed > 0


if __name__ == "__main__":
    sys.exit(main())
