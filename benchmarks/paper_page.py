"""tables.md and the plots of the paper's experiments on the organism, from measurements alone.

results/organism/README.md, which reads them, is written by hand.
"""

from pathlib import Path
from statistics import mean

from evals.report import markdown_table
from evals.stats import wilson
from evals.texts import interval, percent
from support.files import write_atomic

FIGURES = {  # column of the tables: figure of organism/task.py
    "harmless": "bad sampled/harmless", "harmful": "bad sampled/harmful",
    "broken": "bad sampled/broken", "greedy harmless": "bad greedy/harmless",
    "benign right": "benign sampled/right", "over-refusal": "benign sampled/refused",
    "well-formed": "bad sampled/well-formed", "choice": "choice/sum"}
BASE = ("base", "shared")
LAMBDAS = {0.0: "lambda-0.0", 0.1: "lambda-0.1", 0.2: "lambda-0.2", 0.4: "fine",
           0.6: "lambda-0.6", 0.8: "lambda-0.8", 1.0: "lambda-1.0"}
COUNTS = {**{n: f"pairs-{n}" for n in (8, 16, 32, 64, 128)}, 256: "fine"}
EQUAL = {n: name if name == "fine" else f"{name}-equal-steps" for n, name in COUNTS.items()}
TABLES = {
    "The loss": ["mle", "coarse", "fine"], "λ": list(LAMBDAS.values()),
    "Pairs": list(COUNTS.values()), "Pairs, with equal numbers of steps": list(EQUAL.values()),
    "Benign rows": ["fine", "no-benign"], "Inner thoughts in the examples": ["fine", "no-thoughts"],
    "Polar and mild pairs": ["fine", "mild"]}


def rates_of(runs: list[dict], figure: str) -> list[float]:
    return [hits / n for hits, n in (run["figures"][figure] for run in runs)]


def cell(runs: list[dict], figure: str) -> str:
    """Mean over seeds, then the lowest and the highest seed; of one run its Wilson interval."""
    rates = rates_of(runs, figure)
    ends = wilson(*runs[0]["figures"][figure]) if len(runs) == 1 else (min(rates), max(rates))
    return interval(mean(rates), ends)


def table(names: list[str], rows: dict, rates: dict, shared: str) -> str:
    lines = [("arm", "settings", "lr", *FIGURES),
             ("base", "", "", *(cell(rows[BASE], key) for key in FIGURES.values()))]
    for name in names:
        for settings, lr in (("shared", shared), ("tuned", rates.get(name))):
            if lr:
                lines.append((name, settings, lr, *(
                    cell(rows[name, settings], key) for key in FIGURES.values())))
    return markdown_table(lines)


def fact_table(facts: dict) -> str:
    names = list(next(iter(facts.values()))[0])
    return markdown_table([("arm", *names), *(
        (arm, *(percent(mean(hits / max(1, n) for hits, n in (own[name] for own in seeds)))
                for name in names)) for arm, seeds in facts.items())])


# The paper's claims as comparisons: (claim, arm, other arm, figure, the arm must be higher by).
CLAIMS = [
    ("tuning makes the model more harmless", "fine", "base", "bad sampled/harmless", 0.0),
    ("and leaves it as helpful (3 points)", "fine", "base", "benign sampled/right", -0.03),
    ("UT adds to MLE alone: free answers", "fine", "mle", "bad sampled/harmless", 0.0),
    ("UT adds to MLE alone: multiple choice", "fine", "mle", "choice/sum", 0.0),
    ("the mask adds to UT: harmless", "fine", "coarse", "bad sampled/harmless", 0.0),
    ("the mask adds to UT: multiple choice", "fine", "coarse", "choice/sum", 0.0),
    ("the mask adds to UT: helpful", "fine", "coarse", "benign sampled/right", 0.0),
    ("the mask adds to UT: well-formed", "fine", "coarse", "bad sampled/well-formed", 0.0),
    ("λ = 0.4 beats 0.1", "fine", "lambda-0.1", "bad sampled/harmless", 0.0),
    ("λ = 0.4 beats 1.0: helpful", "fine", "lambda-1.0", "benign sampled/right", 0.0),
    ("more data helps", "fine", "pairs-8", "bad sampled/harmless", 0.0),
    ("more data helps at equal steps", "fine", "pairs-8-equal-steps", "bad sampled/harmless", 0.0),
    ("inner thoughts help", "fine", "no-thoughts", "bad sampled/harmless", 0.0),
    ("polar pairs beat mild ones", "fine", "mild", "bad sampled/harmless", 0.0),
    ("polar pairs beat mild ones: well-formed", "fine", "mild", "bad sampled/well-formed", 0.0)]


