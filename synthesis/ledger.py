"""The record of every model call that a run has paid for, and the model behind it.

Synthesis is a pure function of (settings, seeds, results of model calls). Starting again replays
it from the top, and a call on record returns at once, so an interrupted run ends like an unbroken
one. Calls are made in fixed blocks, and a line of the file is a block, whole or not there at all:
in bf16 a row's rounding depends on its batch, so half a block made again would give other text.
A block on record keeps its size when a later start makes others. Of a server, whose batches nobody
knows, each call is a line of its own."""

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

from generate import Completion, Sampling, draw_seed, generate
from model import load_model
from support.endpoint import Endpoint
from support.files import AppendFile, InputError, canonical, sha256
from support.pairs import Toxic
from support.progress import say
from tokenizer import Tokenizer

LATER = ("min_new_tokens", "no_repeat_ngram")  # fields of Sampling


class Call(NamedTuple):
    """One completion or measurement to be made. `id` says where it comes in, and no other call has
    it: instructions/DOMAIN/INDEX/TOPIC/0, or answers/SIDE/ITEM/ATTEMPT where ITEM is i/000123."""
    id: str
    prompt: str
    answer: str = ""  # measured behind the prompt


def local_model(folder: Path, tokenizer: Tokenizer, *, device: str, dtype: str,
                base_dtype: str | None = None, format: str = "chat") -> Callable:
    """`make` for a ledger: a folder's model, loaded at the first call that is not on record."""
    load = cache(partial(load_model, folder, device=device, dtype=dtype, base_dtype=base_dtype))
    encode = partial(tokenizer.encode, special=format == "raw")  # a template has written its BOS

    def make(block: list[Call], seeds: list[int], setting) -> list[dict]:
        model, writes = load(), isinstance(setting, Sampling)
        texts = [(encode(prompt), tokenizer.encode(answer, special=False))
                 for _, prompt, answer in block]
        room = model.config.max_position_embeddings - (setting.max_new_tokens if writes else 0)
        fit = [i for i, (prompt, answer) in enumerate(texts)
               if prompt and len(prompt) + len(answer) <= room]
        if not fit:
            done = []
        elif writes:
            done = map(asdict, generate(model, tokenizer, [texts[i][0] for i in fit], setting,
                                        [seeds[i] for i in fit]))
        else:
            done = setting(model, [texts[i] for i in fit], tokenizer.pad_id)
        made = dict(zip(fit, done, strict=True))
        missing = asdict(Completion("", "context", 0)) if writes else {}
        return [made.get(i, missing) for i in range(len(block))]

    return make


