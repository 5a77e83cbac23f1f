"""What training does to pairs that it does not see: figures by step, a warning, and their picture.

`train --validation 0.1` holds out a tenth of the pairs, by prompt, and measures those that differ
by tokens at the start, at up to 20 steps and at the end: validation.jsonl and validation.svg in the
adapter's folder. The tokens are those that `--mask first-mismatch` penalises, whatever the run's
own mask and objective, so that all arms are measured alike."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch

from support.contamination import prompt_hash
from support.files import AppendLog, InputError, read_jsonl, sha256, write_atomic
from support.progress import say
from support.svg import Panel, line_charts

LOG, PICTURE = "validation.jsonl", "validation.svg"
POINTS = 20  # of the curves after the start: each costs a forward pass over the held-out pairs
FALL = 0.05  # nats a token that log p(positive) loses before a warning of displacement
EDGES = (0.01, 0.1, 0.5, 0.9)  # between the classes of p, each with its share of UT's gradient
CLASSES = [f"{low:g} to {high:g}" for low, high in zip((0, *EDGES), (*EDGES, 1), strict=True)]


def hold_out(triplets: Sequence, share: float, seed: int) -> tuple[list, list]:
    """(rows to train on, pairs held out). A prompt's hash and the seed decide, so that all rows of
    a prompt are on one side and more data moves none. Rows without a toxic answer are trained on,
    but those with a held-out pair's prompt are left out of both."""
    if not share:
        return list(triplets), []
    hashes = [prompt_hash(t.prompt) for t in triplets]
    drawn = {h for h in hashes if int(sha256(f"{seed}|{h}")[:8], 16) < share * 2**32}
    pairs = [t for t, h in zip(triplets, hashes, strict=True)
             if h in drawn and t.toxic not in (None, t.positive)]
    kept_out = {prompt_hash(t.prompt) for t in pairs}
    rest = [t for t, h in zip(triplets, hashes, strict=True) if h not in kept_out]
    for side, rows in (("held out", pairs), ("left to train on", rest)):
        if not rows:
            raise InputError(f"of {len(triplets)} rows none is {side}", f"--validation {share:g}",
                             "give another share or more pairs")
    return rest, pairs


def measurable(pairs: list) -> list:
    """Of the held-out pairs, encoded, those with a token to penalise: texts that differ may still
    be the same tokens, as under a tokenizer that ignores case."""
    differing = [pair for pair in pairs if any(pair.mask)]
    if pairs and not differing:
        raise InputError("no held-out pair differs token by token", "--validation",
                         "give another share or more pairs")
    return differing


def interval(steps: int, every: int) -> int:
    """Steps from one measurement to the next, a multiple of `every`."""
    return every * math.ceil(steps / (every * POINTS))


def measurements(steps: int, every: int) -> int:
    """At the start, after each interval, and at the end."""
    return 1 + math.ceil(steps / interval(steps, every))


# ---- figures ----

def spread(logits):  # (n, V) -> (n,), (n,)
    """Entropy in nats, and the probability of the likeliest token."""
    log_p = logits.float().log_softmax(-1)
    return -(log_p.exp() * log_p).sum(-1), log_p.amax(-1).exp()


def figures(positive, toxic, entropy, p_argmax) -> dict:
    """A line of the log from the -log p of all tokens of either side, and `spread` of the toxic
    side's. Where a penalised token has probability p, UT's gradient in its log-odds is p."""
    p = toxic.double().neg().exp()  # of each penalised token
    place = torch.bucketize(p, torch.tensor(EDGES, dtype=p.dtype), right=True)
    shares = torch.bincount(place, weights=p, minlength=len(CLASSES)) / p.sum()
    return {"log_p_positive": -float(positive.double().mean()),  # nats a token
            "log_p_toxic": -float(toxic.double().mean()), "p_toxic": float(p.mean()),
            "entropy": float(entropy.double().mean()),  # nats
            "p_argmax": float(p_argmax.double().mean()),
            "ut_gradient_by_p": dict(zip(CLASSES, shares.tolist(), strict=True))}


def record(log: AppendLog, row: dict) -> None:
    """One more line, its warning and the picture of all so far."""
    log.append(row)
    warn_of_displacement(log.rows)
    write_atomic(log.path.with_name(PICTURE), picture(log.rows))


def warn_of_displacement(rows: list[dict]) -> None:
    """Once, at the first measurement that is FALL below the start."""
    fallen = [row["log_p_positive"] < rows[0]["log_p_positive"] - FALL for row in rows]
    if fallen[-1] and not any(fallen[:-1]):
        say(f"warning: displacement (arXiv 2410.08847): log p of held-out positive answers fell"
            f" from {rows[0]['log_p_positive']:.2f} to {rows[-1]['log_p_positive']:.2f} nats a"
            f" token by step {rows[-1]['step']}. What the toxic answers lose goes to neither"
            " answer: lower --lr or --penalty, or give more rows.")


# ---- the picture ----

def picture(rows: list[dict]) -> str:
    def curve(key, source=rows):
        return [(row["step"], row[key]) for row in source]

    by_p = [{"step": row["step"], **row["ut_gradient_by_p"]} for row in rows]
    return line_charts([
        Panel("log p, nats a token", {"positive answers": curve("log_p_positive"),
                                      "penalised tokens": curve("log_p_toxic")}),
        Panel("probability at the penalised tokens", {
            "of the token": curve("p_toxic"), "of the likeliest": curve("p_argmax")}, (0, 1)),
        Panel("entropy there, nats", {"entropy": curve("entropy")}, (0, None)),
        Panel("share of UT's gradient, by the token's p",
              {name[name.index("to"):]: curve(name, by_p) for name in CLASSES}, (0, 1))],
        title="Held-out pairs by step")


def read(folder: Path) -> list[dict]:
    """The log of a training run, for what compares several."""
    return [row for _, row in read_jsonl(folder / LOG)]
