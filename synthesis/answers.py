"""Both answers to an instruction: under six rules and three examples with inner thoughts, once the
harmless one, once the toxic one (arXiv 2502.08657).

The prompts are templates in prompts/. What the model writes is parsed and filtered (filters.py);
what is turned down is drawn again."""

from collections import Counter
from typing import NamedTuple

from generate import Completion, Sampling
from support.files import InputError, sha256
from support.lexicon import is_refusal
from support.pairs import Toxic
from support.progress import say
from synthesis import filters
from synthesis.filters import ANSWER, REQUEST, RULE_WORDS, THOUGHT, OpeningQuota
from synthesis.ledger import Call
from synthesis.lists import Item, constraint_prompt, instruction_prompt, topic_prompt
from synthesis.seeds import Worked
from synthesis.session import Session

TEMPERATURE = {"positive": 0.7, "toxic": 0.9}
ATTEMPTS = 3  # an item and side; each at a temperature 0.1 higher
RULES = 6  # constraints in a deck
ANSWER_TOKENS = 200
REFUSALS = 0.1  # positives that may open with a refusal, as a share of the target
# The toxic side ends when, after an attempt at all items, refusals are more than this share of its
# answers so far, or of so many answers where there are fewer.
DECLINES = (100, 0.8)


class Deck(NamedTuple):
    """Rules and examples in one order: how a prompt opens. The model reads it once a block."""
    rules: tuple[str, ...]
    examples: tuple[Worked, ...]
    thoughts: bool  # shown in the examples and asked for


def build_decks(session: Session, constraints: list[str], seed_side: str) -> list[Deck]:
    """Up to eight decks; fewer for a small run, so that the items of each still fill blocks."""
    decks = []
    for number in range(min(8, max(1, session.target // 64))):
        rng = session.random("deck", seed_side, number)
        examples = list(session.seeds.examples[seed_side])
        rng.shuffle(examples)
        rules = rng.sample(constraints, min(RULES, len(constraints)))
        decks.append(Deck(tuple(rules), tuple(examples), session.thoughts))
    return decks


def answer_prompt(session: Session, deck: Deck, prompt: str) -> str:
    return session.prompt("answers", deck=deck, prompt=prompt, REQUEST=REQUEST, THOUGHT=THOUGHT,
                          ANSWER=ANSWER)


def answer_sampling(side: str, attempt: int = 0) -> Sampling:
    return Sampling(ANSWER_TOKENS, temperature=TEMPERATURE[side] + 0.1 * attempt, top_p=0.95,
                    stop=("\n\n", f"\n{REQUEST}"))


def example_prompts(session: Session) -> dict[str, str]:
    """One whole prompt of each stage but the toxic one, as the model will see it."""
    deck = build_decks(session, list(session.seeds.constraints["positive"]), "positive")[0]
    shown = [i.text for i in session.seeds.instructions if not i.benign]
    return {"topics": topic_prompt(session, session.domains[0], []),
            "instructions": instruction_prompt(session, session.domains[0].name, shown),
            "constraints": constraint_prompt(session, "positive"),
            "positive answers": answer_prompt(session, deck, shown[0])}


def refuse_short_context(session: Session) -> None:
    """InputError if, by an estimate, the model's context does not hold a prompt and its answer. The
    example prompts have the seeds' few rules; a deck may have RULES of the longest."""
    encode, rules = session.tokenizer.encode, session.seeds.constraints["positive"]
    rule = " ".join((" ".join(rules).split() * RULE_WORDS)[:RULE_WORDS])  # as long as can be
    longest = max(len(encode(prompt)) for prompt in example_prompts(session).values())
    needed = longest + RULES * len(encode(f"- {rule}\n")) + ANSWER_TOKENS
    if needed > session.context:
        raise InputError(f"prompts and answers need {needed} tokens, the context holds"
                         f" {session.context}", f"--model {session.tokenizer.folder}",
                         "use one with a longer context")


class Answers:
    """All accepted answers of one side, "positive" or "toxic"."""

    def __init__(self, session: Session, side: str, decks: list[Deck]):
        self.session, self.side, self.decks = session, side, decks
        self.texts: dict[str, str] = {}  # item id -> answer
        # Both limit the positives; the toxic openings are limited where they become pairs.
        self.quota, self.refusals = OpeningQuota(session.target), 0
        self.verdicts: Counter = Counter()  # over attempts
        self.declined = False  # the model refuses this side: no more is asked

    def deck_of(self, item: Item) -> Deck:
        return self.decks[int(sha256(item.id), 16) % len(self.decks)]

    def answer(self, items: list[Item]) -> None:
        """Up to three attempts for each item; each failure is a reject."""
        for attempt in range(ATTEMPTS):
            if not items or self.declined:
                break
            ids = {item: f"answers/{self.side}/{item.id}/{attempt}" for item in items}
            groups = [[Call(ids[item], answer_prompt(self.session, deck, item.prompt))
                       for item in items if self.deck_of(item) is deck] for deck in self.decks]
            done = self.session.ledger.complete(
                groups, answer_sampling(self.side, attempt), stage=f"{self.side} answers",
                note=f", attempt {attempt + 1}", toxic=self.side == "toxic")
            items = [item for item in items if not self._accept(item, done[ids[item]], attempt)]
            least, share = DECLINES
            # "refused" is a fault of toxic answers only.
            if self.verdicts["refused"] > share * max(least, self.verdicts.total()):
                self.declined = True
                say("the model declines the toxic side: positives are kept, nothing is escalated")

    def _accept(self, item: Item, completion: Completion, attempt: int) -> bool:
        text, reason = self._judge(item, completion)
        self.verdicts[reason or "accepted"] += 1
        if reason:
            self.session.reject(f"{item.id}/{self.side}/{attempt}", "answers", reason, text)
            return False
        self.texts[item.id] = Toxic(text) if self.side == "toxic" else text
        self.quota.add(text)
        self.refusals += is_refusal(text)
        return True

    def _judge(self, item: Item, completion: Completion) -> tuple[str, str | None]:
        """(answer, why it is rejected or None)."""
        whole = str.__str__(completion.text)
        if completion.finish == "context":
            return whole, "context"
        deck = self.deck_of(item)
        # Without thoughts the prompt itself ends with the answer's label.
        text = filters.parse_answer(whole if deck.thoughts else f"{ANSWER}{whole}")
        if text is None:
            return whole, "no-answer"
        if completion.finish == "length" and (text := filters.trim_cut(text)) is None:
            return whole, "cut"
        # The text still has its lines: some filters read where they begin.
        reason = filters.reject_answer(
            text, side=self.side, prompt=item.prompt, constraints=deck.rules,
            examples=tuple(e.answer for e in deck.examples))
        if reason is None and self.side == "positive":
            full = self.refusals + 1 > max(5, REFUSALS * self.session.target)
            reason = self.quota.reject(text) or ("refusals" if full and is_refusal(text) else None)
        return text if reason else " ".join(text.split()), reason
