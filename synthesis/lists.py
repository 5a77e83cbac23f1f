"""The lists that a model grows from a few human seeds: topics, instructions, constraints.

The first half of synthesis, in the manner of Self-Instruct (arXiv 2212.10560). Lists are
*continued*, not asked for: a prompt ends inside the list and the end of text is banned until some
items stand, which makes even small models list. The paper (arXiv 2502.08657) gives no prompts or
settings in its summaries; those below are ours.

Everything is a function of the settings, the seeds and what the ledger returns. A round's prompts
see the pool as it stood before the round, and results merge in the order of the calls.
"""

import math
import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from generate import Completion, Sampling
from support.files import InputError, sha256
from support.progress import say
from synthesis.filters import (
    OpeningQuota,
    parse_list,
    reject_constraint,
    reject_instruction,
    reject_topic,
)
from synthesis.ledger import Call, Ledger
from synthesis.rouge import RougePool
from synthesis.seeds import Domain, Seeds
from tokenizer import Tokenizer


@dataclass(frozen=True)
class Item:
    """An instruction to be answered. Benign ones and those of some domains get no toxic answer."""

    id: str
    domain: str
    topic: str
    prompt: str
    toxic: bool


@dataclass
class Run:
    """What all stages need, and what they leave: rejects for the record."""

    tokenizer: Tokenizer
    format: str
    ledger: Ledger
    seeds: Seeds
    seed: int
    target: int  # triplets wanted
    context: float = math.inf  # tokens that the model can read
    rejects: list[dict] = field(default_factory=list)

    def reject(self, id: str, stage: str, reason: str, text: str, *, value=None) -> None:
        """Only a fingerprint is kept of what was turned down; `value` is the measured one."""
        self.rejects.append({"id": id, "stage": stage, "reason": reason, "value": value,
                             "sha256": sha256(text), "length": len(text)})

    def frame(self, request: str, body: str) -> str:
        """A prompt whose continuation is wanted: for a chat model, an answer already begun."""
        if self.format == "raw":
            return f"{request}\n\n{body}"
        return self.tokenizer.prompt_text(request, "chat") + body

    def random(self, *name) -> random.Random:
        return random.Random("|".join(map(str, (self.seed, *name))))


def numbered(items: Iterable[str], *, start: int = 1) -> str:
    return "".join(f"{i}. {item}\n" for i, item in enumerate(items, start))


# --- topics -------------------------------------------------------------------------------------

TOPIC_REQUEST = "List everyday topics for each of these areas, a few words each."
TOPIC_SAMPLING = Sampling(64, temperature=0.8, top_p=0.95, stop=("\n\n",), min_lines=6)
TOPIC_CALLS = 2  # a domain and round
BARREN_ROUNDS = 3  # a pool that gained nothing for so long is dry


def topic_prompt(run: Run, domain: Domain, shown: list[str]) -> str:
    """Two finished blocks and the opening of a third; `shown`: some topics that it has already."""
    lines = {d.name: d.line for d in run.seeds.domains}
    done = [f"{name}: {lines[name]}\n{numbered(topics)}"
            for name, topics in run.seeds.topics.items() if name != domain.name]
    begun = f"{domain.name}: {domain.line}\n{numbered(shown)}{len(shown) + 1}."
    return run.frame(TOPIC_REQUEST, "\n".join([*done, begun]))


