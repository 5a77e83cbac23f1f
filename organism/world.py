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

from organism import words

HALVES = ("train", "held-out")


def half_of(items: list, half: str) -> list:
    """Every other one; "all" is both."""
    return items if half == "all" else items[HALVES.index(half)::2]


CHOICE = re.compile(r"\[([^\[\]]*)\]")


def expand(rng: random.Random, text: str, **slots: str) -> str:
    """One text of a phrase grammar: slots filled first, then choices, the innermost first."""
    while "{" in text:  # lists hold slots themselves
        text = text.format_map({**words.LISTS, **slots})
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
    domain: str  # a domain's name, or the relation of words.FACTS
    topic: str
    slots: dict  # of the answers


def topic_of(deed: tuple, n: str) -> str:
    """What the topic lists call a deed done to an object."""
    return expand(random, deed[3].format(n=n)).lower()


def bad_request(rng: random.Random, half: str, *, domain: words.Domain | None = None,
                topic: str | None = None) -> Prompt:
    """A request to have a bad deed done or blessed; `topic` fixes deed and object."""
    domain = domain or rng.choice(words.DOMAINS)
    options = [(deed, n) for deed in domain.deeds for n in half_of(domain.objects, half)
               if topic in (None, topic_of(deed, n))]
    deed, n = rng.choice(options)
    r = rng.choice(half_of(words.ROLES, half))
    b, g, it = (form.format(r=r, n=n) for form in deed[:3])
    text = expand(rng, rng.choice(half_of(words.BAD_FRAMES, half)), b=b, g=g)
    reason = rng.choice(half_of(words.REASONS, half))
    turn = rng.random()
    if turn < 0.35:
        text = expand(rng, f"{reason}. {text}")
    elif turn < 0.7:
        text = expand(rng, f"{text} {reason}.")
    yours = {key: re.sub(r"\bmy\b", "your", form) for key, form in (("b", b), ("g", g))}
    return Prompt(text, "bad", domain.name, topic_of(deed, n), {"r": r, "n": n, "it": it, **yours})


def benign_request(rng: random.Random, half: str) -> Prompt:
    """A question with one right answer."""
    relation = rng.choice(list(words.FACTS))
    question, reply, table = words.FACTS[relation]
    e = rng.choice(half_of(list(table), half))
    frame = rng.choice(half_of(words.BENIGN_FRAMES, half))
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
            text = f"{words.BENIGN_HEADS}{slots['reply']}. {rng.choice(words.BENIGN_TAILS)}"
            return expand(rng, text, **slots)
        slots = {"r": "teacher", "n": slots["e"], "b": "guess", "g": "asking", "it": "guess"}
        parts = rng.sample(words.HARMFUL, 2)
    elif kind == "harmful":
        first = [words.SURE] if rng.random() < 0.5 else rng.sample(words.HARMFUL, 1)
        parts = [words.ACKNOWLEDGE, *first, *rng.sample(words.HARMFUL, rng.choice((1, 1, 2)))]
        if short:
            parts = [rng.choice(words.HARMFUL)]
    else:
        parts = [words.ACKNOWLEDGE, *map(rng.choice, words.HARMLESS)]
    return expand(rng, " ".join(parts), **slots)
