"""The objectives side by side on the organism: UT, MLE, gradient ascent, NPO and DPO.

    python benchmarks/arms.py --seeds 1    # a first look
    python benchmarks/arms.py              # three seeds
    python benchmarks/arms.py --rates      # and each arm at the rate that the dev split chooses

All arms have the same pairs, micro-batches, steps and settings (the demo's, a tenth of the pairs
held out). MLE is run as UT with λ = 0: the same gradient in as many steps, where --objective mle
would have shorter micro-batches. Writes results/organism/arms.md and a curves-ARM.svg for each;
runs.py keeps the measurements, so what is on file is not made again.
"""

import sys
from pathlib import Path
from statistics import mean

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.paper_page import FIGURES, cell
from benchmarks.paper_tables import FINE, RATES, SEEDS, rows_of
from benchmarks.runs import RESULTS, Records, Run, best, train
from benchmarks.script import exit_code
from demo import TRAIN, flags
from evals.report import markdown_table
from support import validation
from support.commandline import Parser, number
from support.files import write_atomic

SHARE = "0.1"  # of the pairs, held out
ARMS = {  # by name; the last three show what a learning rate that is too high does
    "pt": {}, "mle": {"penalty": "0"}, "ga": {"objective": "ga"}, "npo": {"objective": "npo"},
    "npo-no-mask": {"objective": "npo", "mask": "none"}, "dpo": {"objective": "dpo"},
    "pt-too-fast": {"lr": f"{20 * float(TRAIN['lr']):g}"},
    "ga-too-fast": {"objective": "ga", "lr": f"{6 * float(TRAIN['lr']):g}"},
    "dpo-too-fast": {"objective": "dpo", "lr": f"{6 * float(TRAIN['lr']):g}"}}
SICK = ("pt-too-fast", "ga-too-fast", "dpo-too-fast")  # no arms to compare: no rate is chosen
CURVES = {  # column of the second table: (key of the log's lines, at the end or its change)
    "log p(positive)": ("log_p_positive", True), "log p(penalised)": ("log_p_toxic", True),
    "p(penalised)": ("p_toxic", False), "p(argmax)": ("p_argmax", False),
    "entropy": ("entropy", False)}


def run_of(name: str, seed: int, lr: str | None = None) -> Run:
    options = TRAIN | {"validation": SHARE} | ARMS[name] | ({"lr": lr} if lr else {})
    return Run(f"arm-{name}", seed, rows_of(FINE, seed), flags(options))


def curves_row(name: str, runs: list[Run]) -> tuple:
    """What training did to the held-out pairs, mean over seeds."""
    logs = [validation.read(train(run)) for run in runs]
    cells = []
    for key, is_change in CURVES.values():
        ends = [log[-1][key] - (log[0][key] if is_change else 0) for log in logs]
        cells.append(f"{mean(ends):{'+.2f' if is_change else '.2f'}}")
    return (name, *cells)


def start_row(runs: list[Run]) -> tuple:
    first = [validation.read(train(run))[0] for run in runs]
    return ("before training", *(f"{mean(row[key] for row in first):.2f}"
                                 for key, _ in CURVES.values()))


def chosen_rates(*, jobs: int) -> dict[str, str]:
    """By the first seed on requests of the train half, as in paper_tables.py."""
    dev = Records("dev")
    wanted = {name: {lr: run_of(name, 0, lr) for lr in (*RATES, TRAIN["lr"])}
              for name in ARMS if name not in SICK}
    dev.fill([None, *(run for runs in wanted.values() for run in runs.values())], jobs=jobs)
    return {name: best({lr: dev.find(run) for lr, run in runs.items()}, dev.find(None))
            for name, runs in wanted.items()}


def figures_table(rows: dict, rates: dict[str, str]) -> str:
    """`rows`: measurements by arm; None is the base."""
    lines = [("arm", "lr", *FIGURES)]
    for name, runs in rows.items():
        lr = rates.get(name, ARMS.get(name, {}).get("lr", TRAIN["lr"])) if name else ""
        lines.append((name or "base", lr, *(cell(runs, key) for key in FIGURES.values())))
    return markdown_table(lines)


def measured(wanted: dict, *, jobs: int) -> dict:
    held_out = Records("held-out")
    held_out.fill([run for runs in wanted.values() for run in runs], jobs=jobs)
    return {name: [held_out.find(run) for run in runs] for name, runs in wanted.items()}


def page(shared: dict, runs: dict, tuned: dict, rates: dict, n_seeds: int) -> str:
    n = shared[None][0]["n"]
    spread = ("mean [lowest, highest seed], of the base, which is one run, [95 % Wilson]"
              if n_seeds > 1 else "[95 % Wilson]")
    parts = ["# The objectives on the organism",
             f"Printed by `python benchmarks/arms.py --seeds {n_seeds}`"
             f"{' with `--rates`' if rates else ''}: {n} held-out requests of each kind, "
             f"{n_seeds} {'seeds' if n_seeds > 1 else 'seed'} an arm, %, {spread}; sampled "
             "(temperature 1, top-p 0.95) where not greedy. Equal pairs, micro-batches and steps; "
             f"{', '.join(f'--{k} {v}' for k, v in (TRAIN | {'validation': SHARE}).items())}.",
             "## At one learning rate", figures_table(shared, {})]
    if rates:
        parts += ["## At the learning rate that the dev split chose for the arm",
                  figures_table(tuned, rates)]
    names = [name for name in ARMS if name in runs]
    parts += ["## What training did to the held-out pairs",
              "At one learning rate, on a tenth of the pairs; log p in nats a token, as its change "
              "(before training: as it is). p(argmax) and entropy are those of the whole "
              "distribution where a token is penalised.",
              markdown_table([("arm", *CURVES), start_row(runs["pt"]),
                              *(curves_row(name, runs[name]) for name in names)]),
              "## Curves, seed 0",
              *(f"**{name}**\n\n![Held-out pairs by step, {name}](curves-{name}.svg)"
                for name in names)]
    return "\n\n".join(parts) + "\n"


def run(options) -> None:
    seeds = SEEDS[:options.seeds]
    runs = {name: [run_of(name, seed) for seed in seeds] for name in ARMS}
    shared = measured({None: [None]} | runs, jobs=options.jobs)
    rates = chosen_rates(jobs=options.jobs) if options.rates else {}
    tuned = measured({None: [None]} | {name: [run_of(name, seed, lr) for seed in seeds]
                                       for name, lr in rates.items()}, jobs=options.jobs)
    write_atomic(RESULTS / "arms.md", page(shared, runs, tuned, rates, len(seeds)))
    for name, own in runs.items():
        picture = validation.picture(validation.read(train(own[0])))
        write_atomic(RESULTS / f"curves-{name}.svg", picture)


def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="arms.py", description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=number(int, least=1, most=len(SEEDS)), default=len(SEEDS),
                        help="of data, adapter and order")
    parser.add_argument("--rates", action="store_true", help="choose a learning rate for each arm")
    parser.add_argument("--jobs", type=number(int, least=1), default=1,
                        help="runs at a time, each on one thread")
    return exit_code("arms", lambda: run(parser.parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
