"""The model as its own judge: a question that it answers by yes or no behind labelled examples.

A small model judges no better than chance, so each judge is calibrated at the start of every run:
on the seeds, each judged with the others in front, and on a list of the code's own
(calibration.json), which never enters a prompt of the texts that are kept. A judge is used where
its AUC, the chance that a yes scores above a no, is at least LEAST_AUC with a lower bound of
LEAST_LOW; where it is not, the run says so and goes on by rule alone."""

from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from support.files import canonical, read_json, sha256
from support.progress import say
from synthesis.ledger import Call
from synthesis.measures import Odds
from synthesis.session import PROMPTS, Session
from synthesis.statistics import auc

LEAST_AUC, LEAST_LOW = 0.75, 0.65
MISSED = 0.1  # of the labelled yes, at most, lie below `low`; as many of the no above `high`
YES, NO = "Yes", "No"
LABELLED = Path(__file__).with_name("calibration.json")


class Labelled(NamedTuple):
    text: str
    label: bool


class Judge:
    """Its question and examples; after `calibrate` its figures and three cuts in its log-odds:
    `low`, `best` (fewest errors) and `high`."""

    def __init__(self, session: Session, name: str, shots: list[Labelled],
                 others: list[Labelled]):
        # Yes and no in turn, as many of each: a model leans to what it has read most of, and last.
        sides = ([shot for shot in shots if shot.label == label] for label in (True, False))
        self.shots = [shot for pair in zip(*sides, strict=False) for shot in pair]
        self.session, self.name, self.others = session, name, others
        self.auc = self.auc_low = 0.5
        self.low = self.best = self.high = 0.0

    @property
    def used(self) -> bool:
        return self.auc >= LEAST_AUC and self.auc_low >= LEAST_LOW

    def prompt(self, text: str, shots: list[Labelled]) -> str:
        ask, lead = PROMPTS["judges"][self.name], "Answer: " * (self.session.format == "raw")
        turns = [(ask.format(text=s.text), lead + (YES if s.label else NO)) for s in shots]
        return self.session.prompt("", turns, ask.format(text=text), lead.strip())

    @cached_property
    def setting(self) -> Odds:
        """The tokens that Yes and No begin with behind a prompt."""
        space, prompt = " " * (self.session.format == "raw"), self.prompt("Hello.", self.shots)
        pair = self.session.tokenizer.encode_pair
        ids, first = zip(*(pair(prompt, space + word, special=False) for word in (YES, NO)),
                         strict=True)
        return Odds(*(own[at] for own, at in zip(ids, first, strict=True)))

    def odds(self, texts: list[str]) -> list[float]:
        """log p(yes) - log p(no) of each text; 0 where the context does not hold it."""
        return self._odds([(text, self.shots) for text in texts])

    def _odds(self, asked: list[tuple[str, list[Labelled]]]) -> list[float]:
        calls = [Call(f"judge/{self.name}/{i}/{sha256(canonical(text))[:16]}",
                      self.prompt(text, shots)) for i, (text, shots) in enumerate(asked)]
        done = self.session.ledger.measure(calls, self.setting, stage=f"judge {self.name}")
        return [done[call.id].get("odds", 0.0) for call in calls]

    def calibrate(self) -> None:
        # With a shot its neighbour of the other label is left out, to keep the balance.
        own = [(shot.text, self.shots[:i // 2 * 2] + self.shots[i // 2 * 2 + 2:])
               for i, shot in enumerate(self.shots)]
        # Apart from the rest, which share all their shots: those are read once.
        scores = np.array(self._odds(own) + self.odds([other.text for other in self.others]))
        labels = np.array([x.label for x in (*self.shots, *self.others)])
        self.n, self.auc = len(labels), auc(scores[labels], scores[~labels])
        rng = np.random.default_rng(0)
        draws = [auc(*(rng.choice(scores[side], side.sum()) for side in (labels, ~labels)))
                 for _ in range(1000)]
        self.auc_low = float(np.quantile(draws, 0.05))
        cuts = np.sort(scores)
        right = [(scores[labels] >= cut).mean() + (scores[~labels] < cut).mean() for cut in cuts]
        self.best = float(cuts[int(np.argmax(right))])
        self.low = float(min(self.best, np.quantile(scores[labels], MISSED)))
        self.high = float(max(self.best, np.quantile(scores[~labels], 1 - MISSED)))
        if not self.used:
            say(f"the model cannot judge {self.name!r} (AUC {self.auc:.2f}, from {self.auc_low:.2f}"
                f"): the gate is left to the rules")

    def card(self) -> dict:
        return {"auc": round(self.auc, 3), "auc_low": round(self.auc_low, 3), "labelled": self.n,
                "used": self.used}


def subject(name: str, request: str) -> str:
    return f"{request}\nSubject: {name}"


def exchange(request: str, answer: str) -> str:
    return f"{request}\nAnswer: {answer}"


def calibrated(session: Session) -> dict[str, Judge]:
    """The three judges of a run, by name."""
    raw, seeds = read_json(LABELLED), session.seeds
    requests = [(r["text"], r["harmful"], r["subject"]) for r in raw["requests"]]
    own = [(i.text, not i.benign, i.domain) for i in seeds.instructions]
    names = [d.name for d in seeds.domains if d.side != "benign"]
    sides = (("positive", True), ("negative", False))
    benign = {i.text for i in seeds.instructions if i.benign}
    examples = [Labelled(exchange(e.prompt, e.answer), declines and e.prompt not in benign)
                for side, declines in sides for e in seeds.examples[side]]
    judges = {
        "inducing": Judge(session, "inducing", *([Labelled(text, bad) for text, bad, _ in some]
                                                 for some in (own, requests))),
        "topic": Judge(session, "topic", about([x for x in own if x[1] and x[2]], names),
                       about([x for x in requests if x[1]], sorted({x[2] for x in requests}))),
        "declines": Judge(session, "declines", examples, [
            Labelled(exchange(a["request"], a["answer"]), a["declines"])
            for a in raw["answers"]])}
    for judge in judges.values():
        judge.calibrate()
    return judges


def about(requests: list[tuple[str, bool, str]], names: list[str]) -> list[Labelled]:
    """Each request with its own subject, and with another one."""
    return [Labelled(subject(name, text), name == own)
            for i, (text, _, own) in enumerate(requests)
            for name in (own, [n for n in names if n != own][i % (len(names) - 1)])]
