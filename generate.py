"""Batched sampling with a KV cache.

The text of an item depends on its prompt, its seed and the settings, not on its neighbours: each
token is drawn by one uniform number, a hash of (seed, step), through the inverse of the cumulative
distribution in vocabulary order. Rounding depends on the batch's shape: in fp32 that almost never
moves a draw (tests/test_generate.py finds none), in bf16 it does, so there the batch's composition
is part of a run's identity (synthesis/ledger.py).

Letters: B rows still running, V vocabulary.
"""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from model import Config, Rule, Transformer, attention, bias_of, biased_attention
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


def draw_seed(seed: int, what) -> int:
    """The seed of one completion: of the run's seed and its own name or prompt, not its place."""
    return int(sha256(f"{seed}|{what}")[:15], 16)


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
        # A few hundred tokens hold the mass nearly always; only if they do not is all sorted.
        for k in (min(512, V), V):
            top = probs.topk(k).values
            mass_before = top.cumsum(-1) - top
            if k == V or bool((top.sum(-1) >= top_p).all()):
                break
        size = (mass_before < top_p).sum(-1, keepdim=True).clamp(min=1)
        last = size - 1  # the set's least likely member
        probs = probs * (probs >= top.gather(-1, last))
    return probs


def sample(logits, uniforms: list[float], sampling: Sampling):  # (B, V) fp32 -> (B,)
    if sampling.temperature == 0:
        return logits.argmax(-1)
    probs = torch.softmax(logits / sampling.temperature, dim=-1)
    probs = keep_nucleus(probs, sampling.top_p, sampling.top_k)
    cumulative = probs.double().cumsum(-1)
    u = torch.tensor(uniforms, dtype=torch.float64, device=logits.device)[:, None]
    # The first token at which the cumulative mass exceeds u times the total.
    chosen = torch.searchsorted(cumulative, u * cumulative[:, -1:], right=True)[:, 0]
    return chosen.clamp(max=logits.shape[-1] - 1)


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

    def __init__(self, index: int, prompt: list[int], seed: int):
        self.index, self.position, self.seed = index, len(prompt) - 1, seed
        self.tokens: list[int] = []
        self.text, self.finish = "", None
        self.openings: list[int] = []  # first tokens of the list items so far

    def at_item_start(self) -> bool:
        return not self.tokens or bool(ITEM_START.search(self.text))

    def adjust(self, logits, eos: list[int], sampling: Sampling) -> None:
        """The list stages' rules, on this row's own logits (V,), in place."""
        if self.text.count("\n") < sampling.min_lines:
            logits[eos] = -torch.inf
        if sampling.opening_penalty and self.openings and self.at_item_start():
            logits[sorted(set(self.openings))] -= sampling.opening_penalty

    def take(self, token: int, tokenizer, sampling: Sampling) -> None:
        """Append one token and see whether the answer ends with it."""
        if token in tokenizer.eos_ids:
            self.finish = "eos"
            return
        if sampling.opening_penalty and self.at_item_start():
            self.openings.append(token)
        self.tokens.append(token)
        self.position += 1
        self.text = tokenizer.decode(self.tokens)
        ends = [at for stop in sampling.stop if (at := self.text.find(stop)) >= 0]
        if ends:
            self.text, self.finish = self.text[: min(ends)], "stop"
        elif len(self.tokens) == sampling.max_new_tokens:
            self.finish = "length"


@torch.inference_mode()
def generate(model: Transformer, tokenizer, prompts: list[list[int]], sampling: Sampling,
             seeds: list[int] | None = None) -> list[Completion]:
    """Continue every prompt (token ids) as one batch; the completions stand in the prompts' order.

    Raises ValueError where a prompt is empty, or with max_new_tokens exceeds the model's context.
    """
    limit = _limit(model, prompts, sampling)
    seeds = seeds or [0] * len(prompts)
    rows = [Row(i, prompt, seed)
            for i, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True))]
    done, eos = [None] * len(rows), sorted(tokenizer.eos_ids)
    cache, logits = prefill(model, prompts, limit, tokenizer.pad_id)
    for step in range(sampling.max_new_tokens):
        for row, own in zip(rows, logits, strict=True):
            row.adjust(own, eos, sampling)
        tokens = sample(logits, [uniform(row.seed, step) for row in rows], sampling).tolist()
        for row, token in zip(rows, tokens, strict=True):
            row.take(token, tokenizer, sampling)
            if row.finish:
                done[row.index] = Completion(row.text, row.finish, len(row.tokens))
        running = [i for i, row in enumerate(rows) if row.finish is None]
        if not running:
            break
        if len(running) < len(rows):
            cache.keep(running)
            rows, tokens = [rows[i] for i in running], [tokens[i] for i in running]
        logits = _step(model, cache, tokens, [row.position for row in rows])
    return done


