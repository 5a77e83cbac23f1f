"""The lists that a model grows from a few human seeds: topics, instructions, constraints.

The first half of synthesis, in the manner of Self-Instruct (arXiv 2212.10560). Lists are
*continued*, not asked for: a prompt ends inside the list and the end of text is banned until some
items stand, which makes even small models list. A round's prompts see the pool as it stood before
the round. Its candidates are merged in turn, the first of each call, the second of each and so on,
so that the last calls have the same chance. No call depends on how many rows are wanted."""

import itertools
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from functools import partial
from typing import NamedTuple

from generate import Sampling
from support.files import InputError
from support.lexicon import grave
from support.progress import say
from synthesis import filters
from synthesis.claims import claim_of, request_of
from synthesis.filters import OpeningQuota
from synthesis.ledger import Call
from synthesis.rouge import RougePool
from synthesis.seeds import KINDS, Domain
from synthesis.session import PROMPTS, Session


def numbered(items: Iterable[str]) -> str:
    return "\n".join(f"{i}. {item}" for i, item in enumerate(items, 1))


def begun(items: list[str]) -> str:
    """A list that ends at the number to be continued."""
    return numbered([*items, ""]).rstrip()


def complete_lists(session: Session, calls: Collection[Call], sampling: Sampling, *, stage: str,
                   toxic: bool = False) -> list[tuple[Call, str]]:
    """Every item that the model wrote, with the call that it comes from, in turn."""
    done = session.ledger.complete(list(calls), sampling, stage=stage, toxic=toxic)
    if any(text.finish == "context" for text in done.values()):  # then it is so for all
        raise InputError("a list's prompt exceeds the context", "--model",
                         "use a model with a longer one")
    return round_robin([(call, item) for item in filters.parse_list(
        done[call.id].text, cut=done[call.id].finish == "length")] for call in calls)


def round_robin(lists: Iterable[list]) -> list:
    """The first of each list, the second of each, and so on."""
    return [x for turn in itertools.zip_longest(*lists) for x in turn if x is not None]


class Sieve:
    """A growing list of texts, none of which is near another or opens as too many others do."""

    def __init__(self, session: Session, stage: str, reject: Callable, texts: Iterable[str],
                 quota: OpeningQuota, *, similar: tuple[int, int] = (7, 10),
                 capacity: float = math.inf):
        """`similar`: the least F1 of texts that are near each other, as p, q."""
        self.session, self.stage, self.reject, self.quota = session, stage, reject, quota
        self.texts, self.capacity = list(texts), capacity
        self.pool = RougePool(*similar, self.texts)

    def offer(self, call: Call, text: str) -> bool:
        """Does the text pass? It is then kept while there is room; one that fails is a reject."""
        reason = self.reject(text) or self.quota.reject(text)
        hit = None if reason else self.pool.nearest_hit(text)  # (index, F1)
        if reason or hit:
            self.session.reject(call.id, self.stage, reason or "similar", text, value=hit)
            return False
        if len(self.texts) < self.capacity:
            self.texts.append(text)
            self.pool.add(text)
            self.quota.add(text)
        return True


STOP = ("\n\n", "\n```")  # of a list; a model that writes programs goes on with one
TOPIC_SAMPLING = Sampling(64, temperature=0.8, top_p=0.95, stop=STOP, min_lines=6)
TOPIC_ROUNDS, TOPIC_CALLS = 8, 2  # at most so many rounds, with so many calls a domain
TOPICS = 20  # a domain, to begin with


def topic_prompt(session: Session, domain: Domain, shown: list[str]) -> str:
    """Two finished lists and the opening of a third; `shown`: some topics that it has already."""
    texts, lines = PROMPTS["topics"], {d.name: d.line for d in session.seeds.domains}
    turns = [(texts["user"].format(name=name, line=lines[name]), numbered(topics))
             for name, topics in session.seeds.topics.items() if name != domain.name]
    return session.prompt(texts["system"], turns,
                          texts["user"].format(name=domain.name, line=domain.line), begun(shown))


