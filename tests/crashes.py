"""Broken runs of every command, on the organism: what they leave is whole, and goes on.

    python tests/crashes.py --cases 80 --seed 0     case N depends on N and the seed alone

A case runs synth, train, eval or export in a process of its own and breaks it: by SIGKILL at a
random moment or inside a write, up to three times; by a full disk (RLIMIT_FSIZE), too little memory
(RLIMIT_AS), an input that vanishes, or a second process in the same folder. Then the same command
runs undisturbed. A case fails where that does not end with 0 and the bits of an unbroken run, or
where a fault that the command can see ends in a traceback, another code than 2, or a second line.
"""

import argparse
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / "organism" / "model"
COMMANDS = {  # in this order: each reads what the one before has made
    "synth": f"synth --model {MODEL} --seeds-file seeds.json --triplets 6 --block 8",
    "train": f"train --model {MODEL} --data triplets.jsonl --epochs 3 --batch-tokens 192",
    "eval": f"eval --model {MODEL} --adapter adapter --tasks organism --limit 8 --seed 1",
    "export": f"export --model {MODEL} --adapter adapter --to merged",
}
INPUT = {"synth": "seeds.json", "train": "triplets.jsonl", "eval": "adapter", "export": "adapter"}
RESULTS = {  # what must have the bits of an unbroken run
    "synth": ("triplets.jsonl", "rejects.jsonl", "topics.jsonl"),
    "train": ("adapter_model.safetensors", "adapter_config.json", "prompts.jsonl"),
    "eval": ("items.jsonl", "answers.jsonl"),
    "export": ("model.safetensors", "config.json", "tokenizer.json"),
}
FAULTS = ("kill", "kill", "kill", "write", "write", "disk", "memory", "vanish", "second")
# Run in the child: more checkpoints than a short run would have, and the fault, where it has one.
CHILD = """
import os, resource, signal, sys
sys.path.insert(0, {root!r})
import ptalign, train
train.CHECKPOINT_STEPS = 3
fsync, left = os.fsync, {fsync}
def counted(handle):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    fsync(handle)
os.fsync = counted
for kind, limit in {limits}:
    limit += {{9: int(open("/proc/self/statm").read().split()[0]) * 4096}}.get(kind, 0)
    resource.setrlimit(kind, (limit, limit))
sys.exit(ptalign.main(sys.argv[1:]))
"""


