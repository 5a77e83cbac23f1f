"""Figures of texts and scores that the judges and the report take."""

import numpy as np

from synthesis.rouge import RougePool


def quantiles(values: list[float]) -> list[float]:
    """Least, quartiles and greatest; empty for no values."""
    return np.quantile(values, [0, 0.25, 0.5, 0.75, 1]).tolist() if len(values) else []


def share(flags: list[bool]) -> float | None:
    return round(sum(flags) / len(flags), 3) if flags else None


def nearest(texts: list[str]) -> list[float]:
    """For each text the highest ROUGE-L F1 with another one, exactly."""
    pool = RougePool(1, 1, texts)
    return [pool.nearest(i) for i in range(len(texts)) if len(texts) > 1]


def auc(scores_a: list[float], scores_b: list[float]) -> float:
    """P(a > b) + P(a = b) / 2; 1/2 where a side is empty."""
    a, b = np.asarray(scores_a, float), np.sort(np.asarray(scores_b, float))
    # Places left and right of the ties: their sum is twice the wins, a tie counting half.
    wins = np.searchsorted(b, a, "left") + np.searchsorted(b, a, "right")
    return float(wins.sum() / (2 * len(a) * len(b))) if len(a) and len(b) else 0.5
