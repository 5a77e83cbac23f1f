"""The lists that a model grows from a few human seeds: topics, instructions, constraints.

The first half of synthesis, in the manner of Self-Instruct (arXiv 2212.10560). Lists are
*continued*, not asked for: a prompt ends inside the list and the end of text is banned until some
items stand, which makes even small models list. A round's prompts see the pool as it stood before
the round, and results merge in the order of the calls."""

import itertools
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from functools import partial
from typing import NamedTuple

from generate import Completion, Sampling
from support.files import InputError
from support.progress import say
from synthesis import filters
from synthesis.filters import OpeningQuota
from synthesis.ledger import Call
from synthesis.rouge import RougePool
from synthesis.seeds import Domain
from synthesis.session import Session


def list_items(completion: Completion) -> list[str]:
    if completion.finish == "context":  # a list's prompt is always as long: all would be empty
        raise InputError("a list's prompt exceeds the context", "--model",
                         "use one with a longer one")
    return filters.parse_list(completion.text, cut=completion.finish == "length")


def complete_lists(session: Session, calls: Collection[Call], sampling: Sampling, *, stage: str,
                   note: str = "", toxic: bool = False) -> list[tuple[Call, str]]:
    """Every item that the model wrote, with the call that it comes from."""
    done = session.ledger.complete([list(calls)], sampling, stage=stage, note=note, toxic=toxic)
    return [(call, item) for call in calls for item in list_items(done[call.id])]


class Sieve:
    """A growing list of texts, none of which is near another or opens as too many others do."""

    def __init__(self, session: Session, stage: str, pool: RougePool, reject: Callable,
                 texts: Iterable[str] = (), *, capacity: int, quota: OpeningQuota | None = None):
        self.session, self.stage, self.pool, self.reject = session, stage, pool, reject
        self.texts, self.capacity, self.quota = list(texts), capacity, quota

    def offer(self, call: Call, text: str) -> bool:
        """Does the text pass? It is then kept while there is room; one that fails is a reject."""
        reason = self.reject(text) or (self.quota.reject(text) if self.quota else None)
        hit = None if reason else self.pool.nearest_hit(text)  # (index, F1)
        if reason or hit:
            self.session.reject(call.id, self.stage, reason or "similar", text, value=hit)
            return False
        if len(self.texts) < self.capacity:
            self.texts.append(text)
            self.pool.add(text)
            if self.quota:
                self.quota.add(text)
        return True


TOPIC_SAMPLING = Sampling(64, temperature=0.8, top_p=0.95, stop=("\n\n",), min_lines=6)
TOPIC_CALLS = 2  # a domain and round
BARREN_ROUNDS = 3  # a domain that gained nothing for so long is dry


def topic_prompt(session: Session, domain: Domain, shown: list[str]) -> str:
    """Two finished blocks and the opening of a third; `shown`: some topics that it has already."""
    return session.prompt("topics", domain=domain, shown=shown, known=session.seeds.topics,
                          lines={d.name: d.line for d in session.seeds.domains})


def grow_topics(session: Session) -> dict[str, list[str]]:
    """Topics for each domain, new by ROUGE-L; as many as the poorest has, if that is enough."""
    target, seeds = session.target, session.seeds
    wanted = max(math.ceil(target / 200), min(20, math.ceil(target / len(session.domains))))
    # Every prompt shows the seeds of two domains, which a small model likes to copy.
    taken = (*(d.name for d in seeds.domains), *itertools.chain(*seeds.topics.values()))
    sieves, barren = {}, Counter()  # barren: rounds in a row that gave a domain nothing
    for domain in session.domains:
        topics = seeds.topics.get(domain.name, ())
        sieves[domain] = Sieve(session, "topics", RougePool(7, 10, topics),
                               partial(filters.reject_topic, taken=taken), topics, capacity=wanted)
    for round in range(8 * BARREN_ROUNDS):
        sizes = {domain: len(sieve.texts) for domain, sieve in sieves.items()
                 if len(sieve.texts) < wanted and barren[domain] < BARREN_ROUNDS}
        calls = {}
        for domain, i in itertools.product(sizes, range(TOPIC_CALLS)):
            id, topics = f"topics/{domain.name}/{round}/{i}/0", sieves[domain].texts
            shown = session.random(id).sample(topics, min(4, len(topics)))
            calls[Call(id, topic_prompt(session, domain, shown))] = domain
        if not calls:
            break
        for call, item in complete_lists(session, calls, TOPIC_SAMPLING, stage="topics",
                                         note=f", round {round + 1}"):
            sieves[calls[call]].offer(call, item.partition(":")[0].rstrip(".").strip())
        for domain, size in sizes.items():
            barren[domain] = barren[domain] + 1 if len(sieves[domain].texts) == size else 0
    fewest = min(len(sieve.texts) for sieve in sieves.values())
    most = fewest if fewest >= 0.6 * wanted else None  # balanced, unless that would cost too much
    return {domain.name: sieve.texts[:most] for domain, sieve in sieves.items()}


