"""Thousands of pairs from a scripted model behind a server on this machine, killed on the way.

    python tests/many.py --model FOLDER --triplets 2048 --kills 3 --out DIR

Of the model the tokenizer alone is read. An unbroken run and one that is killed (SIGKILL) and
begun again, in turn, must end with the same files; calls.jsonl has its lines in another order. The
memory is the client's, the most that it ever had.
"""

import argparse
import resource
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))
sys.path.insert(0, str(ROOT))

import scribe  # noqa: E402
from stub_server import serving  # noqa: E402
from test_endpoint_synth import in_order, scripted  # noqa: E402

SYLLABLES = ("ba", "ce", "di", "fo", "gu", "la", "me", "ni", "po", "ru", "sa", "te", "vi", "wo")


NOUNS = [f"{a}{b}{c}n" for a in SYLLABLES for b in SYLLABLES for c in SYLLABLES]


def instruction(rng) -> str:
    """Of thousands of nouns: the Scribe's own requests are soon all alike."""
    a, b, c, d, e, f = rng.sample(NOUNS, 6)
    return (f"{rng.choice(scribe.OPENERS)} {rng.choice(scribe.VERBS)} the {a} {b} with a {c} and"
            f" the {d} or {e} {f}?")


def client(options, url: str, out: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, str(ROOT / "ptalign.py"), "synth", "--model", options.model, "--out",
         str(out), "--triplets", str(options.triplets), "--endpoint", url, "--endpoint-model",
         "scribe", "--concurrency", "8", "--quiet"], stdout=subprocess.DEVNULL)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--triplets", type=int, default=2048)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    scribe.NOUNS[:], scribe.instruction = NOUNS, instruction
    with serving(scripted(Path(options.model))) as stub:
        began = time.monotonic()
        code = client(options, stub.url, options.out / "whole").wait()
        seconds, calls = time.monotonic() - began, len(stub.asked)
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024
        print(f"whole: exit code {code}, {calls} calls, {seconds:.0f} s, {peak} MiB at most",
              flush=True)
        stub.asked.clear()
        for kill in range(options.kills):
            run = client(options, stub.url, options.out / "killed")
            while len(stub.asked) < (kill + 1) * calls // (options.kills + 1):
                time.sleep(0.1)
            run.kill()
            run.wait()
        again = client(options, stub.url, options.out / "killed").wait()
        extra = len(stub.asked) - calls
    whole, killed = (in_order(options.out / name) for name in ("whole", "killed"))
    differ = sorted(name for name in whole.keys() | killed.keys()
                    if whole.get(name) != killed.get(name))
    print(f"killed {options.kills} times: exit code {again}, {extra} calls more (probes and what"
          f" was under way), files {f'DIFFER: {differ}' if differ else 'equal'}")
    return 0 if code == again and not differ else 1


if __name__ == "__main__":
    sys.exit(main())
