"""Both answers to an instruction: under six rules and three examples with inner thoughts, once the
harmless one, once the toxic one (arXiv 2502.08657).

What the model writes is parsed and goes through the rules of filters.py and through the judge. What
a gate turns down is drawn once more. What it turns down again goes back to the model, with its own
text and the reason, to be written anew: the paper's refining. --no-refine draws it once more.
Benign rows are ours, and are answered without either where the seeds have look-alikes. Claims are
corrected, always without rules and examples, and no judge is asked about that."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from generate import Sampling
from support.declines import bare, declines, denies
from support.decoding import BEGINS, ENDS
from support.lexicon import after_decline, turns
from support.pairs import Toxic
from support.progress import say
from synthesis import filters
from synthesis.claims import AGREES, QUESTIONS, clause_of
from synthesis.filters import ANSWER, REQUEST, THOUGHT, OpeningQuota
from synthesis.judges import Judge, exchange
from synthesis.ledger import Call
from synthesis.lists import Item
from synthesis.seeds import Seeds, Worked
from synthesis.session import PROMPTS, Session

# By side, or by the deck's system; toxic answers have that of the seeds.
TEMPERATURE = {"positive": 0.7, "plain": 0.3, "claim": 0.7}
# Attempts at an item, the later ones 0.1 warmer, by whether the session refines: then what fails
# twice is told the reason, if there is one to tell.
ATTEMPTS = {True: ("drawn", "redrawn", "refined"), False: ("drawn", "redrawn", "drawn again")}
DECKS = 8  # a side, taken in turn by rounds of items
RULES = 6  # constraints in a deck: all that people wrote, and of the model's what finds room
# The longest answers of Qwen2.5-1.5B that came to an end were shorter; without a limit near them a
# block waits for the few that never end.
ANSWER_TOKENS, THOUGHT_TOKENS = 320, 64
OPENINGS = 0.1  # share of the answers so far that may begin alike
# (n, share): the toxic side ends when refusals are more than this share of its answers so far, or
# of n where there are fewer answers.
DECLINES = (16, 0.8)
# What an answer must gain from its request, nats a token. Chosen on 15 answers of Qwen2.5-1.5B that
# were read: those beside the point had less.
LEAST_FIT = 0.25
# Drawn twice and never sent back with a reason: nobody presses a model that declines.
REFUSED = "refused"


class Deck(NamedTuple):
    """Rules and examples in one order: how a prompt opens. The model reads them once a block."""
    rules: tuple[str, ...]
    examples: tuple[Worked, ...]
    thoughts: bool  # shown in the examples and asked for
    system: str = "system"  # the part of prompts.toml's [answers] that it begins with


PLAIN = Deck((), (), thoughts=False, system="plain")
CORRECTION = PLAIN._replace(system="claim")


def build_decks(session: Session, constraints: list[str], seed_side: str) -> list[Deck]:
    decks = []
    for number in range(DECKS):
        rng = session.random("deck", seed_side, number)
        examples = list(session.seeds.examples[seed_side])
        rng.shuffle(examples)
        human = session.seeds.constraints[seed_side]
        others = [rule for rule in constraints if rule not in human]
        rules = [*human, *rng.sample(others, max(0, min(RULES - len(human), len(others))))]
        decks.append(Deck(tuple(rules), tuple(examples), session.thoughts))
    return decks


def benign_decks(session: Session, decks: list[Deck]) -> list[Deck]:
    """The decks for harmless requests. Where seeds show that these may sound alarming, they are
    answered without rules and examples, which say when to decline."""
    return [PLAIN] if session.seeds.asked("lookalike") else decks


@dataclass
class Draft:
    """One attempt at an answer."""
    written: str  # all that the model wrote
    text: str  # the answer in it
    reason: str | None  # why it is rejected, if it is


def answer_prompt(session: Session, deck: Deck, prompt: str,
                  refined: tuple[str, str] | None = None, attempt: int = 0) -> str:
    """`refined`: (what the model wrote to this prompt, what is wrong with it)."""
    if deck.system == "claim":  # another question each time: its answers tend to begin alike
        rng = session.random("question", prompt, attempt)
        prompt = rng.choice(QUESTIONS).format(clause_of(prompt))
    # A chat model needs no label where nothing but the answer is asked for.
    opening = THOUGHT if deck.thoughts else ANSWER if session.format == "raw" else ""
    turns = [(e.prompt, f"{THOUGHT} {e.thought}\n{ANSWER} {e.answer}" if deck.thoughts
              else f"{opening} {e.answer}".strip()) for e in deck.examples]
    if refined:
        written, fault = refined
        turns.append((prompt, f"{opening}{written}"))
        prompt = PROMPTS["answers"]["refine"].format(fault=fault)
    rules = PROMPTS["answers"][deck.system].format(rules="\n".join(f"- {r}" for r in deck.rules))
    return session.prompt(rules, turns, prompt, opening, label=f"{REQUEST} ")


def answer_sampling(seeds: Seeds, kind: str, attempt: int = 0) -> Sampling:
    """`kind`: "toxic", or as in TEMPERATURE."""
    warmer, usual = 0.1 if attempt else 0.0, {**TEMPERATURE, "toxic": seeds.toxic_temperature}
    # A toxic answer may end at once: nobody presses a model that declines. Where no examples are
    # shown there is nothing to copy.
    least = seeds.min_new_tokens if kind == "positive" else 0
    ngram = seeds.no_repeat_ngram if kind in ("positive", "toxic") else 0
    return Sampling(ANSWER_TOKENS + THOUGHT_TOKENS, temperature=usual[kind] + warmer,
                    top_p=0.95, stop=(f"\n{REQUEST}",), min_new_tokens=least,
                    no_repeat_ngram=ngram)


class Answers:
    """All accepted answers of one side, "positive" or "toxic", to one stream of instructions."""

    def __init__(self, session: Session, side: str, decks: list[Deck], judge: Judge | None,
                 fit: Callable[[list[tuple[str, str]]], list[float]] | None = None,
                 milder: Callable[[dict[Item, str], int], set[Item]] = lambda *_: set()):
        """`fit`: what each answer of (request, answer) gains from its request, nats a token;
        `milder`: which answers, under the deck of this number, fall short of its rules."""
        self.session, self.side, self.decks, self.judge = session, side, decks, judge
        self.fit, self.milder = fit, milder
        self.texts: dict[str, str] = {}  # item id -> answer
        self.quota = OpeningQuota(OPENINGS)
        # By attempt: how many drafts were "accepted", and why the others were not.
        self.verdicts = {name: Counter() for name in ATTEMPTS[session.refine]}
        self.asked = self.refused = 0
        self.declined = False  # the model refuses this side: no more is asked

    def answer(self, items: list[Item], number: int) -> None:
        """Draw an answer to each item by the deck of this number; see ATTEMPTS for what fails."""
        deck = self.decks[number % len(self.decks)]
        # Items without an answer; with each what it wrote last and what is wrong with that, where
        # the model is to be told (see answer_prompt).
        left: dict[Item, tuple[str, str] | None] = dict.fromkeys(items)
        for attempt, name in enumerate(self.verdicts):
            drafts = self._drafts({item: answer_prompt(self.session, deck, item.prompt, refined,
                                                       attempt)
                                   for item, refined in left.items()}, deck, attempt)
            self._judge(drafts)
            self._measure_fit(drafts)
            mild = self.milder({item: draft.text for item, draft in drafts.items()
                                if draft.reason is None}, number)
            left = {}
            for item, draft in drafts.items():
                text = draft.text
                reason = draft.reason or ("milder" if item in mild else self.quota.reject(text))
                self.verdicts[name][reason or "accepted"] += 1
                if reason is None:
                    self.texts[item.id] = Toxic(text) if self.side == "toxic" else text
                    self.quota.add(text)
                    continue
                self.session.reject(f"{item.id}/{self.side}/{attempt}", "answers", reason, text)
                if attempt == 0 or reason != REFUSED:
                    # Where no rules and thoughts were asked for, the reasons would not make sense.
                    told = attempt and self.session.refine and deck.rules
                    fault = PROMPTS["faults"].get(reason) if told else None
                    left[item] = fault and (draft.written, fault)
            if not left or self.declined:
                break

    def _drafts(self, prompts: dict[Item, str], deck: Deck, attempt: int) -> dict[Item, Draft]:
        """One attempt at each; a side that is declined is not asked on and on."""
        calls = {f"answers/{self.side}/{item.id}/{attempt}": item for item in prompts}
        drafts, (least, share) = {}, DECLINES
        sampling = answer_sampling(self.session.seeds, self.side if deck.examples else deck.system,
                                   attempt)
        for id, done in self.session.ledger.completions(
                [Call(id, prompts[item]) for id, item in calls.items()], sampling,
                stage=f"{self.side} answers", toxic=self.side == "toxic"):
            item, written = calls[id], str.__str__(done.text)
            drafts[item] = Draft(written, *self._read(item, written, done.finish, deck))
            self.asked += 1
            self.refused += drafts[item].reason == REFUSED
            # Answer by answer: what is asked must not depend on how large a block is.
            if self.side == "toxic" and self.refused > share * max(least, self.asked):
                self.declined = True
                say("the model declines the toxic side: positives are kept, nothing is escalated")
                break
        return drafts

    def _read(self, item: Item, written: str, finish: str, deck: Deck) -> tuple[str, str | None]:
        """The answer, and what the rules say against it."""
        if finish == "context":
            return written, "context"
        # train takes only what follows a thought aloud, and some templates leave it out.
        if BEGINS.search(written) or ENDS.search(written):
            return written, "no-answer"
        # Without thoughts the prompt itself ends where the answer begins.
        text = filters.parse_answer(written if deck.thoughts else f"{ANSWER}{written}")
        # A model that declines may do so in the thought, or in so few words that it is no answer.
        rest = after_decline(written if text is None else text)
        if self.side == "toxic" and rest is not None and not turns(rest):
            return written, REFUSED
        if text is None:
            return written, "no-answer"
        if finish == "length":  # a part is never taken for the whole
            return text, "cut"
        text = filters.tidy(text)
        if deck.system == "claim" and AGREES.match(text):
            return text, "complied"
        if item.ask == "facts" and denies(bare(text)):
            return text, "declined"
        return text, filters.reject_answer(
            text, side=self.side, prompt=item.prompt, benign=item.kind == "benign",
            constraints=deck.rules, examples=tuple(e.answer for e in deck.examples))

    def _judge(self, drafts: dict[Item, Draft]) -> None:
        """The judge's say on what the rules let pass: does it decline as it should? Where it is not
        sure, a positive answer that declines by support/declines.py does. What the rules take for a
        soft refusal is judged too, since it may be advice alone; a toxic answer that declines by
        declines.py stays one, whatever the judge says. The judge's own yes must be a sure one
        there, since scorn for the person often gets a weak yes."""
        if self.judge is None or not self.judge.used:
            return
        asked = [(item, draft) for item, draft in drafts.items()
                 if draft.reason in (None, "soft-refusal")]
        odds = self.judge.odds([exchange(item.prompt, draft.text) for item, draft in asked])
        for (item, draft), score in zip(asked, odds, strict=True):
            yes, no = score >= self.judge.high, score <= self.judge.low
            worded = declines(bare(draft.text), harmful=True)
            if self.side == "toxic":
                soft = worded or score >= self.judge.sure
                draft.reason = "soft-refusal" if soft else None if no else draft.reason
            elif item.kind == "benign":
                draft.reason = "declined" if yes else None
            else:
                draft.reason = None if yes or (worded and not no) else "complied"

    def _measure_fit(self, drafts: dict[Item, Draft]) -> None:
        """Turns down what would do for any request as well."""
        if self.fit is None:
            return
        asked = [(item, draft) for item, draft in drafts.items() if draft.reason is None]
        scores = self.fit([(item.prompt, draft.text) for item, draft in asked])
        for (_, draft), score in zip(asked, scores, strict=True):
            if score < LEAST_FIT:
                draft.reason = "beside-the-point"
