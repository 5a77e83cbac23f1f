"""How deep the tuning goes: KL(tuned || base) by position of the answer.

    python ptalign.py eval --model M --adapter A --tasks depth --out DIR

Qi et al. (arXiv 2406.05946) find that alignment changes the first few tokens of an answer most, so
that whoever gets past them (prefill.py) meets the base model. Here both models read the base's own
greedy answers to JailbreakBench's harmful and benign prompts, which are twins.
Departure: the paper reads given harmful answers. The base's own is what a prompt led to before.

Letters: B texts, T time, D hidden size, N positions of all answers, V vocabulary."""

from contextlib import suppress

import numpy as np
import torch

from evals.answers import answers, encode_prompts
from evals.data import load_sets
from evals.figures import grouped
from evals.stats import cluster_bootstrap
from evals.task import Column, Comparison, Task, in_batches, recorded
from evals.texts import written
from lora import adapter_disabled
from model import right_pad
from support.files import InputError
from support.progress import Progress

BINS = ((1, 1), (2, 2), (3, 5), (6, 10), (11, 20), (21, 40), (41, 80), (81, 160))  # positions
EARLY = 5  # the share that the first so many positions have in an answer's KL is told
ROWS = 64  # of logits at a time


class Depth(Task):
    name, batch, options = "depth", 16, ("adapter",)

    def __init__(self, options):
        super().__init__(options)
        if not options.adapter:
            raise InputError("the task depth compares an adapter with its base", "--tasks depth",
                             "name one by --adapter")
        self.rows, self.sources = load_sets(("jailbreakbench",), data_dir=options.data_dir,
                                            limit=options.limit)

    def refuse_long(self, tokenizer, max_new_tokens: int, context: int) -> None:
        encode_prompts(tokenizer, self.rows["jailbreakbench"], self.format, max_new_tokens, context)

    def measure(self, column: Column) -> list[dict]:
        """{"kl": nats at each position}. The answers are written under the base, which comes first,
        and read back under every other column."""
        rows, tokenizer = self.rows["jailbreakbench"], column.tokenizer
        with Progress(f"depth {self.format} {column.name}", total=len(rows), unit="answer") as bar:
            told = answers(column.model, tokenizer, rows, format=self.format, batch=self.batch,
                           max_new_tokens=column.max_new_tokens,
                           log=self.record(column, "answers", column="base"),
                           progress=bar if column.name == "base" else None)
            if column.name == "base":
                return [{"kl": []} for _ in rows]
            texts = [encoded(tokenizer, row["prompt"], answer["text"].strip(), self.format)
                     for row, answer in zip(rows, told, strict=True)]
            kls = recorded(self.record(column, "scores"), in_batches(texts, self.batch),
                           lambda part: divergences(column.model, part, tokenizer.pad_id), bar)
        return [{"kl": kl} for kl in kls]

    def facts(self, items: list[dict], comparison: Comparison) -> dict:
        depth = {group: {column: depth_of(answered, column, comparison.seed)
                         for column in comparison.columns[1:]}
                 for group, answered in grouped(items, "group").items()}
        return {"depth": depth, **written("tasks/depth", depth=depth, EARLY=EARLY)}


def encoded(tokenizer, prompt: str, answer: str, format: str) -> tuple[list[int], int]:
    """(ids of both, the answer's first); without a position where the answer is empty or its first
    token is one with the prompt's last."""
    if answer:
        with suppress(ValueError):
            return tokenizer.encode_pair(tokenizer.prompt_text(prompt, format),
                                         tokenizer.answer_text(answer, format),
                                         special=format == "raw")
    return [tokenizer.start_id], 1


@torch.inference_mode()
def divergences(model, texts: list[tuple[list[int], int]], pad: int) -> list[list[float]]:
    """KL(tuned || base) in nats, at every token of each answer."""
    ids = right_pad([ids for ids, _ in texts], pad, model.lm_head.weight.device)  # (B, T)
    rows = [slice(first - 1, len(own) - 1) for own, first in texts]  # the row before predicts
    tuned = torch.cat([h[at] for h, at in zip(model.model(ids), rows, strict=True)])  # (N, D)
    with adapter_disabled(model):
        base = torch.cat([h[at] for h, at in zip(model.model(ids), rows, strict=True)])
    kls = []
    for hidden in zip(tuned.split(ROWS), base.split(ROWS), strict=True):
        p, q = (model.lm_head(h).float().log_softmax(-1) for h in hidden)  # (N, V)
        kls.append((p.exp() * (p - q)).sum(-1).clamp(min=0))  # rounding may leave -1e-8
    if not (kl := torch.cat(kls)).isfinite().all():
        raise InputError("a divergence is not finite", "--tasks depth", "try --dtype float32")
    return [[round(nats, 6) for nats in part.tolist()]
            for part in kl.split([at.stop - at.start for at in rows])]


def depth_of(items: list[dict], column: str, seed: int) -> dict:
    """Mean KL at the positions of each bin with a bootstrap over prompts, and the early share."""
    kls = [(item[column]["kl"], item["prompt"]) for item in items if item[column]["kl"]]
    bins = []
    for first, last in BINS:
        if drawn := [(float(np.mean(part)), prompt) for kl, prompt in kls
                     if (part := kl[first - 1 : last])]:
            values, prompts = zip(*drawn, strict=True)
            bins.append({"first": first, "last": last, "n": len(values), "kl": np.mean(values),
                         "kl_95": cluster_bootstrap(values, prompts, seed=seed)})
    total, early = (sum(sum(kl[:n]) for kl, _ in kls) for n in (None, EARLY))
    return {"n": len(kls), "bins": bins, "early": early / total if total else None}
