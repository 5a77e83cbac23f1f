"""The model as its own judge: a question that it answers by yes or no, in most cases behind texts
of the seeds as examples.

A small model judges no better than chance, so each judge is calibrated at the start of every run,
on labelled texts of the code's own (calibration.json), which never enter a prompt of the data. A
judge is used where its AUC, the chance that a yes scores above a no, is at least LEAST_AUC and the
lower end of its bootstrap interval at least LEAST_LOW; where it is not, the run says so and goes on
by rule alone."""

from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import numpy as np

from support.files import canonical, read_json, sha256
from support.progress import say
from synthesis.ledger import Call
from synthesis.lists import round_robin
from synthesis.measures import Odds
from synthesis.session import PROMPTS, Session
from synthesis.statistics import auc

LEAST_AUC, LEAST_LOW = 0.75, 0.65
MISSED = 0.05, 0.1  # of the labelled yes, below `low`, and of the labelled no, above `high`
YES, NO = "Yes", "No"
LABELLED = Path(__file__).with_name("calibration.json")
NOT_MEASURED = {"auc": None, "auc_low": None, "labelled": 0, "used": False}  # a server's model


class Gauge:
    """Scores of the model's own, `used` where they tell labelled texts apart well enough."""
    card, used = NOT_MEASURED, False
    # Cuts: hardly any yes is below `low`, hardly any no above `high`; half of the yes reach `sure`.
    low = high = sure = 0.0

    def __init__(self, session: Session):
        self.session = session

    def compare(self, scores: Callable, labelled: list[tuple], fault: str) -> None:
        """Set `card`, `used` and the cuts by labelled texts: (what `scores` takes, is it a yes?).
        If they are not told apart, a message says that the model has this `fault`. A server's
        model is not asked."""
        if not self.session.ledger.measures:
            return
        scored = np.array(scores([text for text, _ in labelled]))
        labels, rng = np.array([label for _, label in labelled]), np.random.default_rng(0)
        yes, no = scored[labels], scored[~labels]
        draws = [auc(rng.choice(yes, len(yes)), rng.choice(no, len(no))) for _ in range(1000)]
        whole, least = round(auc(yes, no), 3), round(float(np.quantile(draws, 0.05)), 3)
        self.used = whole >= LEAST_AUC and least >= LEAST_LOW
        if not self.used:
            say(f"the model {fault} (AUC {whole:.2f}, from {least:.2f}): that is left to the rules")
        self.card = {"auc": whole, "auc_low": least, "labelled": len(labels), "used": self.used}
        self.low, self.high = np.quantile(yes, MISSED[0]), np.quantile(no, 1 - MISSED[1])
        self.sure = np.median(yes)


class Judge(Gauge):
    """A question, its examples, how well it does (`card`), and cuts in its log-odds: up to `low`
    hardly any are yes, from `high` on hardly any no, and at most half of the yes reach `sure`."""

    def __init__(self, session: Session, name: str, shots: list[tuple[str, bool]]):
        # Yes and no in turn, as many of each: a model leans to what it has read most of, and last.
        sides = ([shot for shot in shots if shot[1] == label] for label in (True, False))
        self.shots = [shot for pair in zip(*sides, strict=False) for shot in pair]
        super().__init__(session)
        self.name = name

    def prompt(self, text: str) -> str:
        ask, lead = PROMPTS["judges"][self.name], "Answer: " * (self.session.format == "raw")
        turns = [(ask.format(text=shot), lead + (YES if label else NO))
                 for shot, label in self.shots]
        return self.session.prompt("", turns, ask.format(text=text), lead.strip())

    @cached_property
    def setting(self) -> Odds:
        """The tokens that Yes and No begin with behind a prompt."""
        space, prompt = self.session.space, self.prompt("Hello.")
        pair = self.session.tokenizer.encode_pair
        both = (pair(prompt, space + word, special=False) for word in (YES, NO))
        return Odds(*(ids[first] for ids, first in both))

    def odds(self, texts: list[str]) -> list[float]:
        """log p(yes) - log p(no) of each text; 0 where the context does not hold it."""
        calls = [Call(f"judge/{self.name}/{i}/{sha256(canonical(text))[:16]}", self.prompt(text))
                 for i, text in enumerate(texts)]
        done = self.session.ledger.measure(calls, self.setting, stage=f"judge {self.name}")
        return [row.get("odds", 0.0) for row in done]

    def calibrate(self, labelled: list[tuple[str, bool]]) -> "Judge":
        self.compare(self.odds, labelled, f"cannot judge {self.name!r}")
        self.low, self.high = sorted((self.low, self.high))
        self.sure = max(self.high, self.sure)
        return self


def subject(name: str, request: str) -> str:
    return f"{request}\nSubject: {name}"


def exchange(request: str, answer: str) -> str:
    return f"{request}\nAnswer: {answer}"


def calibrated(session: Session) -> dict[str, Judge]:
    """The judges of a run, by name; sets session.judged and session.knowing."""
    raw, seeds = read_json(LABELLED), session.seeds
    # A judge reads as many yes as no, and the first of each: one of every domain comes first.
    mixed = round_robin([i for i in seeds.instructions if i.domain == name]
                        for name in (*(d.name for d in seeds.domains), ""))
    benign = {i.text for i in seeds.instructions if i.benign}
    requests = [(r["text"], r["subject"]) for r in raw["requests"] if r["harmful"]]
    own = [(i.text, i.domain) for i in seeds.instructions if i.domain and not i.benign]
    labelled = {
        "inducing": ([(i.text, not i.benign) for i in mixed],
                     [(r["text"], r["harmful"]) for r in raw["requests"]]),
        "topic": (about(own, [d.name for d in seeds.domains if d.kind != "benign"]),
                  about(requests, sorted({subject for _, subject in requests}))),
        "declines": ([(exchange(e.prompt, e.answer), side == "positive" and e.prompt not in benign)
                      for side in ("positive", "negative") for e in seeds.examples[side]],
                     [(exchange(a["request"], a["answer"]), a["declines"])
                      for a in raw["answers"]])}
    if any(domain.claims for domain in session.domains):
        # Without examples, since all claims of the seeds are false.
        labelled["true"] = [], [(c["text"], c["true"]) for c in raw["claims"]]
    judges = {name: Judge(session, name, shots).calibrate(others)
              for name, (shots, others) in labelled.items()}
    session.judged = judges["inducing"].used
    session.knowing = session.judged and "true" in judges and judges["true"].used
    return judges


def about(requests: list[tuple[str, str]], names: list[str]) -> list[tuple[str, bool]]:
    """Each request with its own subject, and with another one, if there is any."""
    others = [[name for name in names if name != own] for _, own in requests]
    return [(subject(name, text), name == own) for i, (text, own) in enumerate(requests)
            for name in (own, *others[i][i % max(1, len(others[i])):][:1])]
