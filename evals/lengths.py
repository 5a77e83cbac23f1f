"""Do answers to benign prompts get longer or shorter? Read off the answers that a run has anyway.

A model tuned on few data may take over their length with their manner; and rates of refusal, of
harm and of polarity all move with length, so that a drift is a warning about the other figures.
"""

from statistics import fmean

import numpy as np

from evals.figures import combined, grouped
from evals.stats import middle_95, resampled
from evals.task import Comparison
from evals.texts import written


def facts(items: list[dict], comparison: Comparison) -> dict:
    """For the report: lengths of the answers to each set of benign prompts, in tokens."""
    columns = comparison.columns
    answered = [item for item in items if item.get("group") == "benign"
                and all("tokens" in item[column] for column in columns)]
    if not answered:
        return {}
    sets = grouped(answered, lambda item: f"{item['task']}/{item['set']}")
    lengths = {name: lengths_of_set(of_set, comparison) for name, of_set in sets.items()}
    return {"lengths": lengths, **written("lengths", lengths=lengths, columns=columns)}


def lengths_of_set(items: list[dict], comparison: Comparison) -> dict:
    """{"n", column: {"mean", "median", "cut"}}, tuned columns with their ratio to the base.

    Its interval is a percentile bootstrap over prompts.
    """
    # of sampled answers to a prompt the mean: they are one observation
    prompts = combined(items, "id", lambda result: result["tokens"], fmean, comparison.columns)
    lengths, base = {"n": len(items)}, np.array([prompt["base"] for prompt in prompts], dtype=float)
    for column in comparison.columns:
        tokens = np.array([prompt[column] for prompt in prompts], dtype=float)
        lengths[column] = {"mean": tokens.mean(), "median": float(np.median(tokens)),
                           "cut": sum(item[column]["cut"] for item in items)}
        if column != "base" and base.sum():
            above, below = resampled((tokens, base), range(len(base)),
                                     np.random.default_rng(comparison.seed))
            lengths[column] |= {"ratio": tokens.sum() / base.sum(),
                                "ratio_95": middle_95(above[below > 0] / below[below > 0])}
    return lengths
