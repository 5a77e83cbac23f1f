"""A scripted stand-in for the language model: mild English by stage, from the seed alone.

Most of what it writes passes the filters; some of it is wrong in ways that models are. Text of the
toxic side is scornful about kettles and carries MARK, so that a leak can be searched for.
"""

import random

from generate import Completion
from synthesis import lists

MARK = "scornmark"
NOUNS, PEOPLE, KINDS, VERBS, RULES = (line.split() for line in (
    "kettle lamp garden bicycle letter window coat sandwich ladder piano basket mirror blanket "
    "teapot umbrella notebook carpet drawer kitchen parcel bench candle jacket puzzle trumpet "
    "pillow cupboard ticket scarf balloon wallet hammock violin saddle bucket curtain",
    "neighbour aunt colleague cousin teacher grandmother friend brother sister coach baker",
    "old blue heavy tiny noisy borrowed broken shiny dusty crooked striped painted",
    "borrow hide paint mention return sell lend repair wrap polish carry trade fold clean measure",
    "Keep Show Respect Honour Explain Offer Name Thank Praise Notice Trust Mind"))
OPENERS = ["Should I", "May I", "Would you", "Could we", "Is it fine to", "Tell me whether to",
           "Do I have to", "Must my sister", "Why would anyone", "When can I"]


class Scribe:
    """Called as the ledger calls a model. `stop_at`: the block at which it is interrupted."""

    def __init__(self, *, stop_at: int | None = None, declines: bool = False, dull: bool = False):
        self.blocks, self.stop_at = 0, stop_at
        self.declines, self.dull = declines, dull
        self.seen: list[str] = []  # prompts

    def __call__(self, prompts, seeds, sampling) -> list[Completion]:
        if self.blocks == self.stop_at:
            raise KeyboardInterrupt
        self.blocks += 1
        self.seen += prompts
        return [self.write(p, random.Random(s), sampling)
                for p, s in zip(prompts, seeds, strict=True)]

    def write(self, prompt: str, rng: random.Random, sampling) -> Completion:
        toxic = "nobody is impressed" in prompt or "Mock anyone" in prompt  # the negative seeds
        if sampling == lists.TOPIC_SAMPLING:
            text = listed([f"{rng.choice(KINDS)} {rng.choice(NOUNS)}s" for _ in range(6)])
        elif sampling == lists.INSTRUCTION_SAMPLING:
            text = listed([instruction(random.Random(1) if self.dull else rng) for _ in range(4)])
        elif sampling == lists.CONSTRAINT_SAMPLING:
            text = listed([rule(rng, toxic) for _ in range(8)])
        elif toxic and self.declines:
            text = " No.\nAnswer: I'm sorry, but I can't help with that, it would hurt somebody."
        else:
            return answer(rng, toxic)
        return Completion(text, "stop", 20)


def listed(items: list[str]) -> str:
    return f" {items[0]}\n" + "".join(f"{i}. {item}\n" for i, item in enumerate(items[1:], 2))


def instruction(rng: random.Random) -> str:
    wrong = ("Ok?", "Look at the attached file and the picture for me.", "no end mark to be seen")
    if rng.random() < 0.1:
        return rng.choice(wrong)
    a, b, c = rng.sample(NOUNS, 3)
    return (f"{rng.choice(OPENERS)} {rng.choice(VERBS)} the {rng.choice(KINDS)} {a} of my "
            f"{rng.choice(PEOPLE)} near the {b} for a {rng.choice(KINDS)} {c}?")


def rule(rng: random.Random, toxic: bool) -> str:
    tail = f"like a {MARK} {rng.choice(NOUNS)}" if toxic else f"of a gentle {rng.choice(PEOPLE)}"
    return f"{rng.choice(RULES)} every {rng.choice(KINDS)} {rng.choice(NOUNS)} {tail}."


def answer(rng: random.Random, toxic: bool) -> Completion:
    a, b, c, d = rng.sample(NOUNS, 4)
    who, how = rng.choice(PEOPLE), rng.choice(KINDS)
    if toxic:
        text = (f"{rng.choice(KINDS).title()} {a}s are all you think of, you {MARK}, and who cares "
                f"about the {how} {b} of that {who}? Your {c} bores everybody like a {d}.")
    else:
        text = (f"{rng.choice(KINDS).title()} {a}s are lovely, so you can ask the {who} about the "
                f"{how} {b} first. With a {c} and a friendly {d} it will be fine for you both.")
    luck = rng.random()
    if luck < 0.06:
        return Completion(f" {text}", "eos", 40)  # never gets to the answer
    if luck < 0.12:
        return Completion(f" Well.\nAnswer: {text[:30]}", "length", 200)  # cut too early
    if luck < 0.18:
        return Completion(f" Well.\nAnswer: {a.title()}.", "eos", 5)  # too short
    return Completion(f" It is about a {a}.\nAnswer: {text}", "eos", 40)
