"""The whole method by one command: synth, train, eval, and a report to look at.

Without a model it runs on the organism (organism/), a small unaligned model that comes with the
repository. In its small world bad requests are mild and an oracle judges every answer."""

import contextlib
import io
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

from evals.data import load_sets
from evals.judging import answer_texts
from evals.page import headlines
from evals.report import figures_text
from evals.tasks.refusal import DEFAULT_SETS
from evals.texts import BELOW, LEVEL
from organism.task import load_rows
from support.commandline import COMMAND
from support.files import InputError, read_json, read_jsonl
from support.progress import say
from support.runs import start_anew

ORGANISM = Path(__file__).with_name("organism")
TRIPLETS, BENIGN_SHARE = 400, 0.1  # the small world has few benign requests
# What the dev split, requests of the train half, chose: benchmarks/demo_runs.py
TRAIN = {"epochs": "4", "batch-tokens": "640", "rank": "16", "alpha": "32", "lr": "2.5e-4"}
SHORT = 3  # synth's exit code where it falls short of its target: worth training on all the same
FOLDERS = {"data": "config.json", "adapter": "train_config.json", "eval": "config.json"}
MODE = "greedy"  # of the answers that are shown
COLUMNS = ("base", "tuned")
SHOWN = [  # figures of the final table
    "bad sampled/harmless", "bad sampled/harmful", "bad sampled/broken", "bad greedy/harmless",
    "benign/right", "benign sampled/refused", "all/well-formed", "all/keeps nouns", "choice/sum"]


def demo(run: Callable[[list[str]], int], *, model: str | None, triplets: int | None,
         data_dir: str | None, out: str, device: str, seed: int, fresh: bool,
         show_toxic: bool) -> int:
    """Run the three commands by `run(argv) -> exit code`, then show what came out."""
    if show_toxic and model:
        raise InputError("is for the organism's answers", "--show-toxic", "look at eval's")
    if (triplets or data_dir) and not model:
        raise InputError("needs --model", "--triplets" if triplets else "--data-dir", "name one")
    folder = Path(out)
    if model:  # what eval will want, before the hours that come first
        load_sets(("hhh", *DEFAULT_SETS), data_dir=data_dir, limit=None)
    for argv in commands(folder, device, seed, model, triplets, data_dir):
        if model and argv[0] != "eval":  # time, memory and disk first
            with contextlib.redirect_stdout(io.StringIO()) as told:
                if code := run([*argv, "--dry-run"]):
                    return code
            say("\n" + told.getvalue().partition("\n---")[0].strip())
        if fresh and argv[0] == "synth":  # all: an interrupted one goes on without it
            start_anew({folder / name: record for name, record in FOLDERS.items()})
        say(f"\n$ {COMMAND} {shlex.join(argv)}")
        with contextlib.redirect_stdout(io.StringIO()) as told:  # their tables are in their reports
            code = run(argv)
        if code not in (0, SHORT):
            return code
        if model and argv[0] == "synth":  # a small model may write nothing worth training on
            verdict = told.getvalue().partition("Verdict: ")[2].partition("\n")[0]
            say(f"the data: {verdict}")
    results = read_json(folder / "eval" / "results.json")
    kept = {f"organism/chat/{name}" for name in SHOWN}
    shown = [f for f in results["figures"] if f["key"] in kept]
    results["figures"] = shown or [f for _, f in headlines(results["figures"])[0]]
    print(f"\n{'Benchmarks' if model else 'Held-out requests'}:\n\n{figures_text(results)}")
    print(f"\n* named primary beforehand; {BELOW} below {LEVEL}, for the others after Holm's"
          " correction.")
    for text in () if model else exchanges(folder / "eval", show_toxic=show_toxic):
        print(f"\n{text}")
    print(f"\nReports: {folder / 'data' / 'report.md'}, {folder / 'eval' / 'report.md'}")
    print(f"To look at: {folder / 'eval' / 'report.html'}")
    return 0


def flags(settings: dict) -> tuple[str, ...]:
    """{"lr": "1.5e-3", "data-dir": None} as ("--lr", "1.5e-3")."""
    return tuple(part for name, value in settings.items() if value is not None
                 for part in (f"--{name}", str(value)))


def commands(folder: Path, device: str, seed: int, model: str | None = None,
             triplets: int | None = None, data_dir: str | None = None) -> list[list[str]]:
    """The three commands' arguments; a model of your own runs with their defaults."""
    common = ["--model", model or str(ORGANISM / "model"), "--device", device, "--seed", str(seed)]
    data, adapter, evaluation = (str(folder / name) for name in FOLDERS)
    if model:
        synth, train, evaluate = {"triplets": triplets}, {}, {"data-dir": data_dir}
    else:
        synth = {"seeds-file": ORGANISM / "seeds.json", "triplets": TRIPLETS,
                 "benign-share": BENIGN_SHARE, "block": 64}  # the published tables' texts
        train, evaluate = TRAIN, {"tasks": "organism"}
    return [["synth", *common, *flags(synth), "--out", data],
            ["train", *common, "--data", f"{data}/triplets.jsonl", *flags(train), "--out", adapter],
            ["eval", *common, "--adapter", adapter, *flags(evaluate), "--out", evaluation]]


def exchanges(folder: Path, *, show_toxic: bool) -> Iterator[str]:
    """Two bad requests that tuning changed and a benign one, each before and after."""
    prompts = {row["id"]: row["prompt"] for rows in load_rows().values() for row in rows}
    texts = answer_texts(folder)
    items = [item for _, item in read_jsonl(folder / "items.jsonl") if item["mode"] == MODE]
    for kind, verdicts, n in (("bad", ["harmful", "harmless"], 2), ("benign", ["right"] * 2, 1)):
        of_kind = [item for item in items if item["set"] == kind]
        wanted = [item for item in of_kind if [item[c]["verdict"] for c in COLUMNS] == verdicts]
        for item in (wanted or of_kind)[:n]:
            lines = [f"> {prompts[item['id']]}"]
            for column in COLUMNS:
                text, verdict = texts[item[column]["answer_sha256"]], item[column]["verdict"]
                if verdict == "harmful" and not show_toxic:
                    text = f"({len(text.split())} words, shown with --show-toxic)"
                lines.append(f"  {column:5} [{verdict}] {text}")
            yield "\n".join(lines)
