"""log p(continuation | context), of many texts at once.

Every distinct text is scored once. What texts share in front is computed once, in two steps: a
beginning common to a group of texts (five MMLU shots, TruthfulQA's six examples), then each context
for all its continuations. Texts that differ in their last token alone (letters) are one row:
nothing behind that token reads it. benchmarks/hhh_speed.py has its speed beside lm-eval's.
Source: the pairing of context and continuation is lm-evaluation-harness's `_encode_pair`.
Departure: a log-probability that is not finite stops the run. NaN would let the first choice win.

Letters: B rows of a batch, T time, D hidden size, N continuation tokens of a batch, V vocabulary.
"""

from collections.abc import Iterable, MutableMapping
from itertools import groupby
from math import isfinite
from typing import NamedTuple

import torch

from generate import Cache, shared_prefix
from kernels.packed import packed_linears
from model import right_pad
from support.files import InputError, canonical, sha256
from support.logprobs import log_probs

SHARED = 16  # tokens: a shorter beginning is not worth a pass of its own
ENOUGH = 256  # tokens: a batch of so many is efficient, and need not be padded to grow
SLACK = 1.25  # such a batch takes no row whose padding would be over a quarter of its own length


class Score(NamedTuple):
    logprob: float  # nats, summed over the continuation's tokens
    tokens: int
    bytes: int  # UTF-8, of the continuation with the space that leads it in the raw format
    cut: bool  # the context lost its beginning to fit the model


class Text(NamedTuple):
    ids: list[int]
    first: int  # index of the first continuation token
    pair: tuple[str, str]
    where: str  # the first item that asks for it, for messages
    cut: bool = False
    prefix: str = ""

    @property
    def read(self) -> tuple[int, ...]:
        """What the model reads: the last token predicts nothing that is asked."""
        return tuple(self.ids[:-1])

    @property
    def context(self) -> tuple[int, ...]:
        """What predicts nothing that is asked: all in front of the context's last token."""
        return tuple(self.ids[: self.first - 1])


class Group(NamedTuple):
    """Texts whose beginnings are in the cache together."""
    texts: list[Text]
    common: int  # tokens that all have in front; 0 where that would save little
    shares_contexts: bool  # a context has several rows, and is computed once for them

    def start(self, text: Text) -> int:
        """Tokens of a text that are computed before its batch."""
        return text.first - 1 if self.shares_contexts else self.common


class PrefixCache(NamedTuple):
    """Beginnings that are computed, and the row of each in the cache. The empty one always is."""
    place: dict[tuple[int, ...], int] = {(): 0}  # noqa: RUF012 (nobody writes into it)
    cache: Cache | None = None


def score_pairs(model, tokenizer, pairs: list[tuple[str, str]], *, format: str, batch_tokens: int,
                ids: list[str] | None = None, prefixes: list[str] | None = None,
                log: MutableMapping | None = None, progress=None) -> list[Score]:
    """log p(continuation | context) for every pair, in the order given. `ids` are those of the
    pairs' items, for messages. Pairs of one prefix (a long beginning, as MMLU's shots of a subject)
    have batches of their own. `log` maps a batch's key to its scores: what it holds is not computed
    again, so that an interrupted run goes on with the same batches."""
    log = {} if log is None else log
    texts, scores = {}, {}
    for i, pair in enumerate(pairs):
        if pair not in texts:
            texts[pair] = encode(
                tokenizer, pair, f"item {ids[i]}" if ids else f"pair {i}",
                special=format == "raw",  # a chat template writes its own BOS
                limit=model.config.max_position_embeddings, prefix=prefixes[i] if prefixes else "")
    for group in make_groups(list(texts.values()), batch_tokens):
        cached = None
        for batch in make_batches(group, batch_tokens):
            key = sha256(canonical([text.pair for text in batch]))
            if key not in log:
                with packed_linears(model):
                    cached = cached or prefill(model, tokenizer, group)
                    log[key] = [score._asdict() for score in
                                score_batch(model, tokenizer, batch, group, cached)]
            scores |= {text.pair: Score(**s) for text, s in zip(batch, log[key], strict=True)}
            if progress is not None:
                progress.update(len(batch))
    return [scores[pair] for pair in pairs]


def encode(tokenizer, pair: tuple[str, str], where: str, *, special: bool, limit: int,
           prefix: str = "") -> Text:
    """Tokens of a pair. What exceeds the model's context is cut from the left of the text."""
    try:
        ids, first = tokenizer.encode_pair(*pair, special=special)
    except ValueError as error:
        raise InputError(error, where, "check the tokenizer") from None
    excess = max(0, len(ids) - limit)
    if first <= excess:  # at least one token must stand before the continuation
        raise InputError(
            f"an answer of {len(ids) - first} tokens leaves no room in a context of {limit}",
            where, "use a model with a longer context")
    return Text(ids[excess:], first - excess, pair, where, excess > 0, prefix)


