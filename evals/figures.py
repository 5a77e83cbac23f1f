"""Figures: one line of the table for a group of items, base and tuned on the same items.

The columns of a run are "base" and, with one adapter, "tuned". Several adapters (training seeds of
one recipe) are "tuned 1", "tuned 2", ...: each is compared with the base by itself, and a figure
has their mean and range. Counts of several adapters are never pooled: their items are the same."""

from collections import Counter
from collections.abc import Callable
from operator import itemgetter
from statistics import fmean

import numpy as np

from evals.stats import cluster_bootstrap, holm, mcnemar, wilson


def columns_of(adapter: str | list[str] | None) -> tuple[str, ...]:
    """The columns of a run; `adapter` is what its settings name."""
    if isinstance(adapter, list):
        return ("base", *(f"tuned {number}" for number in range(1, len(adapter) + 1)))
    return ("base", "tuned") if adapter else ("base",)


def mark_trained_on(items: list[dict], known: list[set[str] | None]) -> dict:
    """Set "trained_on" in the items whose prompt any adapter was trained on, be it the behaviour or
    the whole text of an attack. `known` has each adapter's `contamination.trained_on`. Returns
    {"known": of every adapter?, "known_of": number of adapters, "sets": {set: {"prompts": n,
    "trained_on": k}}}."""
    trained_on = [prompts for prompts in known if prompts is not None]
    seen, sets = set().union(*trained_on), {}
    for item in items:
        if trained_on and "prompt" in item:
            if not seen.isdisjoint((item["prompt"], item.get("asked"))):
                item["trained_on"] = True
            sets.setdefault(item["set"], []).append(item)
    return {"known": 0 < len(trained_on) == len(known), "known_of": len(trained_on),
            "sets": {name: {"prompts": len({item["prompt"] for item in own}),
                            "trained_on": len(prompts_trained_on(own))}
                     for name, own in sets.items()}}


def prompts_trained_on(items: list[dict]) -> set[str]:
    return {item["prompt"] for item in items if "trained_on" in item}


def grouped(items: list[dict], key: str | Callable) -> dict[str, list[dict]]:
    """Items by a field or by what `key` makes of each, in the order of appearance."""
    groups, key_of = {}, key if callable(key) else itemgetter(key)
    for item in items:
        groups.setdefault(key_of(item), []).append(item)
    return groups


def by_group(rows: list[dict]) -> dict[str, list[dict]]:
    """Rows by their "group", in the order of appearance, then "all" where there are several."""
    groups = grouped(rows, "group")
    return {**groups, "all": rows} if len(groups) > 1 else groups


def combined(items: list[dict], by: str, value, combine, columns: tuple) -> list[dict]:
    """One item for each `by`: under each column, `combine` of its items' values. Several answers to
    one prompt do not vary apart, and so are one observation."""
    return [{"prompt": group[0]["prompt"],
             **({"trained_on": True} if prompts_trained_on(group) else {}),
             **{column: combine([value(item[column]) for item in group]) for column in columns}}
            for group in grouped(items, by).values()]


def figure(key: str, items: list[dict], value, *, columns, seed, higher_is_better=True,
           by: str | None = None, combine=fmean) -> dict:
    """One line of the table: the mean of `value` in each column, and the paired change. Items that
    share `by` are one observation. With several adapters "adapters" has what one alone would have,
    for each; "tuned" and "difference" are then means, and the interval is a bootstrap of the mean
    over prompts."""
    if by is not None:
        items, value = combined(items, by, value, combine, columns), float
    base, *tuned = ([value(item[column]) for item in items] for column in columns)
    clusters = [item["prompt"] for item in items]
    line = {"key": key, "n": len(items), "prompts": len(set(clusters)),
            "higher_is_better": higher_is_better, "base": rate(base)}
    if seen := prompts_trained_on(items):
        line["trained_on"] = len(seen)
    changes = [paired(base, values, clusters, seed, higher_is_better) for values in tuned]
    if len(changes) < 2:
        return line | (changes[0] if changes else {})
    rates = [change["tuned"]["rate"] for change in changes]
    differences = [change["difference"] for change in changes]
    # a drawn prompt brings its items under every adapter: one difference an item, their mean
    means = np.mean(tuned, axis=0) - base
    return line | {
        "tuned": {"rate": fmean(rates), "range": [min(rates), max(rates)]},
        "difference": float(means.mean()),
        "difference_range": [min(differences), max(differences)],
        "bootstrap_95": cluster_bootstrap(means, clusters, seed=seed), "adapters": changes}


def rate(values: list[float]) -> dict:
    total, n = sum(values), len(values)
    return {"sum": total, "rate": total / n, "wilson_95": wilson(total, n)}


def paired(base: list[float], tuned: list[float], clusters: list[str], seed: int,
           higher_is_better: bool) -> dict:
    """The change from the base to one adapter, item by item."""
    differences = [t - b for b, t in zip(base, tuned, strict=True)]
    up, down = sum(d > 0 for d in differences), sum(d < 0 for d in differences)
    fixed, broken = (up, down) if higher_is_better else (down, up)
    # Items of one prompt do not vary apart: a prompt counts once, by where its items go together.
    by_prompt = Counter()
    for prompt, difference in zip(clusters, differences, strict=True):
        by_prompt[prompt] += difference
    changed = [total for total in by_prompt.values() if abs(total) > 1e-9]  # 1/3 - 1/3 is not 0
    risen = sum(total > 0 for total in changed)
    return {"tuned": rate(tuned), "difference": sum(differences) / len(differences),
            "bootstrap_95": cluster_bootstrap(differences, clusters, seed=seed),
            "fixed": fixed, "broken": broken, "p": mcnemar(risen, len(changed) - risen)}


def changes_of(figure: dict) -> list[dict]:
    """What `paired` says of each adapter: nothing where only the base was measured."""
    return figure.get("adapters", [figure] if "p" in figure else [])


def adjust(figures: list[dict], primary: str | None) -> None:
    """Set "p_holm" beside every "p", which is Holm's over all figures but the primary one. The
    primary figure was named beforehand and stands alone: only its own adapters are a family."""
    for alone in (True, False):
        changes = [change for f in figures if (f["key"] == primary) == alone
                   for change in changes_of(f)]
        for change, p in zip(changes, holm([change["p"] for change in changes]), strict=True):
            change["p_holm"] = p
