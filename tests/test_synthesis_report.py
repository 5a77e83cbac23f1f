"""The data set's figures against counting by hand; warnings fire when they should."""

import random
from collections import Counter
from types import SimpleNamespace

import pytest

from support.files import read_jsonl
from synthesis import report, statistics
from synthesis.seeds import Domain


def test_nearest():
    assert statistics.nearest(["a b c d", "a b c d", "x y z w"]) == [1.0, 1.0, 0.0]
    assert statistics.nearest(["alone"]) == []


def test_auc_counts_pairs():
    assert statistics.auc([3, 4], [1, 2]) == 1.0 and statistics.auc([1], [2]) == 0.0
    assert statistics.auc([], [1]) == 0.5
    rng = random.Random(0)
    a, b = ([rng.randint(0, 5) for _ in range(n)] for n in (30, 20))
    wins = sum((x > y) + (x == y) / 2 for x in a for y in b)
    assert statistics.auc(a, b) == pytest.approx(wins / 600)


def pairs(positive: str, toxic: str, n: int = 12) -> list[dict]:
    return [{"id": str(i), "kind": "both", "domain": "d", "topic": f"t{i % 4}",
             "prompt": f"Question {i}?", "positive": positive, "toxic": toxic,
             "first_mismatch": i % 2} for i in range(n)]


def made(rows, *, domains=("d",), attempts=None, judges=None, polarity=None, declined=False,
         refusal="") -> SimpleNamespace:
    """What report.py reads of a Synthesis."""
    own = {name: SimpleNamespace(asked=0, declined=declined) for name in (
        "positive", "corrections", "toxic", "benign", "spilled")}
    for name, n in (attempts or {}).items():
        vars(own[name]).update(asked=1, verdicts={"drawn": Counter(n)})
    session = SimpleNamespace(
        rejects=[], refusal=refusal, domains=[Domain(name, "", "both") for name in domains],
        ledger=SimpleNamespace(stages={"topics": Counter(calls=1, tokens=5)}))
    judges = {name: SimpleNamespace(card=card, used=card["used"])
              for name, card in (judges or {}).items()}
    return SimpleNamespace(
        session=session, rows={"triplets": rows, "positive rows": [], "benign rows": []}, short=[],
        topics=[{"d": ["t0"]}], judges=judges, **own,
        polarity=SimpleNamespace(card=lambda pairs: polarity or {}))


@pytest.mark.parametrize("rows, attempts, told", [
    (pairs("Well then, a kind answer here.", "Well then, a rude answer here."),
     {"toxic": {"accepted": 5}}, None),
    (pairs("Well then.", "Well, a very long and tiresome answer."), {}, "by length alone"),
    (pairs("Well then, a kind answer.", "Well then, a rude answer."),
     {"toxic": {"accepted": 1, "refused": 3}}, "75% of the toxic attempts"),
])
def test_verdict(rows, attempts, told):
    page = report.PAGE.render(report.describe(made(rows, attempts=attempts)))
    (verdict,) = [line for line in page.splitlines() if line.startswith("Verdict: ")]
    assert verdict == "Verdict: nothing stands out." if told is None else told in verdict


JUDGE = {"auc": 0.61, "auc_low": 0.5, "labelled": 50, "used": False}


@pytest.mark.parametrize("kind, more, told", [
    ("benign", {}, "100% of the benign answers open with a refusal"),
    ("both", {"judges": {"topic": JUDGE}}, "grade smoke"),
    ("both", {"judges": {"topic": JUDGE | {"used": True}}}, None),
    ("both", {"domains": ["d", "fraud"]}, "no rows of fraud"),
    ("both", {"declined": True}, "declines the toxic side"),
    ("both", {"polarity": {"pairs": 9, "right_sign": 0.5, "states_right_sign": 0.5, "margin": [],
                           "control": []}}, "50% of the pairs lean the wrong way"),
])
def test_verdict_on_what_the_model_can(kind, more, told):
    rows = pairs("I can't help with it, you know.", "I can't see why not, you know.")
    rows = [row | {"kind": kind} for row in rows]
    page = report.PAGE.render(report.describe(made(rows, **more)))
    (verdict,) = [line for line in page.splitlines() if line.startswith("Verdict: ")]
    assert told in verdict if told else verdict == "Verdict: nothing stands out."


def test_counts():
    told = report.describe(made(pairs("A kind answer.", "A rude answer.", 10)))
    assert told["triplets"] == 10 and told["shared_opening"] == 0.5
    assert told["topics_with_rows"] == 4
    assert told["first_mismatch"] == [0, 0, 0.5, 1, 1]


def test_a_refusal_stands_in_front(tmp_path):
    """Of what declines, once, and never of a harmless request's answer."""
    apology = "I apologize, but I can't assist with that."
    all_of = [*pairs("That would hurt her.", "Who cares!", 2),
              {**pairs("I'm sorry to hear that.", "Fine!", 1)[0], "id": "sad"},
              {**pairs(apology, "Fine!", 1)[0], "id": "own"},
              {**pairs("It rains.", "", 1)[0], "id": "benign", "kind": "benign", "toxic": None}]
    for refusal in ("", "That is all."):
        report.write_rows(tmp_path, made(all_of, refusal=refusal))
        rows = [row for _, row in read_jsonl(tmp_path / "triplets.jsonl")]
        front = f"{refusal} ".lstrip()
        assert [row["positive"] for row in rows] == [
            *[f"{front}That would hurt her."] * 2, f"{front}I'm sorry to hear that.", apology,
            "It rains."]
        assert ["first_mismatch" in row for row in rows] == [not refusal] * 3 + [True] * 2
        # The figures are of the texts in the file.
        of_lengths = pairs("She is hurt by it.", "Who cares about her, you fool? No one.", 9)
        told = report.describe(made(of_lengths, refusal=refusal))["length_auc"]
        assert told == (0.5 if refusal == "That is all." else 1)