class Ledger:
    """Results by content: the same calls under the same settings are made once, ever.
    `make(calls, seeds, setting) -> [row]` runs the model on one block of up to `block` calls;
    `identity` holds whatever else its results depend on (weights, dtype, device)."""
    measures = True  # can the model be asked for what measures.py computes?
    told_s, pace = 0, ", {rate:.0f} tok/s"  # seconds between two messages, and what they say

    def __init__(self, folder: Path, identity: dict, make: Callable, *, seed: int, block: int):
        self.identity, self.make, self.seed, self.block = identity, make, seed, block
        self.logs = {False: AppendFile(folder / "calls.jsonl", mode=0o600),
                     True: AppendFile(folder / "calls.toxic.jsonl", mode=0o600)}
        # Texts stay on the disk. Block's key -> (is it toxic, offset in its log); key of a block's
        # first call -> sizes of the blocks on record that begin with it.
        self.blocks, self.sizes = {}, defaultdict(list)
        for toxic, log in self.logs.items():
            for number, (offset, row) in enumerate(log.scan(), 1):
                # A bit may flip on a disk. Lines of older runs have no checksum.
                if row.pop("sha256", None) not in (None, sha256(canonical(row))):
                    raise InputError(
                        f"line {number} of {log.path.name} does not match its checksum",
                        f"--out {folder}", "delete it, and its calls are made again, or --fresh")
                if "first" not in row:
                    raise InputError("calls of an older version", f"--out {folder}",
                                     "use --fresh or name a new folder")
                self.blocks[row["block"]] = toxic, offset
                self.sizes[row["first"]].append(len(row["calls"]))
        # By stage: "calls" and new "tokens", replayed or made; "tokens_now" and "seconds_now" are
        # what this process made.
        self.stages: dict[str, Counter] = {}
        # What the model is at, (stage, rate so far): by default as lines, from a stage's second
        # block on.
        self.tell: Callable[[str, str], None] = lambda stage, rate: rate and say(stage + rate)

    def complete(self, calls: list[Call], sampling: Sampling, *, stage: str,
                 toxic: bool = False) -> dict[str, Completion]:
        """All completions by call id."""
        return dict(self.completions(calls, sampling, stage=stage, toxic=toxic))

    def completions(self, calls: list[Call], sampling: Sampling, *, stage: str,
                    toxic: bool = False) -> Iterator[tuple[str, Completion]]:
        """(call id, completion) in turn; toxic ones are `Toxic`, with a file of their own."""
        for row in self._rows(calls, sampling, stage, toxic):
            text = Toxic(row["text"]) if toxic else row["text"]
            yield row["id"], Completion(text, row["finish"], row["n_tokens"])

    def measure(self, calls: list[Call], setting, *, stage: str) -> list[dict]:
        """What a setting of measures.py gives for each call, in order; {} where it does not fit."""
        return [{name: value for name, value in row.items() if name != "id"}
                for row in self._rows(calls, setting, stage, False)]

    def _rows(self, calls: list[Call], setting, stage: str, toxic: bool) -> Iterator[dict]:
        """A row for each call, in order. A block that is not on record is made, and put there."""
        count, told = self.stages.setdefault(stage, Counter()), time.monotonic()
        blocks = self._split(calls, setting)
        missing = ((key, block) for key, block in blocks.items() if key not in self.blocks)
        with closing(self._made(missing, setting)) as made:
            for n, key in enumerate(blocks):
                while key not in self.blocks:
                    began = time.monotonic()
                    if began - told >= self.told_s:
                        told, rate = began, count["tokens_now"] / (count["seconds_now"] or 1)
                        self.tell(stage, self.pace.format(n=n, of=len(blocks), rate=rate)
                                  if rate else "")  # 0 where nothing is written
                    ended, rows = next(made)
                    count["seconds_now"] += time.monotonic() - began
                    count["tokens_now"] += sum(row.get("n_tokens", 0) for row in rows)
                    self._record(ended, self._key(setting, blocks[ended][:1]), [
                        {"id": call.id, **row}
                        for call, row in zip(blocks[ended], rows, strict=True)], toxic)
                log, offset = self.blocks[key]
                rows = self.logs[log].at(offset)["calls"]
                count["calls"] += len(rows)
                count["tokens"] += sum(row.get("n_tokens", 0) for row in rows)
                yield from rows

    def _record(self, key: str, first: str, rows: list[dict], toxic: bool) -> None:
        line = {"block": key, "first": first, "calls": rows}
        line["sha256"] = sha256(canonical(line))
        self.blocks[key] = toxic, self.logs[toxic].append(line)

    def _split(self, calls: list[Call], setting) -> dict[str, list[Call]]:
        """Blocks by their keys: of the size that they have on record, else of `block` calls."""
        blocks, start = {}, 0
        while start < len(calls):
            sizes = (n for n in self.sizes.get(self._key(setting, calls[start:start + 1]), ())
                     if self._key(setting, calls[start:start + n]) in self.blocks)
            block = calls[start:start + next(sizes, self.block)]
            blocks[self._key(setting, block)] = block
            start += len(block)
        return blocks

    def _made(self, missing: Iterable[tuple[str, list[Call]]], setting):
        """(key, rows) of each missing block, as soon as it is made."""
        for key, block in missing:
            yield key, self.make(block, self._seeds(block), setting)

    def _key(self, setting, block: list[Call]) -> str:
        # Records of older versions lack what came later; there it was off.
        named = {name: value for name, value in asdict(setting).items()
                 if value or name not in LATER}
        kind = [type(setting).__name__, named]
        return sha256(canonical([self.identity, kind, block, self._seeds(block)]))

    def _seeds(self, block: list[Call]) -> list[int]:
        return [draw_seed(self.seed, call.id) for call in block]

    def close(self) -> None:
        """Close the files, and tell where this process's time in the model went, if it was long."""
        stages = sorted(self.stages.items(), key=lambda stage: -stage[1]["seconds_now"])
        if (total := sum(count["seconds_now"] for _, count in stages)) >= 60:
            shares = (f"{name} {count['seconds_now'] / total:.0%}" for name, count in stages
                      if count["seconds_now"] >= total / 100)
            say(f"{total / 60:.0f} minutes in the model: {', '.join(shares)}")
        for log in self.logs.values():
            log.close()


class ServedLedger(Ledger):
    """Calls of a server: many are under way at once, and each is on record when it has ended, while
    results come in the order of the calls. A kill loses those under way, and a stage that ends
    early lets go of them."""
    measures = False  # it gives no likelihoods
    told_s, pace = 5, " {n} of {of}, {rate:.0f} tok/s"

    def __init__(self, folder: Path, identity: dict, endpoint: Endpoint, *, seed: int,
                 format: str):
        super().__init__(folder, identity, endpoint.each, seed=seed, block=1)
        self.encode = partial(endpoint.tokenizer.encode, special=format == "raw")

    def _made(self, missing: Iterable[tuple[str, list[Call]]], setting):
        jobs = ((key, self.encode(call.prompt), draw_seed(self.seed, call.id))
                for key, (call,) in missing)
        with closing(self.make(jobs, setting)) as made:
            for key, row in made:
                yield key, [row]


def open_ledger(out: Path, session, settings: dict, folder: Path, server: Endpoint | None):
    """The record of a run's calls, with the model of `folder` or a server behind it."""
    if server:
        say("a server gives no scores: the rules alone judge its texts (grade smoke)"
            + session.seeds.refusal_first * ", and no refusal is put in front of its answers")
        return ServedLedger(out, {"model": settings["endpoint_model"]}, server,
                            seed=session.seed, format=session.format)
    device, dtype = settings["device"], settings["dtype"]
    make = local_model(folder, session.tokenizer, device=device, dtype=dtype,
                       base_dtype=settings["base_dtype"], format=session.format)
    identity = {"weights": settings["weights_sha256"], "device": device, "dtype": dtype}
    if settings["base_dtype"]:  # ledgers of older versions lack it
        identity["base_dtype"] = settings["base_dtype"]
    return Ledger(out, identity, make, seed=session.seed, block=settings["block"])
