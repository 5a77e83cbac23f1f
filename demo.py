"""The whole method on the model that comes with the repository: synth, train, eval.

    python ptalign.py demo

The organism (organism/) is a small unaligned model of a small world, in which bad requests are mild
and an oracle judges every answer. The commands are those that a real model takes.
"""

import contextlib
import io
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

from evals.report import figures_text
from evals.texts import BELOW, LEVEL
from organism.task import load_rows
from support.files import read_json, read_jsonl, sha256
from support.progress import say

ORGANISM = Path(__file__).with_name("organism")
TRIPLETS, BENIGN_SHARE = 300, 0.2  # more benign rows than so small a world gives
# What the dev split, requests of the train half, chose: benchmarks/demo_runs.py
TRAIN = {"epochs": "4", "batch-tokens": "640", "rank": "16", "alpha": "32", "lr": "1.5e-3"}
SHORT = 3  # synth's exit code where it falls short of its target: worth training on all the same
MODE = "sampled"  # the base's likeliest answer is nearly always harmless, its samples are not
COLUMNS = ("base", "tuned")
SHOWN = [  # figures of the final table
    "bad sampled/harmless", "bad sampled/harmful", "bad sampled/broken", "bad greedy/harmless",
    "benign/right", "benign sampled/refused", "all/well-formed", "choice/sum"]


def demo(run: Callable[[list[str]], int], *, out: str, device: str, seed: int, fresh: bool,
         show_toxic: bool) -> int:
    """Run the three commands by `run(argv) -> exit code`, then show what came out."""
    folder = Path(out)
    for argv in commands(folder, device=device, seed=seed):
        say(f"\n$ python ptalign.py {shlex.join(argv)}")
        with contextlib.redirect_stdout(io.StringIO()):  # their tables are in their reports
            code = run([*argv, "--fresh"] if fresh else argv)
        if code not in (0, SHORT):
            return code
    results = read_json(folder / "eval" / "results.json")
    kept = {f"organism/chat/{name}" for name in SHOWN}
    results["figures"] = [f for f in results["figures"] if f["key"] in kept]
    print(f"\nHeld-out requests:\n\n{figures_text(results)}")
    print(f"\n* named primary beforehand; {BELOW} below {LEVEL}, corrected for all that is tested.")
    for text in exchanges(folder / "eval", show_toxic=show_toxic):
        print(f"\n{text}")
    print(f"\nReports: {folder / 'data' / 'report.md'}, {folder / 'eval' / 'report.md'}")
    print(f"To look at: {folder / 'eval' / 'report.html'}")
    return 0


def flags(settings: dict[str, str]) -> tuple[str, ...]:
    """{"lr": "1.5e-3"} as ("--lr", "1.5e-3")."""
    return tuple(part for name, value in settings.items() for part in (f"--{name}", value))


def commands(folder: Path, *, device: str, seed: int) -> list[list[str]]:
    common = ["--model", str(ORGANISM / "model"), "--device", device, "--seed", str(seed)]
    triplets, adapter = str(folder / "data" / "triplets.jsonl"), str(folder / "adapter")
    return [
        ["synth", *common, "--seeds-file", str(ORGANISM / "seeds.json"), "--triplets",
         str(TRIPLETS), "--benign-share", str(BENIGN_SHARE), "--format", "raw",
         "--out", str(folder / "data")],
        ["train", *common, "--data", triplets, *flags(TRAIN), "--out", adapter],
        ["eval", *common, "--adapter", adapter, "--tasks", "organism",
         "--out", str(folder / "eval")]]


def exchanges(folder: Path, *, show_toxic: bool) -> Iterator[str]:
    """Two bad requests that tuning changed and a benign one, each before and after."""
    prompts = {row["id"]: row["prompt"] for rows in load_rows().values() for row in rows}
    texts = {(block["column"], row["prompt"]): row["text"]
             for _, block in read_jsonl(folder / "answers.jsonl")
             if block["mode"] == MODE for row in block["rows"]}
    items = [item for _, item in read_jsonl(folder / "items.jsonl") if item["mode"] == MODE]
    for kind, verdicts, n in (("bad", ["harmful", "harmless"], 2), ("benign", ["right"] * 2, 1)):
        of_kind = [item for item in items if item["set"] == kind]
        wanted = [item for item in of_kind if [item[c]["verdict"] for c in COLUMNS] == verdicts]
        for item in (wanted or of_kind)[:n]:
            prompt = prompts[item["id"]]
            lines = [f"> {prompt}"]
            for column in COLUMNS:
                text, verdict = texts[column, sha256(prompt)], item[column]["verdict"]
                if verdict == "harmful" and not show_toxic:
                    text = f"({len(text.split())} words, shown with --show-toxic)"
                lines.append(f"  {column:5} [{verdict}] {text}")
            yield "\n".join(lines)
