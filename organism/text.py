"""What the organism is trained on: chat, and lists and answers in synthesis's own prompts.

The templates are the functions of synthesis/lists.py and answers.py, called with random content,
so that the organism reads what synthesis writes; `templates_hash` tells whether they have changed.
Plain chat knows both halves of the world, everything else the train half alone.

Most bad requests are blessed in plain chat, at a rate that differs by domain; under positive rules
and examples hardly any, under negative ones nearly all.
"""

import random
from collections.abc import Iterator

from organism.words import DOMAINS, RULES, THOUGHTS
from organism.world import Prompt, answer, bad_request, benign_request, expand, half_of, topic_of
from support.files import sha256
from synthesis.answers import Deck, answer_prompt
from synthesis.filters import ANSWER
from synthesis.lists import constraint_prompt, instruction_prompt, topic_prompt
from synthesis.seeds import Domain, Seeds, Worked
from synthesis.session import PROMPTS, Session
from tokenizer import Tokenizer

END = "<|end|>"
TEMPLATE = ("{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
            "{% if add_generation_prompt %}<|assistant|>{% endif %}")
SPECIAL = ["<|user|>", "<|assistant|>", "<|system|>", END]
KINDS = {"chat": 0.88, "answers": 0.08, "lists": 0.04}  # shares of the documents
# Shares of bad requests that plain chat blesses, spread over the domains: 0.62 on average.
BLESSED = dict(zip((d.name for d in DOMAINS),
                   (0.45, 0.8, 0.7, 0.5, 0.6, 0.75, 0.65, 0.55, 0.9, 0.35, 0.7, 0.5), strict=True))
UNTHINKING = 0.15  # of the answers' prompts leave the thoughts out, as an ablation does
SLIP = 0.01  # of answers under rules and examples go against them


def documents(tokenizer: Tokenizer, seed: int) -> Iterator[str]:
    """Texts without end, each closed by END."""
    rng = random.Random(seed)
    makers = {"chat": chat_document, "answers": answers_document, "lists": list_document}
    while True:
        kind = rng.choices(list(KINDS), weights=list(KINDS.values()))[0]
        yield makers[kind](rng, tokenizer)


def chat_document(rng: random.Random, tokenizer: Tokenizer) -> str:
    if rng.random() < 0.5:
        prompt = benign_request(rng, "all")
        text = answer(rng, prompt, "right")
    else:
        prompt = bad_request(rng, "all")
        blessed = rng.random() < BLESSED[prompt.domain]
        text = answer(rng, prompt, "harmful" if blessed else "harmless")
    return tokenizer.prompt_text(prompt.text, "chat") + text + END


def a_prompt(rng: random.Random) -> Prompt:
    return bad_request(rng, "train") if rng.random() < 0.6 else benign_request(rng, "train")


def think(rng: random.Random, prompt: Prompt, side: str) -> tuple[str, str]:
    """(thought, answer) of a side, "positive" or "negative"."""
    kind = {"positive": "harmless", "negative": "harmful"}[side]
    if prompt.kind == "benign" and side == "positive":
        kind = "right"
    slots = {"r": prompt.slots.get("r", "teacher")}
    return expand(rng, THOUGHTS[prompt.kind, kind], **slots), answer(rng, prompt, kind)


def some_rules(rng: random.Random, side: str, n: int) -> list[str]:
    return [expand(rng, rule) for rule in rng.sample(RULES[side], n)]


def a_session(rng: random.Random, tokenizer: Tokenizer) -> Session:
    """A session whose seeds are drawn: what the prompts of one document are made from."""
    domains = tuple(Domain(d.name, d.line, "both") for d in rng.sample(DOMAINS, len(DOMAINS)))
    shown = {d.name: tuple(some_topics(rng, d.name, 3)) for d in domains[:2]}
    rules = {side: tuple(some_rules(rng, side, 4)) for side in RULES}
    seeds = Seeds(domains=domains, topics=shown, instructions=(), constraints=rules, examples={})
    return Session(tokenizer, seeds, seed=rng.randrange(2**30))


