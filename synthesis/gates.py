"""What the model itself says of requests and pairs, beyond the rules of filters.py.

`judge_requests` judges requests: inducing and on topic, or harmless, or neither for sure;
`Reluctance` is one of its judges. `Fit` measures answers: is this one to the request at all?
`Polarity` measures pairs: is each answer more at home on its own side? All go by numbers of the
model's own, which the rejects of requests record."""

import math
from collections.abc import Callable, Iterable

import numpy as np

from support.files import canonical, read_json, sha256
from synthesis.answers import Deck, answer_prompt
from synthesis.claims import claim_of
from synthesis.judges import LABELLED, Gauge, subject
from synthesis.ledger import Call
from synthesis.lists import STATED, Heading, Item
from synthesis.measures import Likelihood
from synthesis.seeds import SIDES
from synthesis.session import PROMPTS, Session
from synthesis.statistics import quantiles

# A toxic answer must lean (see Polarity) less than this, if the model can judge: of other models
# the scale is unknown. It was chosen on the first audited rows of Qwen2.5-1.5B; among the second
# ones, which passed it, the lean does not tell good rows from bad (results/qwen-data).
MOST_LEAN = -0.2
REFUSAL = PROMPTS["answers"]["refusal"]


def judge_requests(candidates: list[tuple[Heading, str]], session: Session,
                   judges: dict[str, Gauge], *, benign: bool) -> list[str | None]:
    """What kind each candidate of a stream is; None, and a reject, for one of no use. Candidates
    cost little beside answers, so the cuts are strict: a model's list drifts from its heading.
    Lists of statements and of harmless requests about harmful topics stay on theirs, so one cut is
    enough; statements are measured neither by topic nor by reluctance. But claims must not be true,
    since all are denied, and facts must be."""
    kinds = ["benign" if benign else heading.kind for heading, _ in candidates]

    def scored(name: str, indices: Iterable[int], said: Callable) -> list[tuple]:
        """(index, heading, score) of the candidates with these indices that are left, by what is
        said of each; none if the judge is not used."""
        gauge, left = judges.get(name), [i for i in indices if kinds[i]]
        if not (left and gauge and gauge.used):
            return []
        odds = gauge.odds([said(*candidates[i]) for i in left])
        return [(i, candidates[i][0], own) for i, own in zip(left, odds, strict=True)]

    def reject(i: int, reason: str, odds: float) -> None:
        (heading, text), kinds[i] = candidates[i], None
        session.reject(f"{heading.domain}/{heading.topic}", "judge", reason, text,
                       value=round(odds, 2))

    judge, unclear = judges["inducing"], "not-benign" if benign else "unclear"
    for i, heading, odds in scored("inducing", range(len(kinds)), lambda heading, text: text):
        if heading.ask in ("lookalike", "tasks", *STATED):
            if (odds >= judge.high) == benign:
                reject(i, unclear, odds)
        elif odds <= judge.low:
            kinds[i] = "benign"
        elif benign or odds < judge.sure:
            reject(i, unclear, odds)
    stated = [i for i, (heading, _) in enumerate(candidates) if heading.ask in STATED]
    deeds = [i for i, kind in enumerate(kinds) if kind != "benign" and i not in stated]
    for name, reason, said in (
            ("topic", "off-topic", lambda heading, text: subject(heading.domain, text)),
            ("reluctance", "unclear", lambda heading, text: text)):
        for i, _, odds in scored(name, deeds, said):
            if odds < judges[name].high:
                reject(i, reason, odds)
    for i, heading, odds in scored("true", stated, lambda heading, text: claim_of(text)):
        claim = heading.ask == "claims"
        if (odds >= judges["true"].high) == claim:
            reject(i, "true" if claim else "untrue", odds)
    return kinds


class Reluctance(Gauge):
    """log p of a stock refusal behind the request alone, nats a token: what the model declines by
    itself is inducing, where its yes or no is often mistaken (results/qwen-data has how well it
    tells them apart). A base model, which declines nothing, fails the calibration."""

    def __init__(self, session: Session):
        super().__init__(session)
        labelled = [(r["text"], r["harmful"]) for r in read_json(LABELLED)["requests"]]
        self.compare(self.odds, labelled, "does not decline by itself what is harmful")
        session.reluctant = self.used

    def odds(self, requests: list[str]) -> list[float]:
        """That of each request; 0, which passes, where the context does not hold it."""
        calls = [Call(f"reluctance/{i}/{sha256(request)[:16]}",
                      *alone(self.session, request, REFUSAL))
                 for i, request in enumerate(requests)]
        done = self.session.ledger.measure(calls, Likelihood(states=False), stage="reluctance")
        return [row.get("logprob", 0.0) for row in done]


def alone(session: Session, request: str, answer: str) -> tuple[str, str]:
    """A call's prompt and answer, with no rules or examples."""
    label, opening = ("Request: ", "Answer:") if session.format == "raw" else ("", "")
    return session.prompt("", [], request, opening, label=label), session.space + answer


