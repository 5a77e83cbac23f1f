"""The human annotations that synthesis starts from: read, checked, counted.

PT-ALIGN's claim is fewer than 50 of them. One annotation is one human-written text that can enter a
prompt; templates, patterns and word lists are code. [our rule of counting]"""

from itertools import chain
from pathlib import Path
from typing import NamedTuple

from support.files import InputError, read_json
from support.lexicon import grave, never, operational
from synthesis.claims import FRAMES, claim_of

SHIPPED = Path(__file__).with_name("seeds.json")
LIMIT = 50  # there must be fewer annotations than this
LONGEST_LEAST = 192  # tokens; an answer must have room to end (answers.ANSWER_TOKENS)
SIDES = ("positive", "negative")  # of rules and examples; the answer of the second is "toxic"
KINDS = ("both", "positive", "benign")  # of a domain and its requests: which answers they get


class Domain(NamedTuple):
    name: str
    line: str  # what it is about, in a few words
    # "side" in the file: "both"; "positive": answers of that side only; "benign": nothing is wrong
    kind: str
    claims: bool = False  # harm lies in what is said: its instructions take a claim for true


class Instruction(NamedTuple):
    text: str
    benign: bool  # nothing is wrong with it
    domain: str  # or empty: of all sorts


class Worked(NamedTuple):
    """An in-context example: how to think, then how to answer."""
    prompt: str
    thought: str
    answer: str


class Seeds(NamedTuple):
    domains: tuple[Domain, ...]
    topics: dict[str, tuple[str, ...]]  # domain name -> topics
    instructions: tuple[Instruction, ...]
    constraints: dict[str, tuple[str, ...]]  # side -> one-line rules
    examples: dict[str, tuple[Worked, ...]]  # side -> the same prompts, answered
    # Under "answers" in the file, each with what holds where it is not given. The first two are of
    # answers like the worked examples.
    min_new_tokens: int = 0  # of a positive answer with its thought
    no_repeat_ngram: int = 0  # no run of so many tokens comes twice; 0: off
    toxic_temperature: float = 0.9  # at which toxic answers are drawn
    refusal_first: bool = False  # see Session.refusal

    def asked(self, how: str) -> list[str]:
        """The instructions of one part of prompts.toml: "instructions", "claims", "benign" (all of
        these), "lookalike" (benign ones of a domain whose requests otherwise do harm), "tasks"
        (those of them that ask no question) or "facts", which has none."""
        harmless = {"", *(domain.name for domain in self.domains if domain.kind == "benign")}
        claims = {domain.name for domain in self.domains if domain.claims}
        wanted = {"instructions": lambda i: not i.benign and i.domain not in claims,
                  "claims": lambda i: not i.benign and i.domain in claims,
                  "benign": lambda i: i.benign,
                  "lookalike": lambda i: i.benign and i.domain not in harmless,
                  "tasks": lambda i: wanted["lookalike"](i) and not i.text.endswith("?"),
                  "facts": lambda i: False}
        return [i.text for i in self.instructions if wanted[how](i)]

    def texts(self) -> list[str]:
        """All that people wrote, each once: an example's prompt stands among the instructions."""
        return [*(f"{domain.name}: {domain.line}" for domain in self.domains),
                *(instruction.text for instruction in self.instructions),
                *chain(*self.topics.values(), *self.constraints.values()),
                *(text for e in chain(*self.examples.values()) for text in (e.thought, e.answer))]

    def count(self, *, strict: bool = False) -> int:
        """Annotations; a thought and its answer are one, or two if `strict`."""
        return len(self.texts()) - (0 if strict else sum(map(len, self.examples.values())))


def _kind(value, kind: type):
    """The value, of this kind and not empty."""
    if kind is float and type(value) is int:  # some programs write 1.0 so
        value = float(value)
    if type(value) is not kind or value in ("", []):
        raise TypeError
    return value


def _texts(values) -> tuple[str, ...]:
    return tuple(_kind(value, str) for value in _kind(values, list))


def read_seeds(path: Path = SHIPPED) -> Seeds:
    """A seeds file, checked: InputError names the file and what is wrong."""
    raw = read_json(path)
    try:
        answers = {name: _kind(raw.get("answers", {}).get(name, default), type(default))
                   for name, default in Seeds._field_defaults.items()}
        seeds = Seeds(
            domains=tuple(Domain(*_texts([d["name"], d["line"], d.get("side", "both")]),
                                 _kind(d.get("claims", False), bool)) for d in raw["domains"]),
            topics={t["domain"]: _texts(t["topics"]) for t in raw["topics"]},
            instructions=tuple(Instruction(_kind(i["text"], str), _kind(i["benign"], bool),
                                           i.get("domain", ""))
                               for i in raw["instructions"]),
            constraints={side: _texts(raw["constraints"][side]) for side in SIDES},
            examples={side: tuple(
                Worked(*_texts([e["prompt"], e[side]["thought"], e[side]["answer"]]))
                for e in raw["examples"]) for side in SIDES},
            **answers)
        _check(seeds, raw, path)
    except (KeyError, TypeError, AttributeError) as error:
        fault = f"field {error}" if isinstance(error, KeyError) else "a field of the wrong kind"
        raise InputError(fault, path, "follow the shape of seeds.json") from None
    return seeds


