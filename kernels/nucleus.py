"""Draws by inverting the cumulative distribution; top_p is nucleus sampling (arXiv 1904.09751).

Letters: B rows, K candidates of a draw, V vocabulary."""

import hashlib

import torch

from kernels.recorded import on_device

CANDIDATES = (512, 8192)  # likeliest tokens to seek the nucleus among, before all are sorted


def uniform(seed: int, step: int) -> float:
    """A number in [0, 1) with 53 random bits, the same on every machine."""
    digest = hashlib.blake2b(f"{seed}|{step}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / (1 << 53)


def sample(logits, uniforms: list[float], sampling):  # (B, V) fp32 -> (B,)
    """The first token at which the kept tokens' cumulative mass, in vocabulary order, exceeds u
    times its total (`sampling`: generate.Sampling). Kept are the top_k likeliest, and of these the
    smallest set that holds top_p. Equal probabilities stay or go together, whatever a sort does."""
    if sampling.temperature == 0:
        return logits.argmax(-1)
    probs = torch.softmax(logits / sampling.temperature, dim=-1)
    if sampling.top_k:
        least = probs.topk(min(sampling.top_k, probs.shape[-1])).values[:, -1:]
        probs = probs * (probs >= least)
        probs = probs / probs.sum(-1, keepdim=True)
    u = on_device(torch.tensor(uniforms, dtype=torch.float64), logits.device)[:, None]
    if sampling.top_p < 1:
        return draw_from_nucleus(probs, u, sampling.top_p)[:, 0]
    # A few rows at a time: cumulative sums of all in float64 would be the largest tensor here.
    parts = zip(probs.split(8), u.split(8), strict=True)
    return torch.cat([draw(*part) for part in parts])[:, 0]


def draw(probs, u):  # (B, K) with K in vocabulary order, (B, 1) float64 -> (B, 1) places among K
    cumulative = probs.cumsum(-1, dtype=torch.float64)
    total = cumulative[:, -1:].contiguous()
    places = torch.searchsorted(cumulative, u * total, right=True)
    # Rounding could put it behind the last token that has mass.
    return torch.minimum(places, torch.searchsorted(cumulative, total))


def draw_from_nucleus(probs, u, top_p: float):  # (B, V), (B, 1) float64 -> (B, 1)
    """Looks among the likeliest tokens only. Rows whose nucleus is larger are done again by
    themselves, with more candidates: sorting all V for all rows takes longer than the model."""
    V, rows = probs.shape[-1], torch.arange(len(probs), device=probs.device)
    tokens = torch.empty(len(probs), 1, dtype=torch.long, device=probs.device)
    for K in (*CANDIDATES, V):
        top, ids = probs.topk(K) if K < V else probs.sort(-1, descending=True)  # (B, K)
        cumulative = top.cumsum(-1)
        size = (cumulative - top < top_p).sum(-1, keepdim=True).clamp(min=1)
        least = top.gather(-1, size - 1)  # the set's least likely member
        if K >= V:
            tokens[rows] = draw(probs * (probs >= least), u)
            break
        # In vocabulary order; what is not kept goes to the end and loses its mass.
        ids, places = ids.masked_fill(top < least, V).sort(-1)
        tokens[rows] = ids.gather(-1, draw(top.gather(-1, places) * (ids < V), u))
        # There may be more of the mass further down, or tokens as likely as the least of these.
        short = ((cumulative[:, -1:] < top_p) | (least == top[:, -1:])).nonzero()[:, 0]
        if not len(short):
            break
        probs, u, rows = probs[short], u[short], rows[short]
    return tokens
