"""The data set's figures against counting by hand and a naive BLEU; warnings fire when they should.
"""

import math
import random
from collections import Counter

import pytest

from support.lexicon import grams
from synthesis import report

TEXTS = ["the cat sat on the mat today", "the cat sat on the old mat", "a dog ran through the park",
         "a dog ran through the park", "kettle"]


def naive_self_bleu(texts: list[str]) -> float:
    """Clipped n-gram precisions against all other texts, one text and one n at a time."""
    scores = []
    for i, text in enumerate(texts):
        logs = []
        for n in range(1, 5):
            own = Counter(grams(text.split(), n))
            others = [Counter(grams(other.split(), n)) for j, other in enumerate(texts) if j != i]
            matched = sum(min(times, max(other[g] for other in others)) for g, times in own.items())
            logs.append(math.log((matched + 1) / (own.total() + 1)))
        scores.append(math.exp(sum(logs) / 4))
    return sum(scores) / len(scores)


@pytest.mark.parametrize("texts", [TEXTS, TEXTS[:2], [*TEXTS, "the the the cat the"]])
def test_self_bleu(texts):
    assert report.self_bleu(texts) == pytest.approx(naive_self_bleu(texts), abs=1e-3)


def test_alike_and_apart():
    assert report.self_bleu(["one two three four five"] * 3) == 1.0
    assert report.self_bleu(["only one text"]) is None
    assert report.nearest(["a b c d", "a b c d", "x y z w"]) == [1.0, 1.0, 0.0]
    assert report.nearest(["alone"]) == []


def test_entropy():
    assert report.entropy(Counter("aabb")) == 1.0 and report.entropy(Counter("aaaa")) == 0.0
    assert report.entropy(Counter("abcdefgh")) == 3.0


def test_distinct_n():
    assert report.distinct_n(["a b a b", "a b"], 1) == pytest.approx(2 / 6)
    assert report.distinct_n(["a b a b", "a b"], 2) == pytest.approx(2 / 4)  # none across texts
    assert report.distinct_n([], 2) == report.distinct_n(["a"], 2) == 1.0


def test_auc_counts_pairs():
    assert report.auc([3, 4], [1, 2]) == 1.0 and report.auc([1], [2]) == 0.0
    assert report.auc([], [1]) == 0.5
    rng = random.Random(0)
    a, b = ([rng.randint(0, 5) for _ in range(n)] for n in (30, 20))
    wins = sum((x > y) + (x == y) / 2 for x in a for y in b)
    assert report.auc(a, b) == pytest.approx(wins / 600)


def test_sample_is_spread():
    texts = [str(i) for i in range(1000)]
    assert len(report.sample(texts)) == report.SAMPLE
    assert report.sample(texts)[1] == "5" and report.sample(texts[:10]) == texts[:10]


def pairs(positive: str, toxic: str, n: int = 12) -> list[dict]:
    return [{"id": str(i), "domain": "d", "topic": f"t{i % 4}", "prompt": f"Question {i}?",
             "positive": positive, "toxic": toxic, "first_mismatch": i % 2} for i in range(n)]


def card(rows, **attempts) -> dict:
    return report.describe(report.Dataset(
        rows=rows, topics={"d": ["t0"]}, items=[], constraints={}, rejects=[], short=[],
        verdicts={side: Counter(count) for side, count in attempts.items()},
        calls={"topics": Counter(calls=1, tokens=5)}))


@pytest.mark.parametrize("rows, attempts, told", [
    (pairs("Well then, a kind answer here.", "Well then, a rude answer here."),
     {"toxic": {"accepted": 5}}, None),
    (pairs("Well then.", "Well, a very long and tiresome answer."), {}, "by length alone"),
    (pairs("Yes, a kind answer.", "Pah, a rude answer."), {}, "by first word alone"),
    (pairs("I'm sorry, I can't help with that.", "I'm sorry, you are so very dull today."), {},
     "open with a refusal"),
    (pairs("Well then, a kind answer.", "Well then, a rude answer."),
     {"toxic": {"accepted": 1, "refused": 3}}, "75% of the toxic attempts"),
])
def test_verdict(rows, attempts, told):
    page = report.PAGE.render(card(rows, **attempts))
    (verdict,) = [line for line in page.splitlines() if line.startswith("Verdict: ")]
    assert verdict == "Verdict: nothing stands out." if told is None else told in verdict


def test_halves_share_the_domains():
    """Rows go round two domains, each with first words of its own: the halves must hold both."""
    rows = [{"prompt": f"Question {i}?", "positive": f"{'YS'[i % 2]}es {i}.",
             "toxic": f"{'PB'[i % 2]}ah {i}."} for i in range(40)]
    assert report.shortcuts(rows)["first_word"] == 1.0


def test_counts():
    told = card(pairs("A kind answer.", "A rude answer.", 10))
    assert told["triplets"] == 10 and told["shared_opening"] == 0.5
    assert told["topics_below_3_rows"] == 2 and told["topics_with_rows"] == 4
    assert told["first_mismatch"] == [0, 0, 0.5, 1, 1]
