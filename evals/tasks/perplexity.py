"""Perplexity on a text of one's own: has the adapter cost the model its language?

    python ptalign.py eval --model M --adapter A --tasks perplexity --text FILE --out DIR

The text is scored in windows that slide by half their length, so that every token but those of the
first window has at least half a window before it, and each is scored once. Told per token, which
compares models of one tokenizer, and in bits per UTF-8 byte, which compares any two. Lower is
better; a base model's figure depends on the text, so it is the change that counts.
Source: the sliding window is that of transformers' documentation ("Perplexity of fixed-length
models"); the first token follows BOS (EOS where there is none), as in lm-evaluation-harness.
"""

from collections.abc import Iterator
from math import exp, isfinite, log
from pathlib import Path

import numpy as np
import torch

from evals.about import About
from evals.blocks import Blocks
from evals.choice import token_logprobs
from evals.stats import middle_95, resampled
from support.files import InputError, canonical, read_text, sha256, sha256_file
from support.progress import Progress

FORMAT, FIXED_FORMAT = "raw", True  # running text: no conversation is put around it
WINDOW = 1024  # tokens, or the model's context where that is shorter
BATCH = 4  # windows at a time
PRIMARY = None
ABOUT = About("perplexity of a text (--text), in windows of 1,024 tokens", "transformers' docs",
              "of your file", items=None, texts=None)
OPTIONS = ("text",)


def load(*, data_dir: str | None, limit: int | None, text: str | None) -> tuple[dict, dict]:
    """The file whole: `limit` counts prompts, and a text has none."""
    if text is None:
        raise InputError("the task perplexity needs a text", "--text", "name a UTF-8 file")
    path = Path(text).expanduser()
    whole = read_text(path)
    if not whole.strip():
        raise InputError("no text", path, "name another --text file")
    source = {"path": str(path), "sha256": sha256_file(path), "n": 1, "bytes": len(whole.encode())}
    return {"text": [{"id": path.name, "prompt": whole}]}, {"text": source}


def describe(rows: dict) -> list[dict]:
    return [{"set": "text", "id": row["id"], "prompt": sha256(row["prompt"]), "group": "text"}
            for row in rows["text"]]


def measure(network, tokenizer, rows: dict, *, format: str, column: str, logs: dict,
            max_new_tokens: int, seed: int) -> list[dict]:
    """One result: nats and tokens of each window, and the text's bytes."""
    (row,) = rows["text"]
    record = Blocks(logs["scores"], task="perplexity", column=column, format=format)
    ids, first = tokenizer.encode_pair("", row["prompt"], special=True)
    size = min(WINDOW, network.config.max_position_embeddings)
    todo, nats, tokens = list(windows(len(ids), first, size)), [], []
    with Progress(f"perplexity {column}", total=len(todo), unit="window") as bar:
        for start in range(0, len(todo), BATCH):
            batch = todo[start : start + BATCH]
            parts = [(ids[begin:end], scored - begin) for begin, scored, end in batch]
            if (key := sha256(canonical([start, parts]))) not in record:
                record[key] = window_nats(network, tokenizer.pad_id, parts, row["id"])
            nats += record[key]
            tokens += [end - scored for _, scored, end in batch]
            bar.update(len(batch))
    return [{"nats": nats, "tokens": tokens, "bytes": len(row["prompt"].encode())}]


def windows(n: int, first: int, size: int) -> Iterator[tuple[int, int, int]]:
    """(begin, first token scored, end) over n tokens: all from `first` on are scored once."""
    scored, end = first, min(n, size)
    while True:
        yield max(0, end - size), scored, end
        if end == n:
            return
        scored, end = end, min(n, end + max(1, size // 2))


@torch.inference_mode()
def window_nats(network, pad: int, parts: list[tuple[list[int], int]], name: str) -> list[float]:
    """-log p of each window's tokens from its given index on, summed."""
    device, T = network.lm_head.weight.device, max(len(ids) for ids, _ in parts) - 1
    rows = [ids[:-1] + [pad] * (T + 1 - len(ids)) for ids, _ in parts]
    hidden = network.model(torch.tensor(rows, device=device))  # (B, T, D)
    made = []
    for b, (ids, scored) in enumerate(parts):
        wanted = torch.tensor(ids[scored:], device=device)
        # the row before a token predicts it
        total = -token_logprobs(network.lm_head, hidden[b, scored - 1 : len(ids) - 1], wanted)
        made.append(total.sum().item())
        if not isfinite(made[-1]):
            raise InputError(f"the log-probability is {-made[-1]}", f"--text {name}",
                             "try --dtype float32 or check the weights")
    return made


def figures(items: list[dict], *, format: str, columns: tuple, seed: int) -> list[dict]:
    return []  # no rate: the table is among the facts


def facts(items: list[dict], rows: dict, columns: tuple, *, seed: int) -> dict:
    (item,) = items
    about = {"text": item["id"], "tokens": sum(item["base"]["tokens"]),
             "bytes": item["base"]["bytes"], "windows": len(item["base"]["nats"])}
    for column in columns:
        nats = sum(item[column]["nats"])
        about[column] = {"per_token": exponential(nats / about["tokens"]),
                         "bits_per_byte": nats / log(2) / about["bytes"]}
    for column in columns[1:]:
        about[column] |= ratio(item["base"], item[column], seed=seed)
    return {"perplexity": about, "tables": [table(about, columns)], "notes": notes(about, columns)}


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
    try:
        return exp(nats)
    except OverflowError:
        return None


def shown(value: float | None, digits: int) -> str:
    return "inf" if value is None else f"{value:.{digits}f}"


def table(about: dict, columns: tuple) -> list[tuple[str, ...]]:
    tuned = columns[1:]
    rows = [("perplexity, lower is better", "n", *columns, *(f"{c} / base" for c in tuned))]
    cells = [shown(about[c]["per_token"], 3) for c in columns]
    bits = [f"{about[c]['bits_per_byte']:.4f}" for c in columns]
    for column in tuned:
        own = about[column]
        ends = own["ratio_95"]
        told = f" [{', '.join(shown(end, 4) for end in ends)}]" if ends else ""
        cells.append(f"{shown(own['ratio'], 4)}{told}")
        bits.append(f"{own['bits_per_byte'] / about['base']['bits_per_byte']:.4f}")
    return [*rows, ("per token", f"{about['tokens']} tokens", *cells),
            ("bits per byte", f"{about['bytes']} bytes", *bits)]


def notes(about: dict, columns: tuple) -> list[str]:
    lines = [f"perplexity of {about['text']}, {about['windows']} sliding windows."]
    if len(columns) > 1:
        lines.append("The ratio's interval is a bootstrap over windows: it holds for texts of this "
                     "kind." if about[columns[1]]["ratio_95"] else
                     "One window gives its ratio no interval.")
    return lines
