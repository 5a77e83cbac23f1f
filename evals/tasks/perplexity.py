"""Perplexity on a text of one's own: has the adapter cost the model its language?

    python ptalign.py eval --model M --adapter A --tasks perplexity --text FILE --out DIR

The text is scored in windows that slide by half their length, so that every token but those of the
first window has at least half a window before it, and each is scored once. Told per token, which
compares models of one tokenizer, and in bits per UTF-8 byte, which compares any two. Lower is
better; a base model's figure depends on the text, so it is the change that counts.
Source: the sliding window is that of transformers' documentation ("Perplexity of fixed-length
models"); the first token follows BOS (EOS where there is none), as in lm-evaluation-harness."""

from functools import partial
from itertools import pairwise
from math import exp, log
from pathlib import Path
from sys import float_info

import numpy as np

from evals.data import file_source
from evals.likelihood import Group, PrefixCache, Text, score_batch
from evals.stats import middle_95, resampled
from evals.task import Column, Comparison, Task, in_batches, recorded
from evals.texts import written
from support.files import InputError, read_text
from support.progress import Progress

WINDOW = 1024  # tokens, or the model's context where that is shorter
MOST_MIB = 16  # of text, which is encoded at once and takes some 200 times as much memory then


class Perplexity(Task):
    name, options = "perplexity", ("text",)
    batch = 4  # windows at a time

    def __init__(self, options):
        """The file whole: --limit counts prompts, and a text has none."""
        self.format = "raw"  # running text: no conversation is put around it
        if options.text is None:
            raise InputError("the task perplexity needs a text", "--text", "name a UTF-8 file")
        path = Path(options.text)
        # Before it is read, and after, as it may be gzipped.
        if ((path.is_file() and path.stat().st_size > MOST_MIB * 2**20)
                or len((text := read_text(path)).encode()) > MOST_MIB * 2**20):
            raise InputError(f"more than {MOST_MIB} MiB of text", path, "name a part of it")
        if not text.strip():
            raise InputError("no text", path, "name another --text file")
        self.rows = {"text": [{"id": path.name, "prompt": text, "group": "text"}]}
        self.sources = {"text": file_source(path, n=1, bytes=len(text.encode()))}

    def measure(self, column: Column) -> list[dict]:
        """One result: nats and tokens of each window, and the text's bytes."""
        [row] = self.rows["text"]
        ids, first = column.tokenizer.encode_pair("", row["prompt"], special=True)
        size = min(WINDOW, column.model.config.max_position_embeddings)
        parts = [(ids[begin:end], scored - begin) for begin, scored, end
                 in windows(len(ids), first, size)]
        with Progress(f"perplexity {column.name}", total=len(parts), unit="window") as bar:
            nats = recorded(self.record(column, "scores"), in_batches(parts, self.batch), partial(
                window_nats, column.model, column.tokenizer, f"--text {row['id']}"), bar)
        return [{"nats": nats, "tokens": [len(part) - scored for part, scored in parts],
                 "bytes": self.sources["text"]["bytes"]}]

    def facts(self, items: list[dict], comparison: Comparison) -> dict:
        """The table: no rate, hence no figure."""
        (item,), columns = items, comparison.columns
        base = item["base"]
        about = {"text": item["id"], "tokens": sum(base["tokens"]), "bytes": base["bytes"],
                 "windows": len(base["nats"])}
        for column in columns:
            nats = sum(item[column]["nats"])
            about[column] = {"per_token": exponential(nats / about["tokens"]),
                             "bits_per_byte": nats / log(2) / about["bytes"]}
            if column != "base":
                about[column] |= ratio(base, item[column], seed=comparison.seed)
        return {"perplexity": about, **written("tasks/perplexity", about=about, columns=columns)}


def windows(n: int, first: int, size: int) -> list[tuple[int, int, int]]:
    """(begin, first token scored, end) over n tokens: all from `first` on are scored once."""
    ends = [*range(size, n, max(1, size // 2)), n]
    return [(max(0, end - size), scored, end) for scored, end in pairwise([first, *ends])]


def window_nats(model, tokenizer, where: str, parts: list[tuple[list[int], int]]) -> list[float]:
    """-log p of each window's tokens from its given index on, summed."""
    texts = [Text(ids, first, ("", ""), where) for ids, first in parts]
    scores = score_batch(model, tokenizer, texts, Group(texts, 0, False), PrefixCache())
    return [-score.logprob for score in scores]


def ratio(base: dict, tuned: dict, *, seed: int) -> dict:
    """Tuned over base, with a percentile bootstrap over windows."""
    change, tokens = np.subtract(tuned["nats"], base["nats"]), base["tokens"]
    nats, drawn = resampled((change, tokens), range(len(tokens)), np.random.default_rng(seed))
    ends = [exponential(end) for end in middle_95(nats / drawn)]
    # one window has nothing to be drawn among
    return {"ratio": exponential(change.sum() / sum(tokens)),
            "ratio_95": ends if len(tokens) > 1 else None}


def exponential(nats: float) -> float | None:
    """None where a broken model's is beyond the range of floats: JSON has no infinity."""
    return exp(nats) if nats < log(float_info.max) else None