def start(command: str, out: Path, *, fsync: int = 0, limits=()) -> subprocess.Popen:
    """The command in a process of its own; `fsync`: the write that it is killed in, `limits`: pairs
    of a resource and its limit (memory: beyond what the interpreter has by then)."""
    code = CHILD.format(root=str(ROOT), fsync=fsync, limits=list(limits))
    words = f"{COMMANDS[command]} --dtype float32 --out {out}".split()
    return subprocess.Popen(
        [sys.executable, "-c", code, *words], cwd=out.parent, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def finish(process: subprocess.Popen) -> tuple[int, list[str]]:
    """The exit code, and what stderr says of an error."""
    _, told = process.communicate(timeout=600)
    lines = told.splitlines()
    errors = [line for line in lines if line.startswith(("ptalign: error", "Traceback"))]
    return process.returncode, errors


def results(command: str, out: Path) -> dict[str, bytes]:
    return {name: (out / name).read_bytes() for name in RESULTS[command]}


def complaint(code: int, errors: list[str], *, may_end: bool = True) -> str | None:
    """What is wrong with the end of a run whose fault the command can see."""
    if code == 0 and may_end:
        return None
    if code != 2 or len(errors) != 1 or not errors[0].startswith("ptalign: error"):
        return f"ended with {code}: {errors[-1:]}"
    return None


def disturb(fault: str, command: str, out: Path, seconds: float, rng) -> str | None:
    """Runs the command and breaks it; what was wrong with how it ended."""
    if fault in ("kill", "write"):
        for _ in range(rng.choice((1, 1, 2, 3))):
            process = start(command, out, fsync=rng.randint(1, 24) if fault == "write" else 0)
            if fault == "kill":
                time.sleep(rng.uniform(0.3, 1.0) * seconds)
                process.kill()
            code, errors = finish(process)
            if code == 0:  # it was through before
                return None
            if code != -signal.SIGKILL:
                return f"ended with {code}: {errors[-1:]}"
        return None
    if fault == "disk":
        limit = rng.choice((0, 100, 3000, 20_000, 200_000))
        return complaint(*finish(start(command, out, limits=[(resource.RLIMIT_FSIZE, limit)])))
    if fault == "memory":  # the allocator of a library may abort; what is left counts all the same
        finish(start(command, out, limits=[(int(resource.RLIMIT_AS), rng.randint(1, 300) << 20)]))
        return None
    if fault == "vanish":
        place = out.parent / INPUT[command]
        away, process = place.with_name("away"), start(command, out)
        time.sleep(rng.uniform(0, 1) * seconds)
        place.rename(away)
        wrong = complaint(*finish(process))
        away.rename(place)
        return wrong
    first = start(command, out)
    time.sleep(rng.uniform(0.5, 0.9) * seconds)
    code, errors = finish(start(command, out))
    ended = finish(first)
    if ended != (0, []):
        return f"the first of two ended with {ended}"
    return complaint(code, errors)


def build(world: Path) -> dict[str, tuple[float, dict]]:
    """The inputs of all commands; of each, how long an unbroken run takes and what it gives."""
    shutil.copy(ROOT / "organism" / "seeds.json", world)
    whole = {}
    for command in COMMANDS:
        out, began = world / f"whole-{command}", time.monotonic()
        code, errors = finish(start(command, out))
        if code:
            raise SystemExit(f"{command} undisturbed ended with {code}: {errors}")
        whole[command] = time.monotonic() - began, results(command, out)
        if command == "synth":
            shutil.copy(out / "triplets.jsonl", world)
        if command == "train":
            shutil.copytree(out, world / "adapter")
    return whole


def run_case(number: int, seed: int, world: Path, whole: dict) -> tuple[str, str, str | None]:
    """(command, fault, what failed or None)."""
    rng = random.Random(f"{seed}/{number}")
    command, fault = list(COMMANDS)[number % len(COMMANDS)], rng.choice(FAULTS)
    out, (seconds, wanted) = world / f"case-{number}", whole[command]
    wrong = disturb(fault, command, out, seconds, rng)
    # What is exported is not exported again: the command wants a new folder.
    done = command == "export" and out.exists()
    code, errors = (0, []) if done else finish(start(command, out))
    if not wrong and code:
        wrong = f"started again it ended with {code}: {errors[-1:]}"
    if not wrong:
        differing = [name for name, data in results(command, out).items() if data != wanted[name]]
        wrong = f"other bits in {', '.join(differing)}" if differing else None
    shutil.rmtree(out, ignore_errors=True)
    return command, fault, wrong


def crash(cases: int, seed: int, *, only: int | None = None) -> dict[tuple[str, str], list]:
    """Cases and failures by command and fault; failures are printed as they come."""
    counts: dict[tuple[str, str], list] = {}
    with tempfile.TemporaryDirectory() as folder:
        world = Path(folder)
        whole = build(world)
        for number in range(cases) if only is None else [only]:
            command, fault, wrong = run_case(number, seed, world, whole)
            counts.setdefault((command, fault), []).append(wrong)
            if wrong:
                print(f"case {number}, {command}, {fault}: {wrong}", flush=True)
    return counts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cases", type=int, default=80)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, metavar="CASE")
    options = parser.parse_args()
    counts = crash(options.cases, options.seed, only=options.only)
    faults = sorted(set(FAULTS))
    print(f"{'':8}" + "".join(f"{fault:>9}" for fault in faults))
    for command in COMMANDS:
        made = [counts.get((command, fault), []) for fault in faults]
        print(f"{command:8}" + "".join(f"{sum(not w for w in own)} of {len(own)}".rjust(9)
                                       for own in made))
    failed = sum(wrong is not None for own in counts.values() for wrong in own)
    print(f"seed {options.seed}: {sum(map(len, counts.values()))} cases, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