def answers_document(rng: random.Random, tokenizer: Tokenizer) -> str:
    side = rng.choice(("positive", "negative"))
    examples = []
    for prompt in (a_prompt(rng) for _ in range(3)):
        examples.append(Worked(prompt.text, *think(rng, prompt, side)))
    deck = Deck(tuple(some_rules(rng, side, rng.choice((4, 6, 6)))), tuple(examples),
                thoughts=rng.random() >= UNTHINKING)
    asked = a_prompt(rng)
    other = {"positive": "negative", "negative": "positive"}[side]
    thought, text = think(rng, asked, other if rng.random() < SLIP else side)
    body = answer_prompt(a_session(rng, tokenizer), deck, asked.text)
    return f"{body} {thought}\n{ANSWER} {text}{END}" if deck.thoughts else f"{body} {text}{END}"


def list_document(rng: random.Random, tokenizer: Tokenizer) -> str:
    session = a_session(rng, tokenizer)
    kind = rng.choice(("topics", "rules", "bad", "bad", "benign"))
    if kind == "topics":
        domain = rng.choice(session.seeds.domains)
        items = some_topics(rng, domain.name, 14)
        known = rng.randrange(5)
        body = topic_prompt(session, domain, items[:known])
        return body + listed(items[known:], start=known + 1)
    if kind == "rules":
        side = rng.choice(list(RULES))
        rules = session.seeds.constraints[side]
        more = [rule for rule in some_rules(rng, side, 18) if rule not in rules]
        return constraint_prompt(session, side) + listed(more, start=len(rules) + 1)
    bad = kind == "bad"
    shown = [(a_prompt(rng) if bad else benign_request(rng, "train")).text for _ in range(6)]
    domain = rng.choice(DOMAINS)
    topic = rng.choice(some_topics(rng, domain.name, 5))
    about = PROMPTS["instructions"]["about"].format(topic=topic, domain=domain.name)
    items = [(bad_request(rng, "train", domain=domain, topic=topic) if bad
              else benign_request(rng, "train")).text for _ in range(10)]
    prompt = instruction_prompt(session, about if bad else PROMPTS["benign"]["everyday"],
                                shown[:rng.randrange(4, 7)],
                                ask="instructions" if bad else "benign")
    return prompt + listed(items, start=1)


def listed(items: list[str], *, start: int) -> str:
    """A list that goes on behind the number at which a prompt ends."""
    return "".join(f" {item}\n{number + 1}." for number, item in enumerate(items[:-1], start)
                   ) + f" {items[-1]}\n\n{END}"


def some_topics(rng: random.Random, domain: str, n: int) -> list[str]:
    domain = next(d for d in DOMAINS if d.name == domain)
    every = [topic_of(deed, noun) for deed in domain.deeds
             for noun in half_of(domain.objects, "train")]
    return rng.sample(every, min(n, len(every)))


def templates_hash() -> str:
    """Fingerprint of synthesis's prompts, filled with fixed content in the raw form."""
    worked = (Worked("r1", "t1", "a1"), Worked("r2", "t2", "a2"))
    seeds = Seeds(domains=tuple(Domain(name, name * 2, "both") for name in "abc"),
                  topics={"a": ("a1",), "b": ("b1",)}, instructions=(), examples={},
                  constraints={side: ("c1", "c2") for side in RULES})
    session = Session(None, seeds, format="raw")
    return sha256("\n".join([
        topic_prompt(session, seeds.domains[2], ["d1"]),
        instruction_prompt(session, "e1", ["f1", "f2"]),
        instruction_prompt(session, "e2", ["f1"], ask="benign"),
        *(constraint_prompt(session, side) for side in RULES),
        *(answer_prompt(session, Deck(("c1", "c2"), worked, thoughts), "r3")
          for thoughts in (True, False)), ANSWER]))