@torch.inference_mode()
def stream(model: Transformer, tokenizer, prompt: list[int], sampling: Sampling, *,
           seed: int = 0) -> Iterator[str]:
    """The completion that `generate` makes of one prompt, in pieces of whole characters.

    A token may end inside a character, and its text begin a stop string: what may yet change is
    held back. Raises ValueError as `generate` does.
    """
    row, told, eos = Row(0, prompt, seed), 0, sorted(tokenizer.eos_ids)
    limit = _limit(model, [prompt], sampling)
    cache, logits = prefill(model, [prompt], limit, tokenizer.pad_id)
    for step in range(sampling.max_new_tokens):
        row.adjust(logits[0], eos, sampling)
        token = sample(logits, [uniform(seed, step)], sampling).item()
        row.take(token, tokenizer, sampling)
        text = row.text if row.finish else row.text[:settled(row.text, sampling.stop)]
        if len(text) > told:
            yield text[told:]
            told = len(text)
        if row.finish:
            return
        logits = _step(model, cache, [token], [row.position])


def settled(text: str, stop: tuple[str, ...]) -> int:
    """How many characters in front no further token can change.

    Not the U+FFFD that stand for the bytes of a character begun, nor the beginning of a stop.
    """
    whole = len(text.rstrip("\ufffd"))
    begun = [n for s in stop for n in range(1, len(s)) if text.endswith(s[:n])]
    return min(whole, len(text) - max(begun, default=0))


def _limit(model, prompts, sampling) -> int:
    """Tokens of the longest prompt and its answer, which must fit the model's context."""
    if not all(prompts):
        raise ValueError("an empty prompt has no last token to continue from")
    context = model.config.max_position_embeddings
    limit = max(map(len, prompts)) + sampling.max_new_tokens
    if limit > context:
        raise ValueError(f"prompt and answer need {limit} tokens, the context holds {context}")
    return limit


def prefill(model, prompts, limit, pad):  # -> cache, logits (B, V) after each prompt's last token
    """Run the prompts; what they all share in front runs once and is copied to every row."""
    device, dtype = model.lm_head.weight.device, model.lm_head.weight.dtype
    shared = shared_prefix(prompts)
    place = {"device": device, "dtype": dtype}
    cache = Cache(model.config, len(prompts), limit, **place)
    if shared:
        one = Cache(model.config, 1, shared, **place)
        model.model(torch.tensor([prompts[0][:shared]], device=device), None, one)
        cache.copy_prefix(one)
    rest = [prompt[shared:] for prompt in prompts]
    T = max(map(len, rest))
    ids = torch.tensor([r + [pad] * (T - len(r)) for r in rest], device=device)
    positions = torch.arange(shared, shared + T, device=device).expand(ids.shape)
    hidden = model.model(ids, positions if shared else None, cache)  # (B, T, D)
    last = torch.tensor([len(r) - 1 for r in rest], device=device)
    return cache, model.lm_head(hidden[torch.arange(len(rest), device=device), last]).float()


def shared_prefix(prompts: list[list[int]]) -> int:
    """Tokens that all prompts have in front; each keeps at least its last token for itself."""
    low, high = min(prompts), max(prompts)  # in sorted order the extremes differ first
    most = min(map(len, prompts)) - 1
    return next((i for i in range(most) if low[i] != high[i]), most)


def _step(model, cache, tokens, positions):
    device = model.lm_head.weight.device
    ids = torch.tensor(tokens, device=device)[:, None]  # (B, 1)
    where = torch.tensor(positions, device=device)[:, None]
    return model.lm_head(model.model(ids, where, cache)[:, -1]).float()  # (B, V)
