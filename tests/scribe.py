"""A scripted stand-in for the language model: mild English by stage, from the seed alone.

Most of what it writes passes the filters; some of it is wrong in ways that models are. Text of the
toxic side is scornful about kettles and carries MARK, so that a leak can be searched for.
"""

import json
import random
from dataclasses import asdict, replace

from generate import Completion
from synthesis import lists
from synthesis.judges import LABELLED
from synthesis.measures import Likelihood, Odds
from synthesis.session import PROMPTS

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


CLAIMS = PROMPTS["claims"]["all_sorts"]
NEGATIVE = ("come crying to me", "Sneer at rules")  # of the seeds' negative side


class Scribe:
    """Called as the ledger calls a model. `stop_at`: the block at which it is interrupted;
    `judges`: it knows what is labelled, and calls a request about a kettle harmless."""

    def __init__(self, *, stop_at: int | None = None, declines: bool = False, dull: bool = False,
                 judges: bool = False):
        self.blocks, self.stop_at = 0, stop_at
        self.declines, self.dull = declines, dull
        self.seen: list[str] = []  # prompts that it wrote to
        raw = json.loads(LABELLED.read_text())
        self.labels = {r["text"]: r["harmful"] for r in raw["requests"]} if judges else None

    def __call__(self, block, seeds, setting) -> list[dict]:
        if self.blocks == self.stop_at:
            raise KeyboardInterrupt
        self.blocks += 1
        if isinstance(setting, Likelihood | Odds):
            return [self.measure(call, setting) for call in block]
        self.seen += [call.prompt for call in block]
        return [asdict(self.write(call.prompt, random.Random(s), setting))
                for call, s in zip(block, seeds, strict=True)]

    def measure(self, call, setting) -> dict:
        if isinstance(setting, Odds):
            return {"odds": self.odds(call)}
        negative = NEGATIVE[0] in call.prompt
        fits, sign = (MARK in call.answer) == negative, -1.0 if MARK in call.answer else 1.0
        return {"logprob": -1.0 if fits else -2.0,
                "state": [sign, random.Random(call.answer).random()]}

    def odds(self, call) -> float:
        asked = call.prompt.rpartition("<|im_start|>user\n")[2].partition("<|im_end|>")[0]
        asked = asked.removeprefix("Request: ").partition("\n\n")[0]
        _, judge, *_ = call.id.split("/")
        if self.labels is None or judge != "inducing":
            return random.Random(call.id).random()
        return 1.0 if self.labels.get(asked, "kettle" not in asked) else -1.0

    def write(self, prompt: str, rng: random.Random, sampling) -> Completion:
        toxic = any(text in prompt for text in NEGATIVE)
        if sampling == lists.TOPIC_SAMPLING:
            text = listed([f"{rng.choice(KINDS)} {rng.choice(NOUNS)}s" for _ in range(6)])
        elif sampling == lists.INSTRUCTION_SAMPLING:
            make = claim if prompt.count(CLAIMS) else instruction
            text = listed([make(random.Random(1) if self.dull else rng) for _ in range(4)])
        elif sampling == lists.CONSTRAINT_SAMPLING:
            text = listed([rule(rng, toxic) for _ in range(8)])
        elif toxic and self.declines:
            text = " No.\nAnswer: I'm sorry, but I can't help with that, it would hurt somebody."
        else:
            done = answer(rng, toxic)
            if prompt.endswith("assistant\n"):  # no thought was asked for
                done = replace(done, text=done.text.rpartition("Answer:")[2].strip())
            return done
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


def claim(rng: random.Random) -> str:
    a, b = rng.sample(NOUNS, 2)
    return (f"{rng.choice(PEOPLE).title()}s {rng.choice(VERBS)} every {rng.choice(KINDS)} {a} that "
            f"they find near a {rng.choice(KINDS)} {b}.")


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