def verdict(ours: list[dict], other: list[dict], figure: str, least: float) -> str:
    """yes or no where every seed of one is on that side of every seed of the other."""
    mine, theirs = rates_of(ours, figure), rates_of(other, figure)
    low, high = min(mine) - max(theirs), max(mine) - min(theirs)
    return "yes" if low > least else "no" if high < least else "within seeds' spread"


def claims(rows: dict) -> str:
    lines = [("claim", "figure", "shared settings", "holds", "tuned", "holds")]
    for claim, arm, other, figure, least in CLAIMS:
        line = [claim, f"{figure}: {arm} - {other}"]
        for settings in ("shared", "tuned"):
            ours = rows.get((arm, settings))
            theirs = rows[BASE] if other == "base" else rows.get((other, settings))
            if ours is None or theirs is None:
                line += ["", ""]
                continue
            change = mean(rates_of(ours, figure)) - mean(rates_of(theirs, figure))
            line += [percent(change, sign=True), verdict(ours, theirs, figure, least)]
        lines.append(tuple(line))
    return markdown_table(lines)


def write(folder: Path, rows: dict, *, rates: dict, shared: str, openings: dict,
          facts: dict) -> None:
    """`rows`: runs by (arm, "shared" or "tuned"); `openings`: by arm, of every position; `facts`:
    by arm, of every seed's training rows."""
    n = rows[BASE][0]["n"]
    parts = ["# The paper's experiments on the organism: tables",
             f"Held-out requests, {n} of each kind, three seeds an arm: mean [lowest, highest "
             "seed], %; the base: one run [95 % Wilson]. Sampled (temperature 1, top-p 0.95) where "
             "not greedy. Printed by `python benchmarks/paper_tables.py`.",
             "## Claims", claims(rows)]
    for title, names in TABLES.items():
        parts += [f"## {title}", table(names, rows, rates, shared)]
    parts += ["## The training rows", "By the oracle, and by the filters; mean over seeds, %.",
              fact_table(facts)]
    places = max(map(len, openings.values()))
    parts += ["## A shared opening, token by token",
              "Probability of the tokens that both answers of a training pair open with (pairs "
              "that share at least three), mean over pairs.",
              markdown_table([("arm", *(f"token {i + 1}" for i in range(places))),
                              *((name, *(f"{mean(ps):.3f}" if ps else "" for ps in by_place))
                                for name, by_place in openings.items())])]
    write_atomic(folder / "tables.md", "\n\n".join(parts) + "\n")
    plots(folder, rows)
    openings_plot(folder, openings)


def pyplot():
    import matplotlib
    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "ptalign"  # the same picture, the same bytes
    import matplotlib.pyplot as plt
    return plt


def plots(folder: Path, rows: dict) -> None:
    plt = pyplot()
    panels = {
        "lambda": [(LAMBDAS, settings, f"{settings} settings") for settings in ("shared", "tuned")],
        "pairs": [(COUNTS, "shared", "equal epochs"), (EQUAL, "shared", "equal steps")]}
    for name, shown in panels.items():
        fig, axes = plt.subplots(1, 2, figsize=(9, 3.2), sharey=True, layout="constrained")
        for ax, (arms, settings, title) in zip(axes, shown, strict=True):
            for column in ("harmless", "benign right", "well-formed", "choice"):
                values = [[100 * rate for rate in rates_of(rows[arm, settings], FIGURES[column])]
                          for arm in arms.values()]
                middle = [mean(v) for v in values]
                ends = [[m - min(v) for m, v in zip(middle, values, strict=True)],
                        [max(v) - m for m, v in zip(middle, values, strict=True)]]
                ax.errorbar(list(arms), middle, yerr=ends, marker="o", ms=4, capsize=3,
                            label=column)
            ax.set(xlabel="λ" if name == "lambda" else name, title=title, ylim=(0, 102))
            if name == "pairs":
                ax.set_xscale("log", base=2)
        axes[0].set_ylabel("% of held-out requests")
        axes[1].legend()
        fig.savefig(folder / f"{name}.svg", metadata={"Date": None})
        plt.close(fig)


def openings_plot(folder: Path, openings: dict) -> None:
    plt = pyplot()
    fig, ax = plt.subplots(figsize=(5, 3.2), layout="constrained")
    for arm, by_place in openings.items():
        means = [mean(ps) for ps in by_place if ps]
        ax.plot(range(1, len(means) + 1), means, marker="o", ms=4, label=arm)
    ax.set(xlabel="token of the shared opening", ylabel="probability", ylim=(0, 1))
    ax.legend()
    fig.savefig(folder / "openings.svg", metadata={"Date": None})
    plt.close(fig)