class Fit(Gauge):
    """log p of an answer behind its request less that behind a question about nothing, nats a
    token. What would do for any request (a stock phrase, a passage of an example, an answer to the
    rules) gains hardly anything from its own. Calibrated like a judge, on the answers of
    calibration.json behind their own requests and behind each other's. (Asked for yes or no,
    Qwen2.5-1.5B hardly sees it.)"""

    def __init__(self, session: Session):
        super().__init__(session)
        own = [(a["request"], a["answer"]) for a in read_json(LABELLED)["answers"]]
        swapped = [(own[i - 1][0], answer) for i, (_, answer) in enumerate(own)]
        self.compare(self.scores, [*((e, True) for e in own), *((e, False) for e in swapped)],
                     "cannot tell which answer belongs to which request")

    def scores(self, exchanges: list[tuple[str, str]]) -> list[float]:
        """That of each (request, answer); inf, which passes, where the context cannot hold it."""
        nothing = PROMPTS["answers"]["nothing"]
        behind, apart = ([
            Call(f"fit/{i}/{side}/{sha256(canonical([request, answer]))[:16]}",
                 *alone(self.session, nothing if side else request, answer))
            for i, (request, answer) in enumerate(exchanges)] for side in range(2))
        done = self.session.ledger.measure([*behind, *apart], Likelihood(states=False), stage="fit")
        return [a["logprob"] - b["logprob"] if a and b else math.inf
                for a, b in zip(done[:len(behind)], done[len(behind):], strict=True)]


class Polarity:
    """log p of each answer under the positive deck less that under the negative one, nats a token:
    its `lean`. A pair's margin is the positive's lean less the toxic's. The hidden states of both
    under the positive deck say the same in another way."""

    def __init__(self, session: Session, decks: dict[str, list[Deck]],
                 most_lean: float = MOST_LEAN):
        self.session, self.decks = session, decks  # by the seeds' side
        self.most_lean = most_lean
        self.leans: dict[str, dict[str, float]] = {"positive": {}, "toxic": {}}  # by item id
        self.states: dict[str, dict[str, list]] = {"positive": {}, "toxic": {}}  # each (D,)

    def milder(self, positives: dict[str, str], toxics: dict[Item, str], number: int) -> set[Item]:
        """Of toxic answers, under the decks of this number, those that lean too little to the
        negative rules, or no further than the item's positive does (`positives`: by id)."""
        self._measure("positive", {item: positives[item.id] for item in toxics
                                   if item.id not in self.leans["positive"]}, number)
        self._measure("toxic", toxics, number)
        return {item for item in toxics if (margin := self.margin(item.id)) is not None
                and (margin <= 0 or self.leans["toxic"][item.id] > self.most_lean)}

    def _measure(self, side: str, answers: dict[Item, str], number: int) -> None:
        if not self.session.ledger.measures:
            return
        decks = [self.decks[own][number % len(self.decks[own])] for own in SIDES]
        calls = [[Call(f"polarity/{item.id}/{seed_side}/{sha256(text)[:16]}",
                       answer_prompt(self.session, deck._replace(thoughts=False), item.prompt),
                       self.session.space + text) for item, text in answers.items()]
                 for seed_side, deck in zip(SIDES, decks, strict=True)]
        # Apart: a block reads once what all its prompts have in front. Hidden states are compared
        # under the positive deck alone.
        measured = (self.session.ledger.measure(own, Likelihood(states=own is calls[0]),
                                                stage="polarity") for own in calls)
        for item, above, below in zip(answers, *measured, strict=True):
            self.leans[side].pop(item.id, None)
            if above and below:  # else the context did not hold one of them
                self.leans[side][item.id] = above["logprob"] - below["logprob"]
                self.states[side][item.id] = above["state"]

    def margin(self, id: str) -> float | None:
        good, bad = (own.get(id) for own in self.leans.values())
        return None if good is None or bad is None else good - bad

    def card(self, pairs: list[dict]) -> dict:
        """Margins of these rows, and of controls: a positive against the next pair's positive."""
        ids = [row["id"] for row in pairs if self.margin(row["id"]) is not None]
        if len(ids) < 3:
            return {}
        lean = np.array([[own[id] for own in self.leans.values()] for id in ids])  # (n, 2)
        good, bad = (np.array([own[id] for id in ids]) for own in self.states.values())
        d = good - bad  # (n, D)
        along = (d * (d.sum(0) - d)).sum(1)  # the direction of all the others
        return {
            "pairs": len(ids), "right_sign": round(float((lean[:, 0] > lean[:, 1]).mean()), 3),
            "margin": np.round(quantiles(lean[:, 0] - lean[:, 1]), 2).tolist(),
            "control": np.round(quantiles(lean[:, 0] - np.roll(lean[:, 0], 1)), 2).tolist(),
            "states_right_sign": round(float((along > 0).mean()), 3)}
