"""Batched sampling with a KV cache. Letters: B rows still running, V vocabulary.

The text of an item depends on its prompt, its seed and the settings, not on its neighbours: each
token is drawn by one uniform number, a hash of (seed, step), through the inverse of the cumulative
distribution in vocabulary order. Rounding depends on the batch's shape: in fp32 that almost never
moves a draw (tests/test_generate.py finds none), in bf16 it does, so there the batch's composition
is part of a run's identity (synthesis/ledger.py).
"""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from model import (
    Config,
    Rule,
    Transformer,
    attention,
    bias_of,
    biased_attention,
    right_pad,
)
from support.files import sha256

ITEM_START = re.compile(r"(^|\n)\s*\(?\d{1,2}[.):]\)?\s*$")  # "12. " with nothing after it yet


@dataclass(frozen=True)
class Sampling:
    max_new_tokens: int
    temperature: float = 0.0  # 0 is greedy
    top_p: float = 1.0
    top_k: int = 0  # 0 is off
    stop: tuple[str, ...] = ()  # the text ends before the first of these
    min_lines: int = 0  # lists: no end-of-text token before this many lines are complete
    opening_penalty: float = 0.0  # lists: nats off the tokens that opened earlier items


@dataclass(frozen=True)
class Completion:
    text: str
    finish: str  # "eos", "stop" (a stop string) or "length"; of synth also "context" (no room)
    n_tokens: int


def draw_seed(seed: int, name) -> int:
    """The seed of one completion: of the run's seed and its own name or prompt, not its place."""
    return int(sha256(f"{seed}|{name}")[:15], 16)


