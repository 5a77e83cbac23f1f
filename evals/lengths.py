"""Do answers to benign prompts get longer or shorter? Read off the answers that a run has anyway.

A model tuned on few data may take over their length with their manner; and rates of refusal, of
harm and of polarity all move with length, so that a drift is a warning about the other figures.
"""

from statistics import fmean

import numpy as np

from evals.figures import combined
from evals.stats import middle_95, resampled


def facts(items: list[dict], columns: tuple, *, seed: int) -> dict:
    """For the report: lengths of the answers to each set of benign prompts, in tokens."""
    sets, about = {}, {}
    for item in items:
        if item.get("group") == "benign" and all("tokens" in item[c] for c in columns):
            sets.setdefault(f"{item['task']}/{item['set']}", []).append(item)
    for name, chosen in sets.items():
        # of sampled answers to a prompt the mean: they are one observation
        prompts = combined(chosen, "id", lambda result: result["tokens"], fmean, columns)
        tokens = {c: np.array([prompt[c] for prompt in prompts], dtype=float) for c in columns}
        about[name] = {"n": len(chosen)}
        for column, own in tokens.items():
            about[name][column] = {"mean": own.mean(), "median": float(np.median(own)),
                                   "cut": sum(item[column]["cut"] for item in chosen)}
        for column in columns[1:] if tokens["base"].sum() else ():
            about[name][column] |= drift(tokens["base"], tokens[column], seed=seed)
    if not about:
        return {}
    return {"lengths": about, "tables": [table(about, columns)], "notes": [NOTE]}


def drift(base, tuned, *, seed: int) -> dict:  # (n,), (n,)
    """Tuned over base tokens in all, with a percentile bootstrap over prompts."""
    above, below = resampled((tuned, base), range(len(base)), np.random.default_rng(seed))
    return {"ratio": tuned.sum() / base.sum(),
            "ratio_95": middle_95(above[below > 0] / below[below > 0])}


def table(about: dict, columns: tuple) -> list[tuple[str, ...]]:
    header = ["answers to benign prompts, tokens", "n"]
    for column in columns:
        header += [f"{column} mean", "median", "cut"]
    rows = [(*header, *(f"{column} / base [95 %]" for column in columns[1:]))]
    for name, own in about.items():
        cells = [name.replace("/", " "), str(own["n"])]
        for column in columns:
            cells += [f"{own[column]['mean']:.1f}", f"{own[column]['median']:g}",
                      str(own[column]["cut"])]
        rows.append((*cells, *(ratio_text(own[column]) for column in columns[1:])))
    return rows


def ratio_text(own: dict) -> str:
    if "ratio" not in own:
        return ""
    return f"{own['ratio']:.3f} [{', '.join(f'{x:.3f}' for x in own['ratio_95'])}]"


NOTE = ("Lengths count the answer's tokens up to the limit on new tokens; where many answers are "
        "cut by it, the drift is larger than it looks.")
