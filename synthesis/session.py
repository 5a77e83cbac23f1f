"""What all stages of a synthesis share: settings, seeds, the model's calls, and their rejects."""

import math
import random
from dataclasses import dataclass, field

from support.files import sha256
from synthesis.ledger import Ledger
from synthesis.seeds import Domain, Seeds
from tokenizer import Tokenizer


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

    def frame(self, request: str, body: str) -> str:
        """A prompt whose continuation is wanted: for a chat model, an answer already begun."""
        if self.tokenizer.default_format == "raw":
            return f"{request}\n\n{body}"
        return self.tokenizer.prompt_text(request, "chat") + body

    def random(self, *name) -> random.Random:
        """A generator of its own for each name, so that no stage disturbs another's draws."""
        return random.Random("|".join(map(str, (self.seed, *name))))
