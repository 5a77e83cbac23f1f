"""judges.py, gates.py: where the cuts of calibration lie, and measures that cannot be taken.

The model's numbers are written down: `measure` of a ledger that asks nobody.
"""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from test_synth import long_folder  # noqa: F401 (a fixture)

from support.files import read_json
from synthesis.answers import Answers, Draft, answer_sampling, build_decks
from synthesis.gates import MOST_LEAN, Fit, Polarity, Reluctance
from synthesis.judges import LABELLED, Judge
from synthesis.lists import Item
from synthesis.seeds import read_seeds
from synthesis.session import Session
from tokenizer import Tokenizer

RAW = read_json(LABELLED)
ITEM = Item("i/000000", "privacy", "letters", "May I read her letters?", "both")


@pytest.fixture
def measured(long_folder):
    """measured(of): a session where `of` says what a call's measurement is."""
    def session(of):
        ledger = SimpleNamespace(measures=True, measure=lambda calls, setting, stage: [
            of(call) for call in calls])
        return Session(Tokenizer(long_folder), read_seeds(), ledger, target=64)
    return session


def test_cuts_of_a_judge(measured):
    """Of 21 yes one is below `low`, of 21 no two are above `high`, half of the yes reach `sure`."""
    judge = Judge(measured(None), "inducing", [])
    odds = {f"{side} {i}": start + i / 10 for side, start in (("bad", 0.5), ("good", -1))
            for i in range(21)}
    judge.odds = lambda texts: [odds[text] for text in texts]
    judge.calibrate([(text, text.startswith("bad")) for text in odds])
    assert judge.used and (judge.low, judge.high, judge.sure) == pytest.approx((0.6, 0.8, 1.5))


def test_hardly_any_harmless_request_passes_for_reluctance(measured):
    harmful = {r["text"]: r["harmful"] for r in RAW["requests"]}

    def of(call):
        place = next(i for i, text in enumerate(harmful) if text in call.prompt)
        return {"logprob": place / 100 + 5 * harmful[[*harmful][place]]}

    own = Reluctance(measured(of))
    harmless = own.odds([text for text, bad in harmful.items() if not bad])
    assert own.used and 0 < np.mean([odds >= own.high for odds in harmless]) <= 0.1


def test_answers_fit_their_own_requests(measured):
    """Behind its own request an answer is likelier than behind another one, or about nothing."""
    pairs = [(a["request"], a["answer"]) for a in RAW["answers"]]
    own = Fit(measured(lambda call: {"logprob": -1.0 - 2 * (not any(
        asked in call.prompt and call.answer.endswith(said) for asked, said in pairs))}))
    assert own.used and own.card["auc"] == 1
    assert own.scores([pairs[0], (pairs[0][0], pairs[1][1])]) == [2, 0]


@pytest.mark.parametrize("gain, reason", [(0.24, "beside-the-point"), (0.26, None)])
def test_an_answer_gains_enough_from_its_request(measured, gain, reason):
    own = Answers(measured(None), "positive", [], None, lambda exchanges: [gain] * len(exchanges))
    drafts = {ITEM: Draft("", "They are hers.", None)}
    own._measure_fit(drafts)
    assert drafts[ITEM].reason == reason


@pytest.mark.parametrize("kind", ["positive", "toxic", "plain", "claim"])
def test_later_attempts_are_warmer(kind):
    first, *later = (answer_sampling(read_seeds(), kind, attempt) for attempt in range(3))
    for own in later:
        assert own == replace(first, temperature=first.temperature + 0.1)


def test_what_the_context_does_not_hold_passes(measured):
    session = measured(lambda call: {})
    assert Fit.scores(SimpleNamespace(session=session), [("May I?", "Ask her.")]) == [np.inf]
    assert Reluctance.odds(SimpleNamespace(session=session), ["May I?"]) == [0]
    assert Judge(session, "inducing", []).odds(["May I?"]) == [0]


# ---- pairs ----


def test_a_toxic_answer_leans_further_than_its_positive(measured):
    polarity = Polarity(measured(None), {})
    polarity._measure = lambda *_: None
    for good, milder in ((MOST_LEAN - 0.5, {ITEM}), (MOST_LEAN - 0.4, set())):
        polarity.leans = {"positive": {ITEM.id: good}, "toxic": {ITEM.id: MOST_LEAN - 0.5}}
        assert polarity.milder({ITEM.id: "Ask her."}, {ITEM: "Who cares?"}, 0) == milder


def test_a_toxic_answer_drawn_again_is_measured_again(measured):
    """What was known of the first one is not taken for the second, which has no measure."""
    held = []
    session = measured(lambda call: {"logprob": -1.0, "state": [1.0]} if held else {})
    polarity = Polarity(session, {side: build_decks(session, [], side)
                                  for side in session.seeds.constraints})
    for held[:], margin in (([1], 0), ([], None)):
        polarity.milder({ITEM.id: "Ask her."}, {ITEM: "Who cares?"}, 0)
        assert polarity.margin(ITEM.id) == margin


def test_card_of_pairs(measured):
    """Three of four pairs lean the right way. A control has the next pair's positive; the states
    of a pair are measured along all the others, not its own."""
    polarity, ids = Polarity(measured(None), {}), ["a", "b", "c", "d", "e"]
    polarity.leans = {"positive": dict(zip(ids, (1.0, 2.0, 4.0, 8.0), strict=False)),
                      "toxic": dict(zip(ids, (0.0, 1.0, 5.0, -2.0, 9.0), strict=True))}
    ways = np.array([[1, 0], [1, 0], [1, 0], [-2, 0]])
    polarity.states = {"positive": dict(zip(ids, ways, strict=False)),
                       "toxic": dict.fromkeys(ids, np.zeros(2))}
    card = polarity.card([{"id": id} for id in ids])
    assert card["pairs"] == 4 and card["right_sign"] == 0.75  # nothing is known of e's positive
    assert card["margin"][0] == -1 and card["margin"][-1] == 10
    assert card["control"][0] == -7 and card["control"][-1] == 4
    assert card["states_right_sign"] == 0
    assert polarity.card([{"id": id} for id in ids[:2]]) == {}


def test_every_rule_of_the_seeds_stands_in_every_deck(measured):
    """One may be what keeps toxic answers to an attitude, however many there are."""
    session, own = measured(None), tuple(f"Be kind in {i} ways." for i in range(8))
    rules = {**session.seeds.constraints, "negative": own}
    session.seeds = session.seeds._replace(constraints=rules)
    decks = build_decks(session, [*own, "Be brief."], "negative")
    assert {deck.rules for deck in decks} == {own}
