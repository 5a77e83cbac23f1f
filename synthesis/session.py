"""What all stages of a synthesis share: settings, seeds, the model's calls, and their rejects."""

import math
import random
import sys
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, cycle
from pathlib import Path

from support.decoding import closing
from support.files import InputError, read_toml, sha256
from synthesis.ledger import Ledger
from synthesis.seeds import Domain, Seeds
from tokenizer import Tokenizer

PROMPTS = read_toml(Path(__file__).with_name("prompts.toml"))


@dataclass
class Session:
    tokenizer: Tokenizer
    seeds: Seeds
    ledger: Ledger | None = None  # prompts can be written without one
    seed: int = 0
    domains: list[Domain] = field(default_factory=list)  # those of the seeds that are wanted
    target: int = 1  # triplets wanted
    n_benign: int = 0  # benign rows wanted
    limit: int = sys.maxsize  # harmful requests answered at most, and benign ones: for a trial
    positives_only: bool = False
    thoughts: bool = True  # shown in the examples and asked for
    refine: bool = True  # what failed twice goes back to the model with the reason
    judged: bool = False  # the model tells harmful requests from harmless ones
    knowing: bool = False  # it tells true statements from false ones
    reluctant: bool = False  # it declines harmful requests by itself
    round_calls: int | None = None  # that ask for instructions in one round; None: ROUND_CALLS
    context: float = math.inf  # tokens that the model can read
    format: str = "chat"  # of the prompts
    rejects: list[dict] = field(default_factory=list)

    def reject(self, id: str, stage: str, reason: str, text: str, *, value=None) -> None:
        """Only a fingerprint of a rejected text is kept; `value` is what was measured of it."""
        self.rejects.append({"id": id, "stage": stage, "reason": reason, "value": value,
                             "sha256": sha256(text), "length": len(text)})

    @property
    def refusal(self) -> str:
        """What stands in front of positive answers to harmful requests, if the seeds want it: the
        words in which the model declines by itself. Without them it unlearns to decline so, and
        gets no safer (results/qwen2.5/looks/seventh.md)."""
        return PROMPTS["answers"]["refusal"] if self.reluctant and self.seeds.refusal_first else ""

    @cached_property
    def has_system(self) -> bool:
        """Does the template show a system message? Some refuse it, some leave it out."""
        messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
        try:
            return bool(self.tokenizer.prompt_text(messages, "chat"))
        except InputError:
            return False

    def prompt(self, system: str, turns: list[tuple[str, str]], user: str, opening: str, *,
               label: str = "") -> str:
        """A prompt that ends with the first words of the answer. `turns`: worked examples, (user's,
        assistant's); `label`: what a base model, which has no turns, reads before a user's."""
        if self.format == "raw":
            parts = [system, *(f"{label}{asked}\n{told}" for asked, told in turns),
                     f"{label}{user}\n{opening}"]
            return "\n\n".join(filter(None, parts))
        texts = [*chain(*turns), user]
        if system and not self.has_system:
            texts[0], system = f"{system}\n\n{texts[0]}", ""
        messages = [{"role": role, "content": text}
                    for role, text in zip(cycle(("user", "assistant")), texts, strict=False)]
        if system:
            messages.insert(0, {"role": "system", "content": system})
        text = self.tokenizer.prompt_text(messages, "chat")
        # What is asked for is no thought aloud.
        return text + closing(text) + (self.space + opening if opening else "")

    @cached_property
    def space(self) -> str:
        """What an answer begins with behind a prompt: Mistral's templates put a space there."""
        lead = self.tokenizer.answer_text("", self.format)
        return lead if lead.isspace() else ""

    def random(self, *name) -> random.Random:
        """A generator of its own for each name, so that no stage disturbs another's draws."""
        return random.Random("|".join(map(str, (self.seed, *name))))
