"""Causal attention for training and reading: whole rows, and packed triplets (triplets.pack).

Letters: B rows of a batch, T query positions of S key positions, H query heads, G key-value heads
(H is a multiple of G), E head size."""

from copy import copy
from functools import lru_cache
from inspect import signature
from itertools import accumulate
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch.nn.attention.varlen import varlen_attn

# torch 2.11 accepts fewer key heads than query heads as they are; later versions need the flag.
GQA = {"enable_gqa": True} if "enable_gqa" in signature(varlen_attn).parameters else {}
WRITTEN_OUT = 1024  # keys up to which training in bf16 on a CPU writes attention out as products


def soft_cap(x, cap: float):
    """Hold x within ±cap, smoothly."""
    return torch.tanh(x / cap) * cap


class Rule(NamedTuple):
    """How a layer's queries look at keys."""

    scale: float  # of the scores
    cap: float | None  # s: scores become s·tanh(score/s)
    window: int | None  # how many keys a query sees at most, its own among them


def attention(q, k, v, rule: Rule):  # (B, H, T, E), (B, G, S, E) twice -> (B, H, T, E)
    """Causal attention of the last T of S positions: each sees itself and what stands before it."""
    (B, H, T, E), (G, S) = q.shape, k.shape[1:3]
    # Written out only where a backward pass follows: without one SDPA, torch's fused function, is
    # faster. The meta device, on which memory is counted, does as a CPU does.
    written_out = (q.requires_grad and q.device.type in ("cpu", "meta")
                   and q.dtype == torch.bfloat16 and S <= WRITTEN_OUT)
    unwindowed = rule.window is None or rule.window >= S
    # In fp32 no fused GPU kernel lets heads share a key head: SDPA would write out all scores.
    shares = H == G or q.device.type != "cuda" or q.dtype != torch.float32
    if T == S and unwindowed and rule.cap is None and shares and not written_out:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=rule.scale,
                                              enable_gqa=True)
    make_bias = causal_bias if S <= WRITTEN_OUT else causal_bias.__wrapped__  # too large to keep
    bias = make_bias(T, S, rule.window, q.dtype, q.device)
    # The H/G query heads of one key head become further query rows, so that no key is copied.
    q = q.reshape(B, G, H // G * T, E)
    bias = bias.repeat(H // G, 1)  # (H/G·T, S)
    if rule.cap is not None:  # SDPA takes no cap
        y = (soft_cap(q @ k.mT * rule.scale, rule.cap) + bias).softmax(-1) @ v
    elif written_out:  # on a CPU in bf16 SDPA's backward pass takes twice as long as this
        scores = torch.baddbmm(bias.expand(B, G, -1, -1).flatten(0, 1), q.flatten(0, 1),
                               k.flatten(0, 1).mT, alpha=rule.scale)  # (B·G, H/G·T, S)
        y = scores.softmax(-1) @ v.flatten(0, 1)
    else:
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=rule.scale)
    return y.reshape(B, H, T, E)


@lru_cache(maxsize=256)  # a batch has as many shapes as sequences, the same in every layer
def causal_bias(T: int, S: int, window: int | None, dtype, device):  # -> (T, S)
    return bias_of(torch.arange(S - T, S, device=device)[:, None], S, window, dtype)


def bias_of(query, S: int, window: int | None, dtype):  # positions (..., 1) -> (..., S)
    """0 where a query may look, -inf where not: at later keys, and at those before its window."""
    key = torch.arange(S, device=query.device)
    hidden = (key > query) | (key <= query - (window or S))
    bias = torch.zeros(hidden.shape, dtype=dtype, device=query.device)
    return bias.masked_fill_(hidden, -torch.inf)


class Span(NamedTuple):
    """A triplet's tokens in the row: what both answers share, then the rest of each."""
    shared: int  # the prompt and the answers' common opening
    positive: int
    toxic: int = 0


class Room(NamedTuple):
    """Sizes up to which all packed rows of a run are filled, where a GPU replays one recording."""
    tokens: int
    scored: int
    segments: int  # one for each answer, and for each piece of the filling
    shared: int  # tokens that are keys of two answers
    longest: int  # keys of a segment


class PackedAttention:
    """Attention within each triplet of a packed row: two causal segments and no mask. With `room`
    the last spans are filling; a key of it is repeated until each row has the same number."""

    def __init__(self, spans: list[Span], room: Room | None = None):
        # The queries of the shared part go with the positive rest: together they are one sequence.
        self.queries = [n for s in spans for n in (s.shared + s.positive, s.toxic)]
        self.keys = [n for s in spans for n in (s.shared, s.positive, s.toxic)]
        places = torch.arange(sum(self.keys)).split(self.keys)
        keys, queries = [], []  # of each segment, their places in the row
        for i in range(0, len(places), 3):
            shared, positive, toxic = places[i:i + 3]
            keys.append(torch.cat((shared, positive)))
            queries.append(keys[-1])
            if len(toxic):
                keys.append(torch.cat((shared, toxic)))
                queries.append(toxic)
        self.longest = [max(map(len, segments)) for segments in (queries, keys)]
        if room:
            most = room.tokens + room.shared
            repeated = keys[-1][:1].expand(most - sum(map(len, keys)))
            keys[-1] = torch.cat((repeated, keys[-1]))
            # varlen_attn takes upper bounds, but starts that many blocks for every segment.
            self.longest = [room.longest, room.longest + room.shared]
            for segments in (queries, keys):
                segments += [places[0][:0]] * (room.segments - len(segments))
        starts = (torch.tensor([0, *accumulate(map(len, segments))], dtype=torch.int32)
                  for segments in (queries, keys))
        self.layout = [torch.cat(keys), *starts]

    def on(self, layout) -> "PackedAttention":
        """The same with other tensors for its layout: on another device, or of another row."""
        other = copy(self)
        other.layout = list(layout)
        return other

    def __call__(self, layer, q, k, v, positions, rule: Rule):  # (1, H, T, E), (1, G, T, E) twice
        in_one = flash_takes(q.device, q.dtype, q.shape[-1], rule.cap)
        return (self.in_one_call if in_one else self.segment_by_segment)(q, k, v, rule)

    def segment_by_segment(self, q, k, v, rule: Rule):
        # Split, not sliced: a split's gradient is one concatenation, a slice's a row of zeros.
        q, k, v = q.split(self.queries, 2), k.split(self.keys, 2), v.split(self.keys, 2)
        outputs = []
        for i in range(len(self.keys) // 3):
            shared, *rests = range(3 * i, 3 * i + 3)
            for queries, rest in zip(q[2 * i:2 * i + 2], rests, strict=True):
                if queries.shape[2]:
                    keys, values = (torch.cat((x[shared], x[rest]), 2) for x in (k, v))
                    outputs.append(attention(queries, keys, values, rule))
        return torch.cat(outputs, dim=2)

    def in_one_call(self, q, k, v, rule: Rule):
        """The same by FlashAttention, which aligns a segment's last query with its last key."""
        index, *starts = self.layout
        q, k, v = (x[0].transpose(0, 1) for x in (q, k, v))  # (T, H or G, E)
        # Selected, not indexed: the gradient of an index sorts it first.
        k, v = k.index_select(0, index), v.index_select(0, index)
        back = -1 if rule.window is None else rule.window - 1  # keys seen besides the query's own
        y = varlen_attn(q, k, v, *starts, *self.longest, scale=rule.scale, window_size=(back, 0),
                        **GQA)
        return y.transpose(0, 1)[None]


def flash_takes(device, dtype, E: int, cap: float | None) -> bool:
    """Whether torch's FlashAttention can be used; it has no soft cap."""
    return (device.type == "cuda" and cap is None and dtype == torch.bfloat16
            and E % 8 == 0 and E <= 256 and torch.cuda.get_device_capability(device) >= (8, 0))
