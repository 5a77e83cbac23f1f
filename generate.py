"""Batched generation with a KV cache, for synthesis, chat, the evaluations and their judges.

The text of an item depends on its prompt, its seed and the settings, not on its neighbours: each
token is drawn by a hash of (seed, step) (kernels/nucleus.py). Rounding depends on the batch's
shape: in fp32 that almost never moves a draw (tests/test_generate.py finds none), in bf16 it does,
so there the batch's composition is part of a run's identity (synthesis/ledger.py).

What the prompts share in front is computed, stored and attended once for all rows. A row that ends
leaves its place in the cache to the next prompt. Speed beside others: benchmarks/generate.py.

Letters: B rows, T new tokens of each, P shared tokens, S slots behind them, H query heads, G
key-value heads, E head size, V vocabulary."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from weakref import proxy

import torch

from kernels.attention import Rule, attention, bias_of
from kernels.nucleus import sample, uniform
from kernels.packed import packed_linears
from kernels.prefix import prefix_attention
from kernels.recorded import Recorded, on_device
from model import Config, Transformer, right_pad
from support.decoding import Decoding, NGrams, settled, telling
from support.devices import cache_bytes
from support.files import sha256
from support.weights import check_finite

ITEM_START = re.compile(r"(^|\n)\s*\(?\d{1,2}[.):]\)?\s*$")  # "12. " with nothing after it yet
ITEM_ENDS = frozenset("\n.):")  # a line's end, and all that such a start may end with
PASS_TOKENS = {"cpu": 1024, "cuda": 8192}  # of prompts run together: fast products, little padding
RECORDED_SLOTS = 256  # a GPU records the decoding step anew each time this many more are filled
REFILL = 8  # an eighth of the rows come in together: a pass of a few tokens is a slow one


@dataclass(frozen=True)
class Sampling:
    max_new_tokens: int
    temperature: float = 0.0  # 0 is greedy
    top_p: float = 1.0
    top_k: int = 0  # 0 is off
    stop: tuple[str, ...] = ()  # the text ends before the first of these
    min_lines: int = 0  # lists: no end-of-text token before this many lines are complete
    min_new_tokens: int = 0  # no end-of-text token before this many tokens
    no_repeat_ngram: int = 0  # no run of this many tokens, prompt and end included, comes twice
    opening_penalty: float = 0.0  # lists: nats off the tokens that opened earlier items


@dataclass(frozen=True)
class Completion:
    text: str
    finish: str  # "eos", "stop" (a stop string) or "length"; of synth also "context" (no room)
    n_tokens: int


def draw_seed(seed: int, name) -> int:
    """The seed of one completion: of the run's seed and its own name or prompt, not its place."""
    return int(sha256(f"{seed}|{name}")[:15], 16)


