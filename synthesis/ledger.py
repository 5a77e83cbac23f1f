"""The record of a run: its folder, lock and settings, and every model call it has paid for.

Synthesis is a pure function of (settings, seeds, results of model calls). Calls are the only
expensive part, so they are what is kept: starting again replays the loop from the top, and a call
that is on record returns at once. An interrupted run therefore ends like an unbroken one.

Calls are made in fixed blocks, and a line of the file is a block, whole or not there at all: in
bf16 a row's rounding depends on its batch, so half a block made again would give other text.
"""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from generate import Completion, Sampling, draw_seed, generate
from model import load_model
from support.files import (
    AppendLog,
    canonical,
    sha256,
)
from support.progress import Progress
from tokenizer import Tokenizer
from triplets import Toxic


@dataclass(frozen=True)
class Call:
    """One completion to be made. `id` says where it comes in, and no other call has it:
    instructions/DOMAIN/INDEX/TOPIC/0, or answers/SIDE/ITEM/ATTEMPT where ITEM is i/000123.
    """

    id: str
    prompt: str

    def seed(self, run_seed: int) -> int:
        return draw_seed(run_seed, self.id)


class Ledger:
    """Completions by content: the same calls under the same settings are made once, ever.

    `make(prompts, seeds, sampling) -> [Completion]` runs the model on one block of up to `block`
    calls; `identity` holds whatever else its results depend on (weights, dtype, device).
    """

    def __init__(self, folder: Path, identity: dict, make: Callable, *, run_seed: int, block: int):
        self.identity, self.make, self.run_seed, self.size = identity, make, run_seed, block
        self.logs = {False: AppendLog(folder / "calls.jsonl"),
                     True: AppendLog(folder / "calls.toxic.jsonl", mode=0o600)}
        self.blocks = {row["block"]: row["calls"] for log in self.logs.values() for row in log.rows}
        # By stage: calls and new tokens asked for (replayed or made), and what this process made
        # of them in how many seconds.
        self.stages: dict[str, Counter] = {}

    def complete(self, groups: list[list[Call]], sampling: Sampling, *, stage: str, note: str = "",
                 toxic: bool = False) -> dict[str, Completion]:
        """All completions by call id. Calls of one group share a long prompt prefix, so that a
        block never crosses groups. Toxic completions come as `Toxic` and go to their own file.
        """
        n = self.size
        blocks = [group[i:i + n] for group in groups for i in range(0, len(group), n)]
        done: dict[str, Completion] = {}
        count = self.stages.setdefault(stage, Counter())
        with Progress(f"{stage}{note}", total=sum(map(len, blocks)), unit="call") as bar:
            for block in blocks:
                rows = self._block(block, sampling, toxic, count)
                for call, row in zip(block, rows, strict=True):
                    text = Toxic(row["text"]) if toxic else row["text"]
                    done[call.id] = Completion(text, row["finish"], row["n_tokens"])
                    count["tokens"] += row["n_tokens"]
                count["calls"] += len(block)
                seconds = count["seconds_now"]
                rate = f"{count['tokens_now'] / seconds:.0f} tok/s" if seconds else "replayed"
                bar.update(len(block), note=rate)
        return done

    def _block(self, block: list[Call], sampling: Sampling, toxic: bool,
               count: Counter) -> list[dict]:
        seeds = [call.seed(self.run_seed) for call in block]
        what = [self.identity, asdict(sampling), [[c.id, c.prompt] for c in block], seeds]
        key = sha256(canonical(what))
        if key not in self.blocks:
            began = time.monotonic()
            completions = self.make([call.prompt for call in block], seeds, sampling)
            count["seconds_now"] += time.monotonic() - began
            count["tokens_now"] += sum(c.n_tokens for c in completions)
            calls = [{"id": call.id, **asdict(c)}
                     for call, c in zip(block, completions, strict=True)]
            self.logs[toxic].append({"block": key, "calls": calls})
            self.blocks[key] = calls
        return self.blocks[key]

    def close(self) -> None:
        for log in self.logs.values():
            log.close()


def open_ledger(out: Path, folder: Path, tokenizer: Tokenizer, identity: dict, *, seed: int,
                block: int) -> Ledger:
    """The ledger with the local model behind it, which is loaded when a call is not on file."""
    loaded, place = [], {name: identity[name] for name in ("device", "dtype")}

    def make(prompts: list[str], seeds: list[int], sampling: Sampling) -> list[Completion]:
        if not loaded:
            loaded.append(load_model(folder, **place))
        special = tokenizer.default_format == "raw"  # a template has written its own BOS
        ids = [tokenizer.encode(prompt, special=special) for prompt in prompts]
        room = loaded[0].config.max_position_embeddings - sampling.max_new_tokens
        fit = [i for i, own in enumerate(ids) if 0 < len(own) <= room]
        made = [Completion("", "context", 0)] * len(ids)
        if fit:
            done = generate(loaded[0], tokenizer, [ids[i] for i in fit], sampling,
                            [seeds[i] for i in fit])
            for i, completion in zip(fit, done, strict=True):
                made[i] = completion
        return made

    return Ledger(out, identity, make, run_seed=seed, block=block)