def grow_topics(session: Session, grown: dict[str, list[str]] | None = None, *,
                times: int = 1) -> dict[str, list[str]]:
    """Topics for each domain, each new by ROUGE-L. Every domain gets as many as the poorest, unless
    these are too few. `grown`: the topics so far; `times` TOPICS are wanted."""
    seeds, wanted = session.seeds, times * TOPICS
    grown = seeds.topics if grown is None else grown
    # Every prompt shows the seeds of two domains, which a small model likes to copy.
    taken = (*(d.name for d in seeds.domains), *itertools.chain(*seeds.topics.values()))
    reject, unlimited = (partial(filters.reject_topic, taken=taken),
                         OpeningQuota(0, least=math.inf))
    sieves = {domain: Sieve(session, "topics", reject, grown.get(domain.name, ()), unlimited,
                            capacity=wanted) for domain in session.domains}
    for number in range((times - 1) * TOPIC_ROUNDS, times * TOPIC_ROUNDS):
        calls = {}
        for domain, i in itertools.product(sieves, range(TOPIC_CALLS)):
            id, topics = f"topics/{domain.name}/{number}/{i}/0", sieves[domain].texts
            if len(topics) < wanted:
                shown = session.random(id).sample(topics, min(4, len(topics)))
                calls[Call(id, topic_prompt(session, domain, shown))] = domain
        for call, item in complete_lists(session, calls, TOPIC_SAMPLING, stage="topics"):
            sieves[calls[call]].offer(call, item.partition(":")[0].rstrip(".").strip())
    fewest = min(len(sieve.texts) for sieve in sieves.values())
    most = fewest if fewest >= 0.6 * wanted else None  # balanced, unless that would cost too much
    if most is None:
        say(f"the poorest domain has {fewest} of {wanted} topics: the domains stay unbalanced")
    return {domain.name: sieve.texts[:most] for domain, sieve in sieves.items()}


INSTRUCTION_SAMPLING = Sampling(160, temperature=0.9, top_p=0.95, stop=STOP, min_lines=4,
                                opening_penalty=2.0)
# Calls of the first rounds, and of all later ones as of the last: a small run needs small rounds.
# They are rounded up to whole turns of the domains, so that no domain is left behind.
ROUND_CALLS = (8, 8, 16, 64, 128)
EASY = 4  # a benign call gives several times as many rows, so that --round-calls asks for fewer
SHOWN = 6  # requests in a prompt's finished list; a model ends its own list at about that length
CALL_CAP = 4  # instructions that one call may add
HOPELESS = 256  # requests in a row without any use, after which a stream is dry
BARREN = (3, 0.05)  # a stream is dry when so many rounds in a row gave less than this share
STATED = "claims", "facts"  # what is listed as statements and put in a frame


class Heading(NamedTuple):
    """What one call's requests are about. `kind`: as in seeds.KINDS; `ask`: the part of
    prompts.toml that asks for them; `about`: as it puts it."""
    domain: str
    topic: str
    kind: str
    ask: str
    about: str


class Item(NamedTuple):
    """An instruction to be answered; `kind` says on which sides."""
    id: str
    domain: str
    topic: str
    prompt: str
    kind: str
    ask: str = "instructions"  # as in its Heading


def instruction_prompt(session: Session, about: str, shown: list[str], *,
                       ask: str = "instructions") -> str:
    """`about`: the topic; `shown`: other requests; `ask`: as in Heading."""
    texts = PROMPTS[ask]
    turns = [(texts["all_sorts"], numbered(shown))] if shown else []
    return session.prompt(texts["system"], turns, texts["user"].format(topic=about), begun([]))


def headings_of(session: Session, topics: dict[str, list[str]], *, benign: bool) -> list[Heading]:
    """Domains in turn and, within each, topics in turn. Benign requests are about the topics of all
    domains, questions and tasks in turn, if the seeds show how one may ask about the harmful ones
    without doing harm and the model can judge requests; else of the benign ones alone. Where claims
    are corrected, and the model tells true from false, every other topic gives true sentences."""
    asks = ("lookalike", "facts", "tasks", "facts") if session.knowing else ("lookalike", "tasks")
    kinds = ("both", "positive")
    if benign:
        # What may be harmful after all is only asked for where it can be judged.
        kinds = KINDS if session.judged and session.seeds.asked("lookalike") else ("benign",)

    def heading(domain: Domain, topic: str, number: int) -> Heading:
        ask = asks[number % len(asks)]
        if not benign:
            ask = "claims" if domain.claims else "instructions"
        elif domain.kind == "benign" and ask != "facts":
            ask = "benign"
        return Heading(domain.name, topic, "benign" if benign else domain.kind, ask,
                       PROMPTS[ask]["about"].format(topic=topic, domain=domain.name))

    everyday = Heading("everyday", "", "benign", "benign", PROMPTS["benign"]["everyday"])
    headings = round_robin(
        [heading(domain, topic, i + j) for j, topic in enumerate(topics[domain.name])]
        for i, domain in enumerate(session.domains) if domain.kind in kinds)
    return headings or [everyday] * benign