class Cache:
    """Keys and values of every layer, and the attention that reads them (model.Decoder).

    A token's slot is its position, less the P tokens of `prefix`, a cache of one row that all rows
    continue. Rows of different lengths need no left padding: what lies beyond a row's own position
    is never looked at, and is overwritten when the row gets there."""

    def __init__(self, config: Config, batch: int, slots: int, *, device, dtype, prefix=None):
        shape = (batch, config.num_key_value_heads, slots, config.head_dim)  # (B, G, S, E)
        layers = range(config.num_hidden_layers)
        self.keys = [torch.zeros(shape, device=device, dtype=dtype) for _ in layers]
        self.values = [torch.zeros(shape, device=device, dtype=dtype) for _ in layers]
        self.prefix, self.P, self.slots = prefix, prefix.slots if prefix else 0, slots
        self.rows = None  # (B,) of the next pass, where these are not the first ones
        self.end = None  # the next pass's positions stay below it; None: it is looked up

    def __call__(self, layer: int, q, k, v, positions, rule: Rule):
        # q (B, H, T, E), k and v (B, G, T, E), positions (B or 1, T)
        if layer == 0:  # what all layers of this pass use
            self.size, self.biases = (self.end or int(positions.max()) + 1) - self.P, {}
            self.places = positions - self.P
        # Turned keys are kept: a key's position never changes. Indexing two axes that are not
        # neighbours puts them in front, so the right side has to be (B, T, G, E).
        if len(self.keys[layer]):  # a cache of no rows keeps nothing: it only reads the prefix
            row = torch.arange(len(k), device=k.device) if self.rows is None else self.rows
            self.keys[layer][row[:, None], :, self.places] = k.transpose(1, 2)
            self.values[layer][row[:, None], :, self.places] = v.transpose(1, 2)
        begins = len(positions) == 1 and self.size == k.shape[2]  # these rows have nothing cached
        joined = q.is_cuda and rule.cap is None and q.shape[2] >= 16  # fewer are not worth a copy
        if begins and (joined or not self.P):
            if self.P:  # apart, the scores of long prompts would take GiBs
                k, v = (torch.cat((x[layer].expand(len(own), -1, -1, -1), own), 2) for x, own in
                        ((self.prefix.keys, k), (self.prefix.values, v)))
            return attention(q, k, v, rule)
        if not begins:
            k, v = (x[layer][: len(k), :, : self.size] for x in (self.keys, self.values))
        B, H, T, E = q.shape
        # The H/G query heads of a key head become further query rows: each key is read once.
        q = q.reshape(B, k.shape[1], -1, E)
        if rule.window not in self.biases:
            self.biases[rule.window] = self.bias(rule.window, H // k.shape[1], q.dtype)
        bias, prefix_bias = self.biases[rule.window]
        prefix = (self.prefix.keys[layer], self.prefix.values[layer]) if self.P else None
        return prefix_attention(q, k, v, bias, prefix, prefix_bias, scale=rule.scale,
                                cap=rule.cap).reshape(B, H, T, E)

    def bias(self, window: int | None, group: int, dtype):
        """(B or 1, 1, group·T, S): what the query rows of a key head see of their own slots. And
        the same (..., P) of the prefix, or None where no window hides any of it."""
        query, of_prefix = self.places[:, None, :, None], None
        own = bias_of(query, self.size, window, dtype).repeat(1, 1, group, 1)
        if self.P and window is not None and window < self.P + self.size:
            of_prefix = bias_of(query + self.P, self.P, window, dtype).repeat(1, 1, group, 1)
        return own, of_prefix


class Row:
    """One item under way: its tokens, its text so far, and whether it is finished."""

    def __init__(self, prompt: list[int], seed: int, tokenizer, sampling: Sampling):
        self.prompt, self.seed, self.sampling = prompt, seed, sampling
        self.eos, self.decode = sorted(tokenizer.eos_ids), Decoding(tokenizer.decode, prompt)
        self.ngrams = NGrams(sampling.no_repeat_ngram, prompt)  # of prompt and tokens
        self.tokens, self.text, self.finish = [], "", None  # finish: as in Completion
        self.at_item_start, self.openings = True, set()  # the latter: first tokens of items so far

    def rules(self) -> dict[int, float]:
        """What the rules of `sampling` add to the logits of tokens."""
        added, sampling = {}, self.sampling
        if sampling.opening_penalty and self.at_item_start:
            added = dict.fromkeys(sorted(self.openings), -sampling.opening_penalty)
        if (len(self.tokens) < sampling.min_new_tokens
                or self.text.count("\n") < sampling.min_lines):
            added |= dict.fromkeys(self.eos, -torch.inf)
        return added | dict.fromkeys(self.ngrams.repeating(), -torch.inf)

    def take(self, token: int, read_after: frozenset[int] | None) -> None:
        """Append one token and see whether the answer ends with it. The text is decoded only after
        the tokens of `read_after`; None: after each."""
        sampling = self.sampling
        if token in self.eos:
            self.finish = "eos"
        else:
            if self.at_item_start:
                self.openings.add(token)
            self.tokens.append(token)
            self.ngrams.add(token)
            if known := (read_after is None or token in read_after):
                self.text = self.decode.latest(self.tokens)
            self.at_item_start = bool(
                known and sampling.opening_penalty and ITEM_START.search(self.text))
            if any(stop in self.text for stop in sampling.stop):
                self.finish = "stop"
            elif len(self.tokens) == sampling.max_new_tokens:
                self.finish = "length"
        if self.finish:
            text = self.decode.whole(self.tokens)  # and of it what stands before any stop string
            self.text = min((text.partition(s)[0] for s in sampling.stop), key=len, default=text)


class Batch:
    """Rows under way together, each in a row of the cache: the running ones are its first."""

    def __init__(self, model: Transformer, prompts: list[list[int]], max_new_tokens: int, pad: int):
        self.model, self.pad = model, pad
        config, weight = model.config, model.lm_head.weight
        self.place = {"device": weight.device, "dtype": weight.dtype}
        self.rows, prefix = [], None
        self.P = shared_prefix(prompts) if len(prompts) > 1 else 0
        if self.P:
            prefix = Cache(config, 1, self.P, **self.place)
            self.run([prompts[0][: self.P]], prefix, 0)
        room = max(map(len, prompts)) - self.P + max_new_tokens
        of_token = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
        # 12 bytes an entry of the vocabulary: logits, and what `sample` makes of them.
        bytes_of_row = room * of_token * weight.itemsize + 12 * len(weight)
        # Prompts, model and device alone decide, so that another run has the same batches.
        self.most_rows = min(len(prompts), max(1, cache_bytes(weight.device) // bytes_of_row))
        kept = self.most_rows if max_new_tokens else 0  # next_logits: nobody reads the cache later
        self.cache = Cache(config, kept, room, **self.place, prefix=prefix)
        self.recorded = {}  # on a GPU: rows and the cache's length -> decoding step

    def run(self, parts: list[list[int]], cache: Cache, start: int):  # -> (B, D)
        """The hidden state of each sequence's last token; the first ones have position `start`."""
        ids = right_pad(parts, self.pad, self.place["device"])  # (B, T)
        cache.end = start + ids.shape[1]
        positions = torch.arange(start, cache.end, device=ids.device)[None]
        hidden = self.model.model(ids, positions, cache)  # (B, T, D)
        last = torch.tensor([len(part) - 1 for part in parts], device=ids.device)
        return hidden[torch.arange(len(parts), device=ids.device), last]

    def prefill(self, prompts: list[list[int]], first: int = 0):  # -> (B, V)
        """Logits after each prompt; what was read of it is in the cache's rows from `first` on."""
        rests = [prompt[self.P:] for prompt in prompts]
        hidden = torch.empty(len(rests), self.model.lm_head.in_features, **self.place)
        for part in passes(list(map(len, rests)), self.place["device"]):
            self.cache.rows = torch.tensor(part, device=self.place["device"]) + first
            hidden[part] = self.run([rests[i] for i in part], self.cache, self.P)
        return self.model.lm_head(hidden).float()

    def admit(self, waiting: list[Row]):  # -> (B, V), or None where none comes in
        """Take rows from the list's end into the free places, once enough of them are free."""
        free = self.most_rows - len(self.rows)
        if not waiting or free < -(-self.most_rows // REFILL):
            return None
        first, rows = len(self.rows), [waiting.pop() for _ in range(min(free, len(waiting)))]
        self.rows += rows
        return self.prefill([row.prompt for row in rows], first)

    def step(self):  # -> (B, V)
        """Logits after the last token of every running row."""
        last = [[row.tokens[-1], len(row.prompt) + len(row.tokens) - 1] for row in self.rows]
        length = max(position for _, position in last) + 1 - self.P
        if self.place["device"].type != "cuda":
            return self.decode(torch.tensor(last), length)
        # What is recorded has one shape: it decodes free places as well, and more of the cache.
        rows = self.most_rows
        while rows >= 2 * max(len(last), 16):  # fewer take as long
            rows //= 2
        last += [[self.pad, self.P]] * (rows - len(last))
        length = min(-(-length // RECORDED_SLOTS) * RECORDED_SLOTS, self.cache.slots)
        # A proxy: in a cycle the cache would be held until Python's collector comes by.
        decode = Recorded(partial(Batch.decode, proxy(self), length=length))
        decode = self.recorded.setdefault((rows, length), decode)
        return decode(torch.tensor(last))[: len(self.rows)]

    def decode(self, last, length: int):  # (B, 2) tokens and positions -> (B, V)
        """Read one token a row, which sees `length` slots of the cache at most."""
        self.cache.rows, self.cache.end = None, self.P + length
        hidden = self.model.model(last[:, :1], last[:, 1:], self.cache)[:, -1]
        return self.model.lm_head(hidden).float()

    def drop_ended(self) -> None:
        """The last rows move into the places of those that ended; the cache itself stays."""
        for i in reversed(range(len(self.rows))):
            if self.rows[i].finish is not None:
                row = self.rows.pop()
                if i < len(self.rows):
                    self.rows[i] = row
                    for layer in self.cache.keys + self.cache.values:
                        layer[i] = layer[len(self.rows)]


def apply_rules(logits, rules: list[dict[int, float]]) -> None:  # (B, V), in place
    """Add to each row's logits what its rules say of tokens, all rows at once."""
    places = [(row, *rule) for row, of_row in enumerate(rules) for rule in of_row.items()]
    if places:
        rows, tokens, values = zip(*places, strict=True)
        rows, tokens = on_device(torch.tensor([rows, tokens]), logits.device)
        values = on_device(torch.tensor(values), logits.device)
        logits.index_put_((rows, tokens), values, accumulate=True)


@torch.inference_mode()
def _steps(model: Transformer, tokenizer, rows: list[Row], sampling: Sampling, *,
           streaming: bool) -> Iterator[None]:
    """Continue all rows token by token until each is finished; yields after every step. When
    `streaming` the rows' texts are up to date at each."""
    prompts = [row.prompt for row in rows]
    if not all(prompts):
        raise ValueError("an empty prompt has no last token to continue from")
    limit = max(map(len, prompts)) + sampling.max_new_tokens
    if limit > (context := model.config.max_position_embeddings):
        raise ValueError(f"prompt and answer need {limit} tokens, the context holds {context}")
    listed = sampling.min_lines or sampling.opening_penalty
    ruled = listed or sampling.min_new_tokens or sampling.no_repeat_ngram
    ends = frozenset(s[-1] for s in sampling.stop) | (ITEM_ENDS if listed else frozenset())
    # Decoding all rows' texts at each step would take longer than a GPU takes for the step.
    read_after = None if streaming else telling(tokenizer, ends, len(model.lm_head.weight))
    with packed_linears(model):
        batch = Batch(model, prompts, sampling.max_new_tokens, tokenizer.pad_id)
        waiting = rows[::-1]
        while waiting or batch.rows:
            parts = [batch.step()] if batch.rows else []
            if (first := batch.admit(waiting)) is not None:
                parts.append(first)
            logits = torch.cat(parts) if len(parts) > 1 else parts[0]  # (B, V)
            check_finite(logits, "the model's output", "--model", "check weights and adapter")
            if ruled:
                apply_rules(logits, [row.rules() for row in batch.rows])
            uniforms = [uniform(row.seed, len(row.tokens)) for row in batch.rows]
            tokens = sample(logits, uniforms, sampling).tolist()
            for row, token in zip(batch.rows, tokens, strict=True):
                row.take(token, read_after)
            yield
            batch.drop_ended()


def generate(model: Transformer, tokenizer, prompts: list[list[int]], sampling: Sampling,
             seeds: list[int] | None = None) -> list[Completion]:
    """Continue every prompt (token ids); the completions stand in the prompts' order. Raises
    ValueError where a prompt is empty, or with max_new_tokens exceeds the model's context."""
    rows = [Row(prompt, seed, tokenizer, sampling)
            for prompt, seed in zip(prompts, seeds or [0] * len(prompts), strict=True)]
    for _ in _steps(model, tokenizer, rows, sampling, streaming=False):
        pass
    return [Completion(row.text, row.finish, len(row.tokens)) for row in rows]


def stream(model: Transformer, tokenizer, prompt: list[int], sampling: Sampling, *,
           seed: int = 0) -> Iterator[str]:
    """The completion that `generate` makes of one prompt, in pieces of whole characters: what the
    next token may change is held back. Raises ValueError as `generate` does."""
    row, sent = Row(prompt, seed, tokenizer, sampling), 0
    for _ in _steps(model, tokenizer, [row], sampling, streaming=True):
        text = row.text if row.finish else row.text[:settled(row.text, sampling.stop)]
        if len(text) > sent:
            yield text[sent:]
            sent = len(text)


@torch.inference_mode()
def next_logits(model: Transformer, prompts: list[list[int]], pad: int):  # -> (B, V) fp32
    """Logits after each prompt's last token."""
    with packed_linears(model):
        return Batch(model, prompts, 0, pad).prefill(prompts)


def passes(lengths: list[int], device: torch.device) -> Iterator[list[int]]:
    """Indices of sequences to run together, of about one length: all are padded to the longest."""
    order, most = sorted(range(len(lengths)), key=lengths.__getitem__), PASS_TOKENS[device.type]
    while order:
        n = 1
        while n < len(order) and (n + 1) * lengths[order[n]] <= most:
            n += 1
        yield order[:n]
        order = order[n:]


def shared_prefix(sequences: list[list[int]]) -> int:
    """How many first tokens all sequences share; each keeps at least its last for itself."""
    low, high = min(sequences), max(sequences)  # in sorted order the extremes differ first
    most = min(map(len, sequences)) - 1
    return next((i for i in range(most) if low[i] != high[i]), most)
