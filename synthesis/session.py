"""What all stages of a synthesis share: settings, seeds, the model's calls, and their rejects."""

import math
import random
from dataclasses import dataclass, field
from pathlib import Path

import jinja2

from support.files import sha256
from synthesis.ledger import Ledger
from synthesis.seeds import Domain, Seeds
from tokenizer import Tokenizer

PROMPTS = jinja2.Environment(loader=jinja2.FileSystemLoader(Path(__file__).with_name("prompts")),
                             trim_blocks=True, undefined=jinja2.StrictUndefined)


@dataclass
class Session:
    tokenizer: Tokenizer
    seeds: Seeds
    ledger: Ledger | None = None  # prompts can be written without one
    seed: int = 0
    domains: list[Domain] = field(default_factory=list)  # those of the seeds that are wanted
    target: int = 1  # triplets wanted
    n_benign: int = 0  # benign rows wanted
    limit: float = math.inf  # instructions that are answered at most: a trial run
    positives_only: bool = False
    thoughts: bool = True  # shown in the examples and asked for
    context: float = math.inf  # tokens that the model can read
    rejects: list[dict] = field(default_factory=list)

    def reject(self, id: str, stage: str, reason: str, text: str, *, value=None) -> None:
        """Only a fingerprint of a rejected text is kept; `value` is what was measured of it."""
        self.rejects.append({"id": id, "stage": stage, "reason": reason, "value": value,
                             "sha256": sha256(text), "length": len(text)})

    def prompt(self, name: str, **fields) -> str:
        """A template of prompts/, filled in, to be continued. A base model reads all of it as text;
        for a chat model the first paragraph is the request, the rest an answer already begun."""
        text = PROMPTS.get_template(f"{name}.jinja").render(fields)
        if self.tokenizer.default_format == "raw":
            return text
        request, _, body = text.partition("\n\n")
        return self.tokenizer.prompt_text(request, "chat") + body

    def random(self, *name) -> random.Random:
        """A generator of its own for each name, so that no stage disturbs another's draws."""
        return random.Random("|".join(map(str, (self.seed, *name))))