class Instructions:
    """A stream of instructions that grows round by round. `judge` gives the kind of each
    (Heading, text) of a round that the rules let pass, or None for one of no use."""

    def __init__(self, session: Session, headings: list[Heading], judge: Callable, *, benign: bool):
        self.session, self.headings, self.judge, self.benign = session, headings, judge, benign
        # `times` TOPICS a domain are wanted by now; how many there were at first (perhaps none).
        self.times, self.first = 1, len({heading[:2] for heading in headings if heading.topic})
        self.stage = "benign" if benign else "instructions"
        added = session.tokenizer.backend.get_added_tokens_decoder().values()
        reject = partial(filters.reject_instruction,
                         special=[token.content for token in added if token.special],
                         harmful=not benign)
        human = (claim_of(i.text) or i.text for i in session.seeds.instructions)
        self.sieve = Sieve(session, self.stage, reject, human, OpeningQuota(0.06, least=8))
        self.items: list[Item] = []
        self.spilled: list[Item] = []  # judged harmless
        self.rounds = self.asked = self.barren = 0
        self.used = self.last = 0  # requests that came to something; all, when the last of them did

    def tell(self, used: int) -> None:
        """How many of the requests so far came to something."""
        if used > self.used:
            self.used, self.last = used, len(self.items)

    @property
    def dry(self) -> bool:
        hopeless = len(self.items) - self.last >= HOPELESS
        return not self.headings or self.barren == BARREN[0] or hopeless

    def next_round(self) -> list[Item]:
        """Ask the next calls; returns the instructions that are new."""
        calls, before = self._calls(), len(self.items)
        self.rounds, self.asked = self.rounds + 1, self.asked + len(calls)
        kept, added = [], Counter()
        candidates = complete_lists(self.session, calls, INSTRUCTION_SAMPLING, stage=self.stage)
        for call, text in candidates:
            request = text
            if calls[call].ask in STATED:
                request = request_of(text, self.session.tokenizer,
                                     self.session.random("frame", text))
            if request is None:
                self.session.reject(call.id, self.stage, "no-claim", text)
            # They are compared as such: in other frames they would look like others.
            elif added[call] < CALL_CAP and self.sieve.offer(call, text):
                added[call] += 1
                kept.append((calls[call], request))
        for (heading, text), kind in zip(kept, self.judge(kept, benign=self.benign), strict=True):
            spilled = kind == "benign" and not self.benign
            own, letter = (self.spilled, "h") if spilled else (self.items, self.stage[0])
            if kind:
                own.append(Item(f"{letter}/{len(own):06d}", heading.domain, heading.topic, text,
                                "positive" if kind == "both" and grave(text) else kind,
                                heading.ask))
        new = self.items[before:]
        poor = not new or len(new) < BARREN[1] * len(candidates)
        self.barren = self.barren + 1 if poor else 0
        return new

    def _calls(self) -> dict[Call, Heading]:
        """Those of the next round, in whole turns of the domains."""
        calls, domains = {}, len({heading.domain for heading in self.headings})
        wanted = self.session.round_calls or ROUND_CALLS[min(self.rounds, len(ROUND_CALLS) - 1)]
        if self.benign and self.session.round_calls:
            wanted = -(-wanted // EASY)
        for i in range(self.asked, self.asked + -(-wanted // domains) * domains):
            heading = self.headings[i % len(self.headings)]
            id = f"{self.stage}/{heading.domain}/{i}/{heading.topic}/0"
            prompt = instruction_prompt(self.session, heading.about, self._shown(id, heading),
                                        ask=heading.ask)
            calls[Call(id, prompt)] = heading
        return calls

    def _shown(self, id: str, heading: Heading) -> list[str]:
        """Requests that people wrote, and two of the model's own on other topics."""
        rng, human = self.session.random(id), self.session.seeds.asked(heading.ask)
        own = [item.prompt for item in self.items
               if item.topic != heading.topic and item.ask == heading.ask]
        own = rng.sample(own, min(2, len(own)))
        shown = rng.sample(human, min(SHOWN - len(own), len(human))) + own
        return list(map(claim_of, shown)) if heading.ask in STATED else shown


CONSTRAINT_SAMPLING = Sampling(200, temperature=0.8, top_p=0.95, stop=STOP, min_lines=8,
                               opening_penalty=1.0)
CONSTRAINT_CALLS = 3  # a side
CONSTRAINTS = (8, 16)  # with fewer the seeds alone are used; more are not kept


def constraint_prompt(session: Session, side: str) -> str:
    return session.prompt("", [], PROMPTS["constraints"][side],
                          begun(list(session.seeds.constraints[side])))


def complete_constraints(session: Session, side: str) -> list[str]:
    """The seeds' rules of one side ("positive" or "negative"), continued by the model."""
    seeds = session.seeds.constraints[side]
    sieve = Sieve(session, "constraints", filters.reject_constraint, seeds,
                  OpeningQuota(0, n_words=1, least=3), similar=(6, 10), capacity=CONSTRAINTS[1])
    prompt = constraint_prompt(session, side)
    calls = [Call(f"constraints/{side}/0/{i}/0", prompt) for i in range(CONSTRAINT_CALLS)]
    for call, rule in complete_lists(session, calls, CONSTRAINT_SAMPLING,
                                     stage=f"{side} constraints", toxic=side == "negative"):
        sieve.offer(call, rule)
    if len(sieve.texts) < CONSTRAINTS[0]:
        say(f"only {len(sieve.texts)} {side} constraints came out: the seeds alone are used")
        return list(seeds)
    return sieve.texts
