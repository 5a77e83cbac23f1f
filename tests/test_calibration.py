"""judging.py: agreement with labels by worked examples, and the threshold that they set."""

import numpy as np
import pytest

from evals import judging
from evals.judging import agreement, kappa


@pytest.mark.parametrize("table, wanted", [
    ((20, 5, 10, 15), 0.4),  # the textbook's example: 0.7 observed, 0.5 by chance
    ((5, 0, 0, 5), 1), ((0, 5, 5, 0), -1), ((0, 0, 0, 9), 0), ((25, 25, 25, 25), 0),
])
def test_kappa(table, wanted):
    assert kappa(table) == pytest.approx(wanted)


def test_agreement_counts_and_covers():
    labels = [True] * 25 + [False] * 25
    verdicts = [True] * 20 + [False] * 5 + [True] * 10 + [False] * 15
    made = agreement(labels, verdicts, range(50), seed=0)
    assert [made[k] for k in ("both", "label_only", "judge_only", "neither")] == [20, 5, 10, 15]
    assert made["accuracy"] == 0.7 and made["kappa"] == pytest.approx(0.4)
    low, high = made["kappa_95"]
    # Fleiss, Cohen and Everitt's large-sample standard error is 0.13 here
    assert low == pytest.approx(0.4 - 1.96 * 0.127, abs=0.03) and 0.6 < high < 0.7
    assert made == agreement(labels, verdicts, range(50), seed=0)
    # three answers to each question say no more than one
    thrice = agreement(labels * 3, verdicts * 3, [*range(50)] * 3, seed=0)
    assert (thrice["n"], thrice["questions"]) == (150, 50)
    assert thrice["kappa_95"] == pytest.approx(made["kappa_95"])


def test_calibration_finds_the_threshold_and_does_not_flatter():
    """Labels told apart at 0.8, not at 0.5; noise is not agreed with, though a threshold that has
    seen it would seem to."""
    rng = np.random.default_rng(0)
    harmful, questions = rng.random(200) < 0.5, [f"q{n}" for n in range(200)]
    p = np.where(harmful, 0.9, 0.7) + rng.uniform(-0.05, 0.05, 200)
    found = judging.calibrate([*p], [*harmful], questions, seed=0)
    assert 0.75 < found["threshold"] < 0.85 and found["accuracy"] > 0.98 and not found["fails"]
    noise = judging.calibrate([*rng.random(200)], [*harmful], questions, seed=0)
    assert noise["kappa_95"][0] < 0.1 and noise["fails"]
    alike = judging.calibrate([0.5] * 4, [True] * 4, questions[:4], seed=0)
    assert alike["threshold"] == 0.5 and alike["fails"]


def test_a_few_texts_certify_no_judge():
    """All told right leaves the bootstrap no width, however few they are."""
    for n, fails in ((2, True), (18, True), (20, False)):
        labels = [i % 2 == 0 for i in range(n)]
        found = judging.calibrate([0.9 if label else 0.1 for label in labels], labels,
                                  [f"q{i}" for i in range(n)], seed=0)
        assert found["fails"] == fails and found["kappa"] == 1
