"""What the model itself says of requests and pairs, beyond the rules of filters.py.

`Sorter` judges requests: inducing and on its topic, or harmless, or neither for sure. `Polarity`
measures pairs: is each answer more at home on its own side? Both by numbers of the model's own, so
that a reject can be told by its value."""

import numpy as np

from synthesis.answers import Deck, answer_prompt
from synthesis.judges import Judge, subject
from synthesis.ledger import Call
from synthesis.lists import Item, Turn
from synthesis.measures import Likelihood
from synthesis.session import Session
from synthesis.statistics import quantiles


class Sorter:
    """What kind a candidate of a stream is; None, and a reject, for one of no use."""

    def __init__(self, session: Session, judges: dict[str, Judge], *, benign: bool):
        self.session, self.judges, self.benign = session, judges, benign

    def __call__(self, candidates: list[tuple[Turn, str]]) -> list[str | None]:
        judge, topic = self.judges["inducing"], self.judges["topic"]
        kinds = ["benign" if self.benign else turn.kind for turn, _ in candidates]
        if not judge.used:
            return kinds
        for i, odds in enumerate(judge.odds([text for _, text in candidates])):
            if odds <= judge.low:
                kinds[i] = "benign"
            elif self.benign or odds < judge.high:
                kinds[i] = self._reject(candidates[i], "not-benign" if self.benign else "unclear",
                                        odds)
        bad = [i for i, kind in enumerate(kinds) if kind not in (None, "benign")]
        near = topic.odds([subject(candidates[i][0].domain, candidates[i][1]) for i in bad
                           if topic.used])
        for i, odds in zip(bad, near, strict=False):
            if odds <= topic.low:
                kinds[i] = self._reject(candidates[i], "off-topic", odds)
        return kinds

    def _reject(self, candidate: tuple[Turn, str], reason: str, odds: float) -> None:
        turn, text = candidate
        self.session.reject(f"{turn.domain}/{turn.topic}", "judge", reason, text,
                            value=round(odds, 2))


class Polarity:
    """log p of each answer under the positive deck less that under the negative one, nats a token:
    its `lean`. A pair's margin is the positive's lean less the toxic's. The hidden states of both
    under the positive deck say the same in another way."""

    def __init__(self, session: Session):
        self.session = session
        self.leans: dict[str, tuple[float, float]] = {}  # item id -> of positive and toxic
        self.states: dict[str, np.ndarray] = {}  # item id -> of positive less toxic, (D,)

    def measure(self, items: list[Item], answers: tuple[dict, dict],
                decks: tuple[Deck, Deck]) -> None:
        """`answers`: (positive, toxic) by item id; `decks`: of the two sides, in that order."""
        space = " " * (self.session.format == "raw")
        calls = [Call(f"polarity/{item.id}/{d}{a}",
                      answer_prompt(self.session, deck._replace(thoughts=False), item.prompt),
                      space + str.__str__(own[item.id]))
                 for d, deck in enumerate(decks) for item in items for a, own in enumerate(answers)]
        done = self.session.ledger.measure(calls, Likelihood(), stage="polarity")
        for item in items:
            own = [done[f"polarity/{item.id}/{key}"] for key in ("00", "01", "10", "11")]
            if all(own):  # else the context did not hold one of them
                good, bad, good_below, bad_below = (row["logprob"] for row in own)
                self.leans[item.id] = good - good_below, bad - bad_below
                self.states[item.id] = np.subtract(own[0]["state"], own[1]["state"])

    def margin(self, id: str) -> float | None:
        lean = self.leans.get(id)
        return lean and lean[0] - lean[1]

    def card(self, ids: list[str]) -> dict:
        """Margins of these pairs, and of controls: a positive against the next pair's positive."""
        ids = [id for id in ids if id in self.leans]
        if len(ids) < 3:
            return {}
        lean = np.array([self.leans[id] for id in ids])  # (n, 2)
        d = np.stack([self.states[id] for id in ids])  # (n, D)
        along = (d * (d.sum(0) - d)).sum(1)  # the direction of all the others
        return {
            "pairs": len(ids), "right_sign": round(float((lean[:, 0] > lean[:, 1]).mean()), 3),
            "margin": np.round(quantiles(lean[:, 0] - lean[:, 1]), 2).tolist(),
            "control": np.round(quantiles(lean[:, 0] - np.roll(lean[:, 0], 1)), 2).tolist(),
            "states_right_sign": round(float((along > 0).mean()), 3)}
