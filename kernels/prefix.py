"""Attention of rows that continue one prefix, whose keys are read once for all of them.

Letters: B rows, R query rows of a key head (its query heads times the new tokens), G key heads,
S slots of each row, P of the prefix, E head size."""

import torch
import torch.nn.functional as F

# SDPA on a CPU that returns the log-sum-exp of each query's scores as well.
FLASH = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


def prefix_attention(q, k, v, bias, prefix, prefix_bias, *, scale: float, cap: float | None):
    """q (B, G, R, E), k, v (B, G, S, E), bias (B or 1, 1, R, S) -> (B, G, R, E); `prefix` is (keys,
    values), (1, G, P, E) each, or None; `prefix_bias` (B or 1, 1, R, P), or None if all is seen."""
    if prefix is None and cap is None:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)
    if prefix is None:  # SDPA takes no cap
        return (scores(q, k, scale, cap) + bias).softmax(-1).to(v.dtype) @ v
    (B, G, R, E), (prefix_k, prefix_v) = q.shape, prefix
    together = q.transpose(0, 1).reshape(1, G, B * R, E)

    def apart(x):  # (1, G, B·R, ...) -> (B, G, R, ...)
        return x.view(G, B, R, -1).transpose(0, 1)

    if cap is None and prefix_bias is None and q.device.type == "cpu":
        # Each part has a softmax of its own; the parts are weighed by their shares of Σ exp(score).
        y, lse = FLASH(q, k, v, attn_mask=bias, scale=scale)
        z, prefix_lse = FLASH(together, prefix_k, prefix_v, scale=scale)
        share = (apart(prefix_lse) - lse[..., None]).sigmoid().to(y.dtype)
        return torch.lerp(y, apart(z), share)
    in_prefix = apart(scores(together, prefix_k, scale, cap))
    if prefix_bias is not None:
        in_prefix = in_prefix + prefix_bias
    p = torch.cat((in_prefix, scores(q, k, scale, cap) + bias), dim=-1).softmax(-1).to(q.dtype)
    P = prefix_k.shape[2]
    return apart(p[..., :P].transpose(0, 1).reshape(1, G, B * R, P) @ prefix_v) + p[..., P:] @ v


def scores(q, k, scale: float, cap: float | None):
    """At least in fp32: in bf16 a large one would be off by half a nat."""
    dtype = torch.promote_types(q.dtype, torch.float32)
    if q.is_cuda and q.dtype != dtype:  # a copy of the keys in fp32 would take longer than this
        products = torch.bmm(q.flatten(0, 1), k.flatten(0, 1).mT, out_dtype=dtype)
    else:
        products = (q.to(dtype) @ k.to(dtype).mT).flatten(0, 1)
    products = products.unflatten(0, q.shape[:2]) * scale
    return products if cap is None else torch.tanh(products / cap) * cap
