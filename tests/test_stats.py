"""stats.py: published constants, limits, coverage against a simulated truth (CPU)."""

from math import comb

import numpy as np
import pytest

from evals import stats
from evals.stats import cluster_bootstrap, mcnemar, wilson


@pytest.mark.parametrize("k, n, low, high", [
    (43, 58, 0.61623, 0.83654),  # HHH harmless, the paper's base
    (57, 58, 0.90859, 0.99695),  # and PT-ALIGN
    (0, 100, 0.0, 0.0370),
    (100, 100, 0.9630, 1.0),
])
def test_wilson(k, n, low, high):
    assert wilson(k, n) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize("b, c, p", [
    (1, 15, 5.188e-4), (15, 1, 5.188e-4), (0, 14, 1.2207e-4), (0, 0, 1.0), (1, 0, 1.0),
    (0, 5, 0.0625), (0, 6, 0.03125), (7, 7, 1.0),
])
def test_mcnemar(b, c, p):
    assert mcnemar(b, c) == pytest.approx(p, rel=1e-3)


def test_mcnemar_of_large_counts():
    # 2**3000 is no float, and the normal approximation is good here: z = 200/sqrt(3000)
    assert mcnemar(1400, 1600) == pytest.approx(2.8e-4, rel=0.1)
    tail = sum(comb(501, i) for i in range(231))
    assert mcnemar(230, 271) == 2 * tail / 2**501


def test_bootstrap_repeats_with_its_seed():
    values, clusters = [0, 1, 1, 0, 1, 1], ["a", "a", "b", "b", "c", "d"]
    first = cluster_bootstrap(values, clusters, seed=3)
    assert cluster_bootstrap(values, clusters, seed=3) == first
    order = [5, 2, 0, 4, 1, 3]  # the order of items is no information
    turned = [values[i] for i in order], [clusters[i] for i in order]
    assert cluster_bootstrap(*turned, seed=3) == first


def test_bootstrap_is_the_same_however_many_draws_are_held_at_once(monkeypatch):
    values, clusters = np.random.default_rng(0).random(60), np.arange(60) % 23
    whole = cluster_bootstrap(values, clusters, seed=1)
    for count in (1, 23 * 7, 10**9):
        monkeypatch.setattr(stats, "AT_ONCE", count)
        assert cluster_bootstrap(values, clusters, seed=1, draws=stats.DRAWS) == pytest.approx(
            whole, rel=1e-12)


def test_bootstrap_moves_whole_clusters():
    # one cluster holds every 1: alone it gives 1, left out 0, so anything in [0, 1] can come
    low, high = cluster_bootstrap([1] * 10 + [0] * 10, ["a"] * 10 + ["b"] * 10, seed=0)
    assert (low, high) == (0, 1)
    low, high = cluster_bootstrap([1] * 10 + [0] * 10, range(20), seed=0)
    assert 0.2 < low < 0.4 and 0.6 < high < 0.8


def test_the_middle_95_leaves_as_much_on_either_side():
    drawn = np.random.default_rng(0).permutation(1001) / 10
    assert stats.middle_95(drawn) == pytest.approx((2.5, 97.5))


def test_coverage():
    """95 % intervals hold the truth in 95 % of simulated data sets, about: 300 of each kind."""
    rng, truth, runs = np.random.default_rng(0), 0.7, 300
    hits = {"wilson": 0, "items": 0, "clusters": 0, "clusters as items": 0}
    for run in range(runs):
        k = rng.binomial(58, truth)
        low, high = wilson(k, 58)
        hits["wilson"] += low <= truth <= high
        # 40 prompts of 4 items that always agree: the data hold 40 facts, not 160
        values = np.repeat(rng.random(40) < truth, 4)
        for name, clusters in (("clusters", np.repeat(np.arange(40), 4)),
                               ("clusters as items", np.arange(160))):
            low, high = cluster_bootstrap(values, clusters, seed=run, draws=400)
            hits[name] += low <= truth <= high
        values = rng.random(60) < truth
        low, high = cluster_bootstrap(values, np.arange(60), seed=run, draws=400)
        hits["items"] += low <= truth <= high
    share = {name: count / runs for name, count in hits.items()}
    assert share["wilson"] > 0.92 and share["items"] > 0.90 and share["clusters"] > 0.89
    assert share["clusters as items"] < 0.8  # what goes wrong when prompts are not kept together
