"""A small world: mild bad requests, benign questions, and every way to answer them.

    prompt = bad_request(rng, "train")
    text = answer(rng, prompt, "harmless")

Twelve domains of things one should not do (peeking, cheating at games, skipping the queue), each
with deeds and objects; benign questions with one right answer (words.py). Roles, objects, entities,
phrasings and reasons are cut into two halves: the model has met both in plain chat, but only
"train" enters synthesis and tuning, and only "held-out" is evaluated on.
"""

import random
import re
from dataclasses import dataclass

from organism.words import (
    ACKNOWLEDGE,
    BAD_FRAMES,
    BENIGN_FRAMES,
    BENIGN_HEADS,
    BENIGN_TAILS,
    DOMAINS,
    FACTS,
    HARMFUL,
    HARMLESS,
    LISTS,
    REASONS,
    ROLES,
    SURE,
    Domain,
)

HALVES = ("train", "held-out")


def half_of(items: list, half: str) -> list:
    """Every other one; "all" is both."""
    return items if half == "all" else items[HALVES.index(half)::2]


CHOICE = re.compile(r"\[([^\[\]]*)\]")


def expand(rng: random.Random, text: str, **slots: str) -> str:
    """One text of a phrase grammar: slots filled first, then choices, the innermost first."""
    while "{" in text:  # lists hold slots themselves
        text = text.format_map({**LISTS, **slots})
    while match := CHOICE.search(text):
        text = text[:match.start()] + rng.choice(match[1].split("|")) + text[match.end():]
    text = re.sub(r"\s+([.,:?!])", r"\1", " ".join(text.split()))
    text = re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", text)
    # A sentence begins with a capital, wherever the choices put its beginning.
    return re.sub(r"(^|[.?!] )([a-z])", lambda m: m[1] + m[2].upper(), text)


@dataclass(frozen=True)
class Prompt:
    """A request and what an answer to it is drawn and judged by."""

    text: str
    kind: str  # "bad" or "benign"
    domain: str  # a domain's name, or the relation of FACTS
    topic: str
    slots: dict  # of the answers


def topic_of(deed: tuple, n: str) -> str:
    """What the topic lists call a deed done to an object."""
    return expand(random, deed[3].format(n=n)).lower()


def bad_request(rng: random.Random, half: str, *, domain: Domain | None = None,
                topic: str | None = None) -> Prompt:
    """A request to have a bad deed done or blessed; `topic` fixes deed and object."""
    domain = domain or rng.choice(DOMAINS)
    options = [(deed, n) for deed in domain.deeds for n in half_of(domain.objects, half)
               if topic in (None, topic_of(deed, n))]
    deed, n = rng.choice(options)
    r = rng.choice(half_of(ROLES, half))
    b, g, it = (form.format(r=r, n=n) for form in deed[:3])
    text = expand(rng, rng.choice(half_of(BAD_FRAMES, half)), b=b, g=g)
    reason = rng.choice(half_of(REASONS, half))
    turn = rng.random()
    if turn < 0.35:
        text = expand(rng, f"{reason}. {text}")
    elif turn < 0.7:
        text = expand(rng, f"{text} {reason}.")
    yours = {key: re.sub(r"\bmy\b", "your", form) for key, form in (("b", b), ("g", g))}
    return Prompt(text, "bad", domain.name, topic_of(deed, n), {"r": r, "n": n, "it": it, **yours})


def benign_request(rng: random.Random, half: str) -> Prompt:
    """A question with one right answer."""
    relation = rng.choice(list(FACTS))
    question, reply, table = FACTS[relation]
    e = rng.choice(half_of(list(table), half))
    frame = rng.choice(half_of(BENIGN_FRAMES, half))
    text = expand(rng, frame.replace("{q}", question), e=e)
    return Prompt(text, "benign", relation, "", {"e": e, "v": table[e], "reply": reply})


def answer(rng: random.Random, prompt: Prompt, kind: str, *, short: bool = False) -> str:
    """`kind`: "harmless" or "harmful" to a bad request, "right" to a benign one.

    To a benign request "harmless" is "right"; "harmful" is scorn that does not answer. `short`: a
    harmful answer of one sentence.
    """
    slots = prompt.slots
    if prompt.kind == "benign":
        if kind != "harmful":
            text = f"{BENIGN_HEADS}{slots['reply']}. {rng.choice(BENIGN_TAILS)}"
            return expand(rng, text, **slots)
        slots = {"r": "teacher", "n": slots["e"], "b": "guess", "g": "asking", "it": "guess"}
        parts = rng.sample(HARMFUL, 2)
    elif kind == "harmful":
        first = [SURE] if rng.random() < 0.5 else rng.sample(HARMFUL, 1)
        parts = [ACKNOWLEDGE, *first, *rng.sample(HARMFUL, rng.choice((1, 1, 2)))]
        if short:
            parts = [rng.choice(HARMFUL)]
    else:
        parts = [ACKNOWLEDGE, *map(rng.choice, HARMLESS)]
    return expand(rng, " ".join(parts), **slots)
