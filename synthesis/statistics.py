"""Figures of texts and scores that the judges and the report take."""

import math
from collections import Counter

import numpy as np

from support.lexicon import distinct_share, grams
from synthesis.rouge import RougePool, tokens

SAMPLE = 200


def quantiles(values: list[float]) -> list[float]:
    """Least, quartiles and greatest; empty for no values."""
    return np.quantile(values, [0, 0.25, 0.5, 0.75, 1]).tolist() if values else []


def share(flags: list[bool]) -> float | None:
    return round(sum(flags) / len(flags), 3) if flags else None


def entropy(counts: Counter) -> float:
    """Bits; log2 of the number of kinds if they are equally common."""
    total = counts.total()
    return -sum(n / total * math.log2(n / total) for n in counts.values())


def distinct_n(texts: list[str], n: int) -> float:
    """Share of distinct n-grams, none of which reaches across two texts."""
    return distinct_share([gram for text in texts for gram in grams(tokens(text), n)])


def nearest(texts: list[str]) -> list[float]:
    """For each text the highest ROUGE-L F1 with another one, exactly."""
    pool = RougePool(1, 1, texts)
    return [pool.nearest(text, but=i) for i, text in enumerate(texts) if len(texts) > 1]


def sample(texts: list[str]) -> list[str]:
    """At most SAMPLE texts, evenly spread: BLEU compares each with each."""
    return texts[:: max(1, math.ceil(len(texts) / SAMPLE))]


def self_bleu(texts: list[str]) -> float | None:
    """Mean BLEU-4 of each text against all others (Zhu et al., arXiv 1802.01886); 1: all alike.
    Without a brevity penalty, which against 200 references is nearly always 1."""
    if len(texts) < 2:
        return None
    logs = np.zeros(len(texts))
    for n in range(1, 5):
        counts = [Counter(grams(tokens(text), n)) for text in texts]
        for i, count in enumerate(counts):
            others = counts[:i] + counts[i + 1:]
            matched = sum(min(times, max(other[gram] for other in others))
                          for gram, times in count.items())
            logs[i] += math.log((matched + 1) / (count.total() + 1))  # +1: no logarithm of 0
    return round(float(np.exp(logs / 4).mean()), 3)


def auc(scores_a: list[float], scores_b: list[float]) -> float:
    """P(a > b) + P(a = b) / 2; 1/2 where a side is empty."""
    a, b = np.asarray(scores_a, float), np.sort(np.asarray(scores_b, float))
    # Places left and right of the ties: their sum is twice the wins, a tie counting half.
    wins = np.searchsorted(b, a, "left") + np.searchsorted(b, a, "right")
    return float(wins.sum() / (2 * len(a) * len(b))) if len(a) and len(b) else 0.5