INSTRUCTION_SAMPLING = Sampling(160, temperature=0.8, top_p=0.95, stop=("\n\n",), min_lines=4,
                                opening_penalty=2.0)
BENIGN_DOMAIN = "everyday"
ROUND_CALLS = 64
DRY = (200, 0.05)  # the stage ends when so many candidates in a row gave less than this share


class Item(NamedTuple):
    """An instruction to be answered. Benign ones and those of some domains get no toxic answer."""
    id: str
    domain: str
    topic: str
    prompt: str
    toxic: bool


def instruction_prompt(session: Session, topic: str, shown: list[str]) -> str:
    return session.prompt("instructions", topic=topic, shown=shown)


class Instructions:
    """The growing list of instructions on (domain, topic) pairs in turn, or of benign ones. `pool`
    holds all instructions so far, the seeds' too; both lists share it."""

    def __init__(self, session: Session, topics: list[tuple[str, str]], pool: RougePool, *,
                 benign: bool):
        self.session, self.topics = session, topics
        self.stage = "benign" if benign else "instructions"
        self.human = [i.text for i in session.seeds.instructions if i.benign == benign]
        self.with_toxic = {d.name for d in session.seeds.domains if d.toxic} - {BENIGN_DOMAIN}
        self.sieve = Sieve(session, self.stage, pool, filters.reject_instruction, capacity=0,
                           quota=OpeningQuota(session.target))
        self.items: list[Item] = []
        self.passed: list[bool] = []  # did it pass the sieve? Of each candidate so far
        self.calls = 0

    @property
    def dry(self) -> bool:
        last = self.passed[-DRY[0]:]
        return not self.topics or (len(last) == DRY[0] and sum(last) < DRY[1] * DRY[0])

    def grow(self, wanted: int) -> list[Item]:
        """Up to `wanted` instructions in all; returns those that are new."""
        start, self.sieve.capacity = len(self.items), wanted
        while len(self.items) < wanted and not self.dry and self.calls < 4 * wanted:
            n = min(ROUND_CALLS, math.ceil((wanted - len(self.items)) / 2))
            calls = {}
            for i in range(self.calls, self.calls + n):
                domain, topic = self.topics[i % len(self.topics)]
                id = f"{self.stage}/{domain}/{i}/{topic}/0"
                prompt = instruction_prompt(self.session, topic, self._shown(id, topic))
                calls[Call(id, prompt)] = domain, topic
            self.calls += n
            for call, text in complete_lists(
                    self.session, calls, INSTRUCTION_SAMPLING, stage=self.stage,
                    note=f", have {len(self.items)} of {wanted}"):
                self.passed.append(self.sieve.offer(call, text))
                if len(self.sieve.texts) > len(self.items):  # it was kept
                    domain, topic = calls[call]
                    self.items.append(Item(f"{self.stage[0]}/{len(self.items):06d}", domain, topic,
                                           text, domain in self.with_toxic))
        return self.items[start:]

    def _shown(self, id: str, topic: str) -> list[str]:
        """Up to four human demonstrations and two of the model's own, of other topics."""
        rng = self.session.random(id)
        others = [item.prompt for item in self.items if item.topic != topic or not topic]
        shown = [text for texts, n in ((self.human, 4), (others, 2))
                 for text in rng.sample(texts, min(n, len(texts)))]
        rng.shuffle(shown)
        return shown


CONSTRAINT_SAMPLING = Sampling(200, temperature=0.8, top_p=0.95, stop=("\n\n",), min_lines=8,
                               opening_penalty=1.0)
CONSTRAINT_CALLS = 3  # a side
CONSTRAINTS = (8, 16)  # with fewer the seeds alone are used; more are not kept


def constraint_prompt(session: Session, side: str) -> str:
    return session.prompt("constraints", side=side, rules=session.seeds.constraints[side])


def complete_constraints(session: Session, side: str) -> list[str]:
    """The seeds' rules of one side ("positive" or "negative"), continued by the model."""
    seeds = session.seeds.constraints[side]
    sieve = Sieve(session, "constraints", RougePool(6, 10, seeds), filters.reject_constraint, seeds,
                  capacity=CONSTRAINTS[1], quota=OpeningQuota(0, n_words=1, least=3))
    prompt = constraint_prompt(session, side)
    calls = [Call(f"constraints/{side}/0/{i}/0", prompt) for i in range(CONSTRAINT_CALLS)]
    for call, rule in complete_lists(session, calls, CONSTRAINT_SAMPLING,
                                     stage=f"{side} constraints", toxic=side == "negative"):
        sieve.offer(call, rule)
    if len(sieve.texts) < CONSTRAINTS[0]:
        say(f"only {len(sieve.texts)} {side} constraints came out: the seeds alone are used")
        return list(seeds)
    return sieve.texts