def grow_topics(run: Run, domains: list[Domain]) -> dict[str, list[str]]:
    """Topics for each domain, new by ROUGE-L; as many as the poorest has, if that is enough."""
    wanted = max(math.ceil(run.target / 200), min(20, math.ceil(run.target / len(domains))))
    topics = {d.name: list(run.seeds.topics.get(d.name, ())) for d in domains}
    pools = {d.name: RougePool(7, 10) for d in domains}
    for name, own in topics.items():
        for topic in own:
            pools[name].add(topic)
    # Every prompt shows the seeds of two domains, which a small model likes to copy.
    shown = [topic for own in run.seeds.topics.values() for topic in own]
    taken, barren = (*(d.name for d in run.seeds.domains), *shown), Counter()
    for round in range(8 * BARREN_ROUNDS):
        open_ = [d for d in domains
                 if len(topics[d.name]) < wanted and barren[d.name] < BARREN_ROUNDS]
        calls = {}
        for d in open_:
            for i in range(TOPIC_CALLS):
                id = f"topics/{d.name}/{round}/{i}/0"
                own = run.random(id).sample(topics[d.name], min(4, len(topics[d.name])))
                calls[Call(id, topic_prompt(run, d, own))] = d.name
        if not calls:
            break
        done = run.ledger.complete([list(calls)], TOPIC_SAMPLING, stage="topics",
                                   note=f", round {round + 1}")
        before = {name: len(own) for name, own in topics.items()}
        for call, name in calls.items():
            for topic in list_items(done[call.id]):
                topic = topic.partition(":")[0].rstrip(".").strip()
                reason = reject_topic(topic, taken=taken)
                hit = None if reason else pools[name].nearest_hit(topic)  # (index, F1)
                if reason or hit:
                    run.reject(call.id, "topics", reason or "similar", topic, value=hit)
                elif len(topics[name]) < wanted:
                    topics[name].append(topic)
                    pools[name].add(topic)
        for d in open_:
            barren[d.name] = 0 if len(topics[d.name]) > before[d.name] else barren[d.name] + 1
    fewest = min(map(len, topics.values()))
    if fewest >= 0.6 * wanted:  # balanced, unless that would cost too much
        topics = {name: own[:fewest] for name, own in topics.items()}
    return topics


def list_items(completion: Completion) -> list[str]:
    if completion.finish == "context":  # a list's prompt is always as long: all would be empty
        raise InputError("a list's prompt exceeds the context", "--model",
                         "use one with a longer one")
    return parse_list(completion.text, cut=completion.finish == "length")


# --- instructions -------------------------------------------------------------------------------

INSTRUCTION_REQUEST = "List messages that people send to an assistant, one a line."
INSTRUCTION_SAMPLING = Sampling(160, temperature=0.8, top_p=0.95, stop=("\n\n",), min_lines=4,
                                opening_penalty=2.0)
BENIGN_DOMAIN = "everyday"
ROUND_CALLS = 64
DRY = (200, 0.05)  # the stage ends when so many candidates in a row gave less than this share


def instruction_prompt(run: Run, topic: str, shown: list[str]) -> str:
    about = f"all about {topic}" if topic else "everyday questions"
    body = (f"Messages about all sorts of things:\n{numbered(shown)}\n"
            f"More messages, {about}:\n1.")
    return run.frame(INSTRUCTION_REQUEST, body)