def uniform(seed: int, step: int) -> float:
    """A number in [0, 1) with 53 random bits, the same on every machine."""
    digest = hashlib.blake2b(f"{seed}|{step}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / (1 << 53)


def keep_nucleus(probs, top_p: float, top_k: int):  # (B, V) -> (B, V)
    """Zero all but the top_k likeliest and the smallest set holding top_p of the mass.

    Equal probabilities stay or go together, so the kept set does not depend on a sort's order.
    """
    V = probs.shape[-1]
    if top_k:
        probs = probs * (probs >= probs.topk(min(top_k, V)).values[:, -1:])
        probs = probs / probs.sum(-1, keepdim=True)
    if top_p < 1:
        top = probs.topk(min(512, V)).values  # they hold the mass nearly always
        if (top.sum(-1) < top_p).any():
            top = probs.sort(-1, descending=True).values
        mass_before = top.cumsum(-1) - top
        size = (mass_before < top_p).sum(-1, keepdim=True).clamp(min=1)
        probs = probs * (probs >= top.gather(-1, size - 1))  # the set's least likely member
    return probs


def sample(logits, uniforms: list[float], sampling: Sampling):  # (B, V) fp32 -> (B,)
    if sampling.temperature == 0:
        return logits.argmax(-1)
    probs = torch.softmax(logits / sampling.temperature, dim=-1)
    probs = keep_nucleus(probs, sampling.top_p, sampling.top_k)
    cumulative = probs.double().cumsum(-1)
    u = torch.tensor(uniforms, dtype=torch.float64, device=logits.device)[:, None]
    # The first token at which the cumulative mass exceeds u times the total.
    tokens = torch.searchsorted(cumulative, u * cumulative[:, -1:], right=True)[:, 0]
    return tokens.clamp(max=logits.shape[-1] - 1)


class Cache:
    """Keys and values of every layer, and the attention that reads them (model.Decoder).

    A token's slot is its position, so rows are independent. Rows of different lengths need no left
    padding: what lies beyond a row's own position is never looked at, and is overwritten when the
    row gets there.
    """

    def __init__(self, config: Config, batch: int, slots: int, *, device, dtype):
        shape = (batch, config.num_key_value_heads, slots, config.head_dim)  # (B, G, S, E)
        layers = range(config.num_hidden_layers)
        self.keys = [torch.zeros(shape, device=device, dtype=dtype) for _ in layers]
        self.values = [torch.zeros(shape, device=device, dtype=dtype) for _ in layers]

    def __call__(self, layer: int, q, k, v, positions, rule: Rule):
        # q (B, H, T, E), k and v (B, G, T, E), positions (B or 1, T)
        if layer == 0:  # for all layers of this pass
            self.size, self.masks = int(positions.max()) + 1, {}
        row = torch.arange(len(k), device=k.device)[:, None]  # (B, 1)
        # Turned keys are kept: a key's position never changes. Indexing two axes apart puts them
        # in front, so that the right side is wanted as (B, T, G, E).
        self.keys[layer][row, :, positions] = k.transpose(1, 2)
        self.values[layer][row, :, positions] = v.transpose(1, 2)
        if len(positions) == 1 and self.size == k.shape[2]:  # from the start, nothing is cached yet
            return attention(q, k, v, rule)
        if rule.window not in self.masks:
            query = positions[:, None, :, None]  # (B or 1, 1, T, 1)
            self.masks[rule.window] = bias_of(query, self.size, rule.window, q.dtype)
        keys, values = (x[layer][:, :, :self.size] for x in (self.keys, self.values))
        return biased_attention(q, keys, values, self.masks[rule.window], rule)

    def copy_prefix(self, one: "Cache") -> None:
        """Give every row the slots of a cache of one row: a prompt prefix that all share."""
        for mine, theirs in zip(self.keys + self.values, one.keys + one.values, strict=True):
            mine[:, :, : theirs.shape[2]] = theirs

    def keep(self, rows) -> None:
        """Drop all rows but these (a list of indices): finished answers need no more room."""
        for tensors in (self.keys, self.values):
            for layer, old in enumerate(tensors):  # one at a time: two caches may not fit
                tensors[layer] = old[rows]


class Row:
    """One item under way: its tokens, its text so far, and whether it is finished."""

    def __init__(self, prompt: list[int], seed: int):
        self.prompt, self.seed = prompt, seed
        self.tokens: list[int] = []
        self.text, self.finish, self.at_item_start = "", None, True
        self.openings: set[int] = set()  # first tokens of the list items so far

    def adjust(self, logits, eos: list[int], sampling: Sampling) -> None:
        """The list stages' rules, on this row's own logits (V,), in place."""
        if self.text.count("\n") < sampling.min_lines:
            logits[eos] = -torch.inf
        if sampling.opening_penalty and self.at_item_start:
            logits[sorted(self.openings)] -= sampling.opening_penalty

    def take(self, token: int, tokenizer, sampling: Sampling) -> None:
        """Append one token and see whether the answer ends with it."""
        if token in tokenizer.eos_ids:
            self.finish = "eos"
            return
        if self.at_item_start:
            self.openings.add(token)
        self.tokens.append(token)
        self.text = tokenizer.decode(self.tokens)
        self.at_item_start = bool(sampling.opening_penalty and ITEM_START.search(self.text))
        if ends := [at for stop in sampling.stop if (at := self.text.find(stop)) >= 0]:
            self.text, self.finish = self.text[: min(ends)], "stop"
        elif len(self.tokens) == sampling.max_new_tokens:
            self.finish = "length"


@torch.inference_mode()
def _steps(model: Transformer, tokenizer, rows: list[Row], sampling: Sampling) -> Iterator[None]:
    """Continue all rows token by token until each is finished; yields after every step."""
    prompts, eos = [row.prompt for row in rows], sorted(tokenizer.eos_ids)
    if not all(prompts):
        raise ValueError("an empty prompt has no last token to continue from")
    limit = max(map(len, prompts)) + sampling.max_new_tokens
    if limit > (context := model.config.max_position_embeddings):
        raise ValueError(f"prompt and answer need {limit} tokens, the context holds {context}")
    cache, logits = prefill(model, prompts, limit, tokenizer.pad_id)
    for step in range(sampling.max_new_tokens):
        for row, row_logits in zip(rows, logits, strict=True):
            row.adjust(row_logits, eos, sampling)
        tokens = sample(logits, [uniform(row.seed, step) for row in rows], sampling).tolist()
        for row, token in zip(rows, tokens, strict=True):
            row.take(token, tokenizer, sampling)
        yield
        running = [i for i, row in enumerate(rows) if row.finish is None]
        if not running:
            return
        if len(running) < len(rows):
            cache.keep(running)
            rows = [rows[i] for i in running]
        ids = torch.tensor([row.tokens[-1:] for row in rows], device=logits.device)  # (B, 1)
        positions = torch.tensor([[len(row.prompt) + step] for row in rows], device=logits.device)
        logits = model.lm_head(model.model(ids, positions, cache)[:, -1]).float()  # (B, V)


def generate(model: Transformer, tokenizer, prompts: list[list[int]], sampling: Sampling,
             seeds: list[int] | None = None) -> list[Completion]:
    """Continue every prompt (token ids) as one batch; the completions stand in the prompts' order.

    Raises ValueError where a prompt is empty, or with max_new_tokens exceeds the model's context.
    """
    rows = [Row(*item) for item in zip(prompts, seeds or [0] * len(prompts), strict=True)]
    for _ in _steps(model, tokenizer, rows, sampling):
        pass
    return [Completion(row.text, row.finish, len(row.tokens)) for row in rows]


def stream(model: Transformer, tokenizer, prompt: list[int], sampling: Sampling, *,
           seed: int = 0) -> Iterator[str]:
    """The completion that `generate` makes of one prompt, in pieces of whole characters: what the
    next token may change is held back. Raises ValueError as `generate` does."""
    row, sent = Row(prompt, seed), 0
    for _ in _steps(model, tokenizer, [row], sampling):
        text = row.text if row.finish else row.text[:settled(row.text, sampling.stop)]
        if len(text) > sent:
            yield text[sent:]
            sent = len(text)


def settled(text: str, stop: tuple[str, ...]) -> int:
    """How many characters no further token can change: all but the beginning of a stop string, and
    the U+FFFD that stand for the first bytes of a character."""
    whole = len(text.rstrip("\ufffd"))
    begun = [n for s in stop for n in range(1, len(s)) if text.endswith(s[:n])]
    return min(whole, len(text) - max(begun, default=0))


def prefill(model, prompts, limit, pad):  # -> cache, logits (B, V) after each prompt's last token
    """Run the prompts; what they all share in front runs once and is copied to every row."""
    place = {"device": model.lm_head.weight.device, "dtype": model.lm_head.weight.dtype}
    cache, shared = Cache(model.config, len(prompts), limit, **place), shared_prefix(prompts)
    if shared:
        one = Cache(model.config, 1, shared, **place)
        model.model(right_pad([prompts[0][:shared]], pad, place["device"]), None, one)
        cache.copy_prefix(one)
    rest = [prompt[shared:] for prompt in prompts]
    ids = right_pad(rest, pad, place["device"])  # (B, T)
    positions = torch.arange(shared, shared + ids.shape[1], device=ids.device).expand(ids.shape)
    hidden = model.model(ids, positions if shared else None, cache)  # (B, T, D)
    last = torch.tensor([len(r) - 1 for r in rest], device=ids.device)
    return cache, model.lm_head(hidden[torch.arange(len(rest), device=ids.device), last]).float()


def shared_prefix(sequences: list[list[int]]) -> int:
    """Tokens that all sequences have in front, each keeping at least its last for itself."""
    low, high = min(sequences), max(sequences)  # in sorted order the extremes differ first
    most = min(map(len, sequences)) - 1
    return next((i for i in range(most) if low[i] != high[i]), most)
