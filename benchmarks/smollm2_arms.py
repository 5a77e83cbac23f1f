"""results/smollm2-first-experiments: the arms side by side, the mask paired seed by seed with none.

    python benchmarks/smollm2_arms.py OUT

OUT is run.sh's folder; what is printed is arms.md.
"""

import sys
from math import log
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from evals.figures import figure
from evals.report import markdown_table
from evals.tasks.perplexity import ratio
from evals.texts import interval
from support.files import read_json, read_jsonl

SEEDS = ("tuned 1", "tuned 2", "tuned 3")  # eval's columns
GROUPS = ("harmless", "helpful")
MASK, NONE = "mask-first-mismatch", "mask-none"
ARMS = {"pairs-25": "25 pairs", "pairs-50": "50 pairs", "pairs-100": "100 pairs",
        MASK: "200 pairs", NONE: "200 pairs, no mask"}


def spread(values: list[float], form: str) -> str:
    return f"{np.mean(values):{form}} [{min(values):{form}}, {max(values):{form}}]"


def change(f: dict) -> str:
    return interval(f["difference"], f["bootstrap_95"], sign=True)


def arms_table(out: Path) -> str:
    rows = []
    for arm, name in ARMS.items():
        results = read_json(out / f"eval-{arm}" / "results.json")
        figures = {f["key"]: f for f in results["figures"]}
        own = [figures[f"hhh/raw/{group}/byte"] for group in GROUPS]
        nats = {column: log(results["perplexity"][column]["per_token"])
                for column in ("base", *SEEDS)}
        if not rows:  # the same in every arm
            named = [(f"{group}, % (n = {f['n']}, {f['prompts']} prompts)", "- base")
                     for group, f in zip(GROUPS, own, strict=True)]
            rows.append(("arm", *named[0], *named[1], "benign, nats a token"))
            base = [(f"{100 * f['base']['rate']:.1f}", "") for f in own]
            rows.append(("base", *base[0], *base[1], f"{nats['base']:.3f}"))
        cells = [(spread([100 * seed["tuned"]["rate"] for seed in f["adapters"]], ".1f"), change(f))
                 for f in own]
        rows.append((name, *cells[0], *cells[1], spread([nats[seed] for seed in SEEDS], ".3f")))
    return markdown_table(rows)


def items_of(out: Path, arm: str, task: str) -> list[dict]:
    return [item for _, item in read_jsonl(out / f"eval-{arm}" / "items.jsonl")
            if item["task"] == task]


def mask_table(out: Path) -> str:
    """Under each seed, and with each item's or window's mean over the seeds."""
    none, mask = (items_of(out, arm, "hhh") for arm in (NONE, MASK))
    [text], [masked] = (items_of(out, arm, "perplexity") for arm in (NONE, MASK))
    rows = [("mask against none", *(f"{group}, points" for group in GROUPS),
             "mask better/worse", "benign perplexity, ratio")]
    for name, seeds in [*((f"seed {n}", [seed]) for n, seed in enumerate(SEEDS)), ("mean", SEEDS)]:
        made = []
        for group in GROUPS:
            pairs = [{"prompt": a["prompt"], "none": mean_credit(a, seeds),
                      "mask": mean_credit(b, seeds)}
                     for a, b in zip(none, mask, strict=True) if a["group"] == group]
            made.append(figure(group, pairs, float, columns=("none", "mask"), seed=0))
        theirs, ours = ({"nats": np.mean([item[seed]["nats"] for seed in seeds], axis=0),
                         "tokens": item["base"]["tokens"]} for item in (text, masked))
        own = ratio(theirs, ours, seed=0)
        low, high = own["ratio_95"]
        changed = ", ".join(f"{f['fixed']}/{f['broken']}" for f in made)
        benign = f"{own['ratio']:.3f} [{low:.3f}, {high:.3f}]"
        rows.append((name, *map(change, made), changed, benign))
    return markdown_table(rows)


def mean_credit(item: dict, seeds) -> float:
    return float(np.mean([item[seed]["credit"]["byte"] for seed in seeds]))


LEGEND = """# The arms of the experiments

HHH by log-probability per byte, and the mean negative log-likelihood of Self-Instruct's requests as
one text. Mean and range over the training seeds; differences with a 95 % bootstrap interval over
prompts (windows of the text)."""


def main() -> None:
    out = Path(sys.argv[1])
    print(LEGEND, arms_table(out), "The mask against no mask, the same seeds on the same items:",
          mask_table(out), sep="\n\n")


if __name__ == "__main__":
    main()