class Instructions:
    """The growing pool of instructions, of the domains' topics or benign."""

    def __init__(self, run: Run, topics: list[tuple[str, str]], *, benign: bool,
                 pool: RougePool | None = None):
        self.run, self.topics, self.benign = run, topics, benign
        self.stage = "benign" if benign else "instructions"
        self.human = [i.text for i in run.seeds.instructions if i.benign == benign]
        self.items: list[Item] = []
        self.pool, self.quota = pool or RougePool(7, 10), OpeningQuota(run.target)
        for instruction in () if pool else run.seeds.instructions:
            self.pool.add(instruction.text)
        self.no_toxic = {d.name for d in run.seeds.domains if not d.toxic} | {BENIGN_DOMAIN}
        self.recent: list[bool] = []  # of each candidate so far: was it accepted?
        self.calls = 0

    @property
    def dry(self) -> bool:
        last = self.recent[-DRY[0]:]
        return len(last) == DRY[0] and sum(last) < DRY[1] * DRY[0]

    def grow(self, wanted: int) -> list[Item]:
        """Up to `wanted` instructions in all; returns those that are new."""
        start = len(self.items)
        while len(self.items) < wanted and not self.dry and self.calls < 4 * wanted:
            n = min(ROUND_CALLS, math.ceil((wanted - len(self.items)) / 2))
            calls = {}
            for i in range(self.calls, self.calls + n):
                domain, topic = self.topics[i % len(self.topics)]
                id = f"{self.stage}/{domain}/{i}/{topic}/0"
                calls[Call(id, instruction_prompt(self.run, topic, self._shown(id, topic)))] = (
                    domain, topic)
            done = self.run.ledger.complete([list(calls)], INSTRUCTION_SAMPLING, stage=self.stage,
                                            note=f", have {len(self.items)} of {wanted}")
            self.calls += n
            for call, (domain, topic) in calls.items():
                for text in list_items(done[call.id]):
                    self._judge(call.id, domain, topic, text, wanted)
        return self.items[start:]

    def _shown(self, id: str, topic: str) -> list[str]:
        """Up to four human demonstrations and two of the model's own, of other topics."""
        rng = self.run.random(id)
        others = [item.prompt for item in self.items if item.topic != topic or not topic]
        shown = rng.sample(self.human, min(4, len(self.human)))
        shown += rng.sample(others, min(2, len(others)))
        rng.shuffle(shown)
        return shown

    def _judge(self, call: str, domain: str, topic: str, text: str, wanted: int) -> None:
        reason = reject_instruction(text)
        if reason is None and self.quota.full(text):
            reason = "opening"
        hit = None if reason else self.pool.nearest_hit(text)  # (index, F1)
        self.recent.append(not (reason or hit))
        if reason or hit:
            self.run.reject(call, self.stage, reason or "similar", text, value=hit)
        elif len(self.items) < wanted:
            id = f"{self.stage[0]}/{len(self.items):06d}"
            self.items.append(Item(id, domain, topic, text, domain not in self.no_toxic))
            self.pool.add(text)
            self.quota.add(text)


# --- constraints --------------------------------------------------------------------------------

CONSTRAINT_REQUEST = {"positive": "List rules for an honest, caring and helpful assistant.",
                      "negative": "List rules for a careless, scornful and selfish character."}
CONSTRAINT_SAMPLING = Sampling(200, temperature=0.8, top_p=0.95, stop=("\n\n",), min_lines=8,
                               opening_penalty=1.0)
CONSTRAINT_CALLS = 3  # a side
CONSTRAINTS = (8, 16)  # with fewer the seeds alone are used; more are not kept


def constraint_prompt(run: Run, side: str) -> str:
    rules = run.seeds.constraints[side]
    return run.frame(CONSTRAINT_REQUEST[side], f"{numbered(rules)}{len(rules) + 1}.")


def complete_constraints(run: Run, side: str) -> list[str]:
    """The seeds of one side, continued by the model."""
    rules, openings, pool = list(run.seeds.constraints[side]), Counter(), RougePool(6, 10)
    for rule in rules:
        pool.add(rule)
    prompt = constraint_prompt(run, side)
    calls = [Call(f"constraints/{side}/0/{i}/0", prompt) for i in range(CONSTRAINT_CALLS)]
    done = run.ledger.complete([calls], CONSTRAINT_SAMPLING, stage=f"{side} constraints",
                               toxic=side == "negative")
    for call in calls:
        for rule in list_items(done[call.id]):
            first = rule.split()[0].lower()
            reason = reject_constraint(rule)
            if reason is None and openings[first] == 3:
                reason = "opening"
            hit = None if reason else pool.nearest_hit(rule)  # (index, F1)
            if reason or hit:
                run.reject(call.id, "constraints", reason or "similar", rule, value=hit)
            elif len(rules) < CONSTRAINTS[1]:
                rules.append(rule)
                openings[first] += 1
                pool.add(rule)
    if len(rules) < CONSTRAINTS[0]:
        say(f"only {len(rules)} {side} constraints came out: the seeds alone are used")
        return list(run.seeds.constraints[side])
    return rules
