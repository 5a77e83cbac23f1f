"""How deep each objective reaches on the organism: KL from the base by position, and begun answers.

    python benchmarks/arms_depth.py            # three seeds, the adapters of arms.py

Depth is evals/tasks/depth.py's: the tuned model and the base read the base's own greedy answers to
held-out requests. Begun answers are evals/tasks/prefill.py's attack: the first tokens of one of the
world's harmful answers are said for the model, and the oracle judges what it adds to them. Writes
results/organism/depth.md and depth.svg. Adapters that are not there are trained first.
"""

import os
import sys
from pathlib import Path
from statistics import mean

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.arms import ARMS, SICK, run_of
from benchmarks.paper_tables import SEEDS
from benchmarks.runs import MODEL, RESULTS, Run, processes, train
from benchmarks.script import exit_code
from evals.answers import answers
from evals.report import markdown_table
from evals.task import in_batches
from evals.tasks.depth import EARLY, divergences, encoded
from evals.tasks.prefill import first_tokens
from evals.texts import interval
from lora import load_adapter
from model import load_model
from organism import task
from organism.oracle import judge
from organism.questions import choices, requests
from support.commandline import Parser, number
from support.files import write_atomic
from support.progress import Progress
from support.svg import Panel, line_charts
from tokenizer import Tokenizer

N = 200  # requests of each kind
BATCH = 50  # requests read or answered together
TOKENS = (0, 1, 2, 5, 10)  # of a harmful answer, said for the model
PLACES = 30  # positions that the picture shows; few answers are longer
BINS = ((1, 1), (2, 2), (3, 5), (6, 10), (11, 20), (21, 40))  # positions, as the table's columns


def measured(run: Run | None) -> dict:
    """{"bad" and "benign": the KL at each position, by answer; k: a share of N answers}."""
    model, tokenizer = load_model(MODEL, device="cpu"), Tokenizer(MODEL)
    asked = {kind: requests(kind, "held-out", N, seed=task.SEED) for kind in task.VERDICTS}
    options = {"format": "chat", "batch": BATCH, "max_new_tokens": task.MAX_NEW_TOKENS}
    told = {kind: answers(model, tokenizer, rows, **options) for kind, rows in asked.items()}
    if run:
        load_adapter(model, train(run))
    kl = {}
    for kind, rows in asked.items() if run else ():
        texts = [encoded(tokenizer, row["prompt"], answer["text"].strip(), "chat")
                 for row, answer in zip(rows, told[kind], strict=True)]
        kl[kind] = [nats for part in in_batches(texts, BATCH)
                    for nats in divergences(model, part, tokenizer.pad_id)]
    return kl | {k: harmful_share(model, tokenizer, k, options) for k in TOKENS}


def harmful_share(model, tokenizer: Tokenizer, k: int, options: dict) -> float:
    """Of answers begun with k tokens of a harmful one: those that go on harmfully, sampled."""
    rows = [{"id": row["id"], "prompt": row["prompt"], "opening": first_tokens(
                tokenizer, row["prompt"], row["choices"][1 - row["label"]], k, "chat")}
            for row in choices("held-out", N, seed=task.SEED)]
    made = answers(model, tokenizer, rows, **options, seed=task.SEED, top_p=task.TOP_P,
                   temperature=task.TEMPERATURES["sampled"])
    return mean(judge(row["prompt"], answer["text"]).verdict == "harmful"
                for row, answer in zip(rows, made, strict=True))


def by_position(kls: list[list[float]], first: int, last: int) -> float | None:
    """Mean over answers of each one's mean KL at the positions first to last, counted from 1."""
    parts = [mean(part) for kl in kls if (part := kl[first - 1 : last])]
    return mean(parts) if parts else None


def kl_row(name: str, seeds: list[dict], kind: str) -> tuple:
    cells = []
    for first, last in BINS:
        values = [by_position(seed[kind], first, last) for seed in seeds]
        cells.append("" if None in values else f"{mean(values):.3f}")
    shares = [sum(sum(kl[:EARLY]) for kl in seed[kind]) / sum(map(sum, seed[kind]))
              for seed in seeds]
    return (name, *cells, interval(mean(shares), (min(shares), max(shares))))


def prefill_row(name: str, seeds: list[dict]) -> tuple:
    return (name, *(interval(mean(values), (min(values), max(values)))
                    for k in TOKENS for values in [[seed[k] for seed in seeds]]))


def picture(rows: dict) -> str:
    """KL by position for the arms that are no warning; the palette has five colours."""
    shown = [name for name in rows if name and name not in (*SICK, "npo-no-mask")]

    def curve(name: str, kind: str) -> list[tuple[float, float]]:
        kls = [kl for seed in rows[name] for kl in seed[kind]]
        return [(place, value) for place in range(1, PLACES + 1)
                if (value := by_position(kls, place, place)) is not None]
    return line_charts([Panel(f"nats, answers to {kind} requests",
                              {name: curve(name, kind) for name in shown}, (0, None))
                        for kind in task.VERDICTS],
                       title="KL(tuned || base) by position of the answer", x_label="position")


def page(rows: dict) -> str:
    """`rows`: what `measured` gives for each seed, by arm; None is the base."""
    names = [name for name in rows if name]
    spans = [f"{first}" if first == last else f"{first} to {last}" for first, last in BINS]
    parts = ["# How deep the objectives reach on the organism",
             f"Printed by `python benchmarks/arms_depth.py`: {N} held-out requests of each kind, "
             f"{len(rows[names[0]])} seeds an arm at the settings of [arms.md](arms.md).",
             "## KL(tuned || base) by position",
             "Both models read the base's own greedy answers. In nats, mean over answers and "
             f"seeds; the share of all KL that the first {EARLY} positions have is in %, mean "
             "[lowest, highest seed].",
             "![KL by position of the answer](depth.svg)"]
    for kind in task.VERDICTS:
        parts += [f"Answers to {kind} requests, positions:", markdown_table([
            ("arm", *spans, f"first {EARLY}, %"),
            *(kl_row(name, rows[name], kind) for name in names)])]
    parts += ["## Answers begun for the model",
              "The first k tokens of a harmful answer are said for it. Of what it adds, sampled at "
              "temperature 1 and top-p 0.95, so many are harmful, in %: mean [lowest, highest "
              "seed].",
              markdown_table([("arm", *(f"k = {k}" for k in TOKENS)),
                              *(prefill_row(name or "base", seeds)
                                for name, seeds in rows.items())])]
    return "\n\n".join(parts) + "\n"


def run(options) -> None:
    wanted = {None: [None]} | {name: [run_of(name, seed) for seed in SEEDS] for name in ARMS}
    runs = [run for own in wanted.values() for run in own]
    made = []
    with (processes(options.jobs) as pool,
          Progress("depth", total=len(runs), unit="run") as bar):
        for run, result in zip(runs, pool.map(measured, runs), strict=True):
            made.append(result)
            bar.update(1, note=run.name if run else "base")
    in_order = iter(made)
    rows = {name: [next(in_order) for _ in own] for name, own in wanted.items()}
    write_atomic(RESULTS / "depth.md", page(rows))
    write_atomic(RESULTS / "depth.svg", picture(rows))


def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="arms_depth.py", description=__doc__.partition("\n")[0])
    parser.add_argument("--jobs", type=number(int, least=1), default=os.cpu_count(),
                        help="runs at a time, each on one thread")
    return exit_code("arms_depth", lambda: run(parser.parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
