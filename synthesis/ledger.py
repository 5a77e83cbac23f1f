"""The record of every model call that a run has paid for, and the model behind it.

Synthesis is a pure function of (settings, seeds, results of model calls). Starting again replays
it from the top, and a call on record returns at once, so an interrupted run ends like an unbroken
one. Calls are made in fixed blocks, and a line of the file is a block, whole or not there at all:
in bf16 a row's rounding depends on its batch, so half a block made again would give other text."""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

from generate import Completion, Sampling, draw_seed, generate
from model import load_model
from support.files import AppendLog, canonical, sha256
from support.pairs import Toxic
from support.progress import Progress
from tokenizer import Tokenizer


class Call(NamedTuple):
    """One completion to be made. `id` says where it comes in, and no other call has it:
    instructions/DOMAIN/INDEX/TOPIC/0, or answers/SIDE/ITEM/ATTEMPT where ITEM is i/000123."""
    id: str
    prompt: str


def local_model(folder: Path, tokenizer: Tokenizer, *, device: str, dtype: str) -> Callable:
    """`make` for a ledger: a folder's model, loaded at the first call that is not on record."""
    load = cache(partial(load_model, folder, device=device, dtype=dtype))

    def make(prompts: list[str], seeds: list[int], sampling: Sampling) -> list[Completion]:
        model = load()
        special = tokenizer.default_format == "raw"  # a template has written its own BOS
        ids = [tokenizer.encode(prompt, special=special) for prompt in prompts]
        room = model.config.max_position_embeddings - sampling.max_new_tokens
        fit = [i for i, prompt_ids in enumerate(ids) if 0 < len(prompt_ids) <= room]
        done = generate(model, tokenizer, [ids[i] for i in fit], sampling,
                        [seeds[i] for i in fit]) if fit else []
        by_place = dict(zip(fit, done, strict=True))
        return [by_place.get(i, Completion("", "context", 0)) for i in range(len(ids))]

    return make


class Ledger:
    """Completions by content: the same calls under the same settings are made once, ever.
    `make(prompts, seeds, sampling) -> [Completion]` runs the model on one block of up to `block`
    calls; `identity` holds whatever else its results depend on (weights, dtype, device)."""

    def __init__(self, folder: Path, identity: dict, make: Callable, *, seed: int, block: int):
        self.identity, self.make, self.seed, self.block = identity, make, seed, block
        self.logs = {False: AppendLog(folder / "calls.jsonl"),
                     True: AppendLog(folder / "calls.toxic.jsonl", mode=0o600)}
        self.blocks = {row["block"]: row["calls"] for log in self.logs.values() for row in log.rows}
        # By stage: "calls" and new "tokens", replayed or made; "tokens_now" and "seconds_now" are
        # what this process made.
        self.stages: dict[str, Counter] = {}

    def complete(self, groups: list[list[Call]], sampling: Sampling, *, stage: str, note: str = "",
                 toxic: bool = False) -> dict[str, Completion]:
        """All completions by call id. Calls of one group share a long prompt prefix, so that a
        block never crosses groups. Toxic completions come as `Toxic` and go to their own file."""
        n = self.block
        blocks = [group[i:i + n] for group in groups for i in range(0, len(group), n)]
        done: dict[str, Completion] = {}
        count = self.stages.setdefault(stage, Counter())
        with Progress(f"{stage}{note}", total=sum(map(len, blocks)), unit="call") as bar:
            for block in blocks:
                for row in self._rows(block, sampling, toxic, count):
                    text = Toxic(row["text"]) if toxic else row["text"]
                    done[row["id"]] = Completion(text, row["finish"], row["n_tokens"])
                    count["tokens"] += row["n_tokens"]
                count["calls"] += len(block)
                seconds = count["seconds_now"]
                rate = f"{count['tokens_now'] / seconds:.0f} tok/s" if seconds else "replayed"
                bar.update(len(block), note=rate)
        return done

    def _rows(self, block: list[Call], sampling: Sampling, toxic: bool, count: Counter) -> list:
        """A block's completions as they stand on record, made first where they do not."""
        seeds = [draw_seed(self.seed, call.id) for call in block]
        key = sha256(canonical([self.identity, asdict(sampling), block, seeds]))
        if key not in self.blocks:
            began = time.monotonic()
            completions = self.make([call.prompt for call in block], seeds, sampling)
            count["seconds_now"] += time.monotonic() - began
            count["tokens_now"] += sum(c.n_tokens for c in completions)
            self.blocks[key] = [{"id": call.id, **asdict(c)}
                                for call, c in zip(block, completions, strict=True)]
            self.logs[toxic].append({"block": key, "calls": self.blocks[key]})
        return self.blocks[key]

    def close(self) -> None:
        for log in self.logs.values():
            log.close()