def _check(seeds: Seeds, raw: dict, path: Path) -> None:
    names = [domain.name for domain in seeds.domains]
    negative = [text for e in seeds.examples["negative"] for text in (e.thought, e.answer)]
    annotations = seeds.count(strict=True)
    for wrong, fault, remedy in (
        (len(seeds.topics) < len(raw["topics"]),
         "topics name a domain twice", "join the two lists"),
        (len(set(names)) < len(names) or not names, "domains are missing or named twice", "fix it"),
        (not {domain.kind for domain in seeds.domains} <= set(KINDS), "a domain's side is unknown",
         f"choose from: {', '.join(KINDS)}"),
        (not {i.domain for i in seeds.instructions} <= {"", *names},
         "an instruction names no domain of the file", "name it as in domains"),
        (not set(seeds.topics) <= set(names) or len(seeds.topics) < 2,
         "topics need two of the domains", "name them as in domains"),
        (min(map(len, seeds.constraints.values())) < 2, "too few constraints", "give 2 or more"),
        (all(i.benign for i in seeds.instructions), "no instruction with benign false", "add some"),
        (any(d.claims for d in seeds.domains) and not seeds.asked("claims"),
         "no instruction is of a domain with claims", "add some"),
        (not seeds.asked("instructions"), "all harmful instructions are of domains with claims",
         "add some of another domain"),
        (any(d.claims and d.kind == "benign" for d in seeds.domains),
         "a harmless domain has claims", "give it another side"),
        (not all(map(claim_of, seeds.asked("claims"))),
         "a harmful instruction of a domain with claims is in no frame",
         f"begin it like one of: {'; '.join(FRAMES).replace('{}.', '...')}"),
        # A misspelt "side" would give toxic text to a grave subject.
        (not set().union(*raw["domains"]) <= {"name", "line", "side", "claims"},
         "a domain has an unknown field", "choose from: name, line, side, claims"),
        (not set().union(*raw["instructions"]) <= {"text", "benign", "domain"},
         "an instruction has an unknown field", "choose from: text, benign, domain"),
        (not set(raw.get("answers", ())) <= set(Seeds._field_defaults),
         "answers has an unknown field", f"choose from: {', '.join(Seeds._field_defaults)}"),
        (not 0 <= seeds.min_new_tokens <= LONGEST_LEAST, "min_new_tokens is out of range",
         f"give 0 to {LONGEST_LEAST}"),
        (seeds.no_repeat_ngram < 0 or seeds.no_repeat_ngram == 1,
         "no_repeat_ngram is out of range", "give 2 or more, or 0 for none"),
        (not 0.01 <= seeds.toxic_temperature <= 2, "toxic_temperature is out of range",
         "give 0.9, or another from 0.01 to 2"),
        (not seeds.examples["positive"], "no examples", "add some"),
        (not {e.prompt for e in seeds.examples["positive"]} <= {i.text for i in seeds.instructions},
         "an example's prompt is not among instructions", "copy it"),
        (any(map(operational, negative)), "a negative example reads as instructions",
         "describe an attitude, no method"),
        (any(map(grave, [*negative, *(e.prompt for e in seeds.examples["negative"])])),
         "a negative example touches a grave subject", "take another"),
        (any(map(never, seeds.texts())), "a seed touches an excluded subject", "drop it"),
        (annotations >= LIMIT, f"{annotations} annotations", f"stay below {LIMIT}"),
    ):
        if wrong:
            raise InputError(fault, path, remedy)


def choose_domains(domains: tuple[Domain, ...], names: list[str] | None) -> list[Domain]:
    """All of them, or those named and the benign ones."""
    known = {domain.name: domain for domain in domains}
    wanted = list(known) if names is None else names
    for name in wanted or [""]:
        if name not in known:
            raise InputError(f"no domain {name!r}", "--domains", f"choose from: {', '.join(known)}")
    benign = [domain.name for domain in domains if domain.kind == "benign"]
    return [known[name] for name in dict.fromkeys([*wanted, *benign])]