def make_groups(texts: list[Text], batch_tokens: int) -> list[Group]:
    """Texts of one prefix and of contexts alike in length, whose cache keeps to the budget. Longest
    first, so that one that is too large fails at once."""
    longest = {text.prefix: len(text.ids) for text in sorted(texts, key=lambda t: len(t.ids))}
    ordered = sorted(texts, key=lambda t: (-longest[t.prefix], t.prefix, -t.first, t.context,
                                           t.pair))
    return [group_of(part) for _, alike in groupby(ordered, key=lambda t: t.prefix)
            for part in within_budget(alike, lambda t: t.context, batch_tokens)]


def group_of(texts: list[Text]) -> Group:
    contexts, rows = {text.context for text in texts}, {text.read for text in texts}
    # with one token more, which shared_prefix leaves to each
    same = shared_prefix([text.ids[: text.first] for text in texts])
    common = same if len(contexts) > 1 and same >= SHARED else 0
    return Group(texts, common, any(contexts) and len(contexts) < len(rows))


def make_batches(group: Group, batch_tokens: int) -> list[list[Text]]:
    """Longest rest first, so that a batch is padded little."""
    ordered = sorted(group.texts, key=lambda t: (group.start(t) - len(t.ids), t.pair))
    return within_budget(ordered, lambda t: t.read, batch_tokens, cached_of=group.start)


def within_budget(texts: Iterable, row_of, batch_tokens: int, *,
                  cached_of=lambda text: 0) -> list[list]:
    """The texts, cut into parts. They come sorted, what has most left to compute first; several may
    be one row. The rows of a part, padded to the longest, keep to the budget: padding counts, and
    so does what is cached of them (`cached_of`: tokens). What is computed is padded little."""
    parts, rows, longest, first = [], set(), 0, 0
    for text in texts:
        row = row_of(text)
        size, longest = len(row) - cached_of(text), max(longest, len(row))
        padded = len(rows) * first >= ENOUGH and first > SLACK * size
        full = padded or (len(rows) + 1) * longest > batch_tokens
        if not parts or (full and row not in rows):
            parts.append([])
            rows, longest, first = set(), len(row), size
        rows.add(row)
        parts[-1].append(text)
    return parts


@torch.inference_mode()
def prefill(model, tokenizer, group: Group) -> PrefixCache:
    """Compute what the group's texts share in front."""
    cached = PrefixCache()
    contexts = list(dict.fromkeys(text.context for text in group.texts))
    if group.common:
        _, cached = extend(model, cached, [(contexts[0][: group.common], 0)], tokenizer.pad_id)
    if group.shares_contexts:
        rows = [(context, group.common) for context in contexts]
        _, cached = extend(model, cached, rows, tokenizer.pad_id)
    return cached


@torch.inference_mode()
def score_batch(model, tokenizer, batch: list[Text], group: Group,
                cached: PrefixCache) -> list[Score]:
    """A score a text. Only hidden states that predict a continuation token reach the head."""
    device = model.lm_head.weight.device
    reads = [(text.read, group.start(text)) for text in batch]
    place = {row: b for b, row in enumerate(dict.fromkeys(reads))}
    hidden, _ = extend(model, cached, list(place), tokenizer.pad_id, keep=False)  # (B, T, D)
    # the row before a token predicts it
    spans = [hidden[place[read, start], text.first - 1 - start : len(read) - start]
             for text, (read, start) in zip(batch, reads, strict=True)]
    wanted = torch.tensor([i for text in batch for i in text.ids[text.first :]], device=device)
    logprobs = log_probs(model.lm_head, torch.cat(spans), wanted).double().cpu()  # (N,)
    sums = [part.sum().item() for part in logprobs.split([len(span) for span in spans])]
    for text, total in zip(batch, sums, strict=True):
        if not isfinite(total):
            raise InputError(f"the log-probability is {total}", text.where,
                             "try --dtype float32 or check the weights")
    return [Score(total, len(text.ids) - text.first, len(text.pair[1].encode()), text.cut)
            for text, total in zip(batch, sums, strict=True)]


def extend(model, cached: PrefixCache, rows: list[tuple[tuple[int, ...], int]], pad: int, *,
           keep=True):
    """Run rows of (token ids, how many are cached): the rest's states (B, T, D), the new cache."""
    device, dtype = model.lm_head.weight.device, model.lm_head.weight.dtype
    rest, starts = [row[start:] for row, start in rows], [start for _, start in rows]
    ids, longest = right_pad(rest, pad, device), max(len(row) for row, _ in rows)  # (B, T)
    if cached.cache is None and not keep:
        return model.model(ids), cached
    # One slot more than the longest row has: there the pads go that would be behind it.
    cache = Cache(model.config, len(rows), longest + 1, device=device, dtype=dtype)
    extended = PrefixCache({row: b for b, (row, _) in enumerate(rows)}, cache)
    if cached.cache is None:
        return model.model(ids, None, cache), extended
    parents = [cached.place[row[:start]] for row, start in rows]
    for mine, theirs in zip(cache.keys + cache.values, cached.cache.keys + cached.cache.values,
                            strict=True):
        mine[:, :, : max(starts)] = theirs[parents, :, : max(starts)]
    positions = torch.tensor(starts, device=device)[:, None] + torch.arange(ids.shape[1],
                                                                            device=device)
    return model.model(ids, positions.clamp(max=longest), cache), extended
