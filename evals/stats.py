"""Intervals and tests for paired yes/no scores; NumPy only, nothing of ours is imported.

Sources: E. B. Wilson, JASA 22 (1927), for the interval of one rate; Q. McNemar, Psychometrika 12
(1947), in its exact binomial form, for a change between two runs on the same prompts; B. Efron,
Annals of Statistics 7 (1979), for the percentile bootstrap, here over whole prompts because
several items can share one prompt and then do not vary apart; S. Holm, Scandinavian Journal of
Statistics 6 (1979), for many tests at once."""

from math import comb, sqrt

import numpy as np

Z = 1.959964  # two-sided 95 % of a normal
DRAWS = 10_000  # percentile ends then wander by a few tenths of a point at most on 58 items
AT_ONCE = 1_000_000  # counts of a bootstrap held in memory together


def wilson(k: float, n: int) -> tuple[float, float]:
    """95 % interval of the rate k/n. k may be fractional: ties are credited 1/k of an item."""
    p = k / n
    centre = p + Z * Z / (2 * n)
    half = Z * sqrt(p * (1 - p) / n + Z * Z / (4 * n * n))
    scale = 1 + Z * Z / n
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def mcnemar(b: int, c: int) -> float:
    """Exact two-sided p of b items changed one way and c the other, were both equally likely.
    mcnemar(0, 5) is 0.0625: no test on five changed items can reach 5 %, however large n is."""
    n = b + c
    tail = sum(comb(n, i) for i in range(min(b, c) + 1))
    # whole numbers up to here: 2**n has no float beyond n = 1023, but Python divides them exactly
    return min(1.0, 2 * tail / 2**n)


def holm(ps: list[float]) -> list[float]:
    """Adjusted p-values, in the order given. The smallest of m counts m times, the next m - 1
    times, and so on; none ends up below a smaller one's. Calling those below α changes errs on any
    of them with a probability of at most α, however the tests depend on each other."""
    order = np.argsort(ps)
    counted = np.sort(ps) * np.arange(len(ps), 0, -1)
    return np.minimum(1, np.maximum.accumulate(counted))[np.argsort(order)].tolist()


def cluster_bootstrap(values, clusters, *, seed: int, draws: int = DRAWS) -> tuple[float, float]:
    """95 % percentile interval of the mean of `values`, whole clusters drawn with replacement.
    `clusters` names each value's cluster. A drawn cluster brings all its values, so the mean is a
    ratio of two sums and the number of values differs from draw to draw."""
    return middle_95(resampled_means(values, clusters, np.random.default_rng(seed), draws))


def resampled_means(values, clusters, rng: np.random.Generator, draws: int = DRAWS):  # -> (draws,)
    total, size = resampled((values, np.ones(len(values))), clusters, rng, draws)
    return total / size


def resampled(columns, clusters, rng: np.random.Generator, draws: int = DRAWS):
    """Sums of each column, (columns, draws), over whole clusters drawn with replacement. A drawn
    cluster brings its values of every column, so that paired columns stay paired."""
    _, member = np.unique(np.asarray(clusters), return_inverse=True)
    sums = [np.bincount(member, weights=values) for values in columns]
    count = len(sums[0])
    step, parts = max(1, AT_ONCE // count), []
    for start in range(0, draws, step):
        # drawing `count` clusters with replacement is one multinomial over them
        times = rng.multinomial(count, np.full(count, 1 / count), size=min(step, draws - start))
        parts.append([times @ column for column in sums])
    return np.concatenate(parts, axis=1)


def middle_95(drawn) -> tuple[float, float]:
    """The percentile interval of bootstrap draws."""
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(low), float(high)
