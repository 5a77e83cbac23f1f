"""Each row's loss and its gradient with respect to the logits, in one kernel: `losses.log_odds`, a
soft cap and `losses.row_loss`, forward and backward at once.

Letters: N rows, V vocabulary."""

import torch
import triton
import triton.language as tl

BLOCK, WARPS = 8192, 8  # a first guess: `benchmarks/head.py --sweep` compares others


@triton.jit
def softplus(x):
    """log(1 + exp(x)) without overflow; log1p(e) = log(u)·e/(u - 1), u = 1 + e, keeps small e."""
    e = tl.exp(-tl.abs(x))
    u = 1.0 + e
    rest = tl.where(u == 1.0, 1.0, u - 1.0)
    return tl.maximum(x, 0.0) + tl.where(u == 1.0, e, tl.log(u) * (e / rest))


@triton.jit
def capped(z, CAP: tl.constexpr):
    """(CAP·tanh(z/CAP), its slope 1 - tanh²(z/CAP)); (z, 1) if there is no cap."""
    if CAP > 0:
        e = tl.exp(-2.0 / CAP * tl.abs(z))
        t = tl.where(z < 0, -1.0, 1.0) * (1.0 - e) / (1.0 + e)
        return CAP * t, 4.0 * e / ((1.0 + e) * (1.0 + e))  # 1 - t·t would round to 0 sooner
    else:  # for Triton, which takes no second return without it
        return z, 1.0


@triton.jit
def _row_loss_kernel(logits_ptr, targets_ptr, kind_ptr, weight_ptr, rows_ptr, grad_ptr, V,
                     row_stride, CAP: tl.constexpr, BLOCK: tl.constexpr):
    """One program a row: logits (N, V) fp32, row_stride apart -> rows (N,), gradient (N, V)."""
    row = tl.program_id(0).to(tl.int64)  # N·V may exceed 2³¹
    logits_ptr += row * row_stride
    grad_ptr += row * V
    y = tl.load(targets_ptr + row).to(tl.int32)
    s = tl.load(kind_ptr + row).to(tl.float32)  # +1 MLE, -1 UT, 0 ignored
    w = tl.load(weight_ptr + row).to(tl.float32)
    j = tl.arange(0, BLOCK)

    if s == 0.0:
        tl.store(rows_ptr + row, 0.0)
        for start in range(0, V, BLOCK):
            zero = tl.zeros([BLOCK], grad_ptr.dtype.element_ty)
            tl.store(grad_ptr + start + j, zero, mask=start + j < V)
        return

    # 1. logsumexp over j ≠ y in one pass: when a block brings a larger maximum, what was summed so
    #    far is rescaled. A block whose only logit is y has the maximum -inf: `finite` guards it.
    top, total = -float("inf"), 0.0
    for start in range(0, V, BLOCK):
        inside = start + j < V  # the load's only mask: with y in it, loads would be one by one
        z = tl.load(logits_ptr + start + j, mask=inside, other=0.0).to(tl.float32)
        z = tl.where(inside & (start + j != y), capped(z, CAP)[0], -float("inf"))
        higher = tl.maximum(top, tl.max(z, 0))
        finite = tl.where(higher == -float("inf"), 0.0, higher)
        total = total * tl.exp(top - finite) + tl.sum(tl.exp(z - finite), 0)
        top = higher

    # 2. Log-odds a = z_y - logsumexp, and the row's loss -logσ(s·a) = softplus(-s·a).
    z_y, slope_y = capped(tl.load(logits_ptr + y).to(tl.float32), CAP)
    a = (z_y - top) - tl.log(total)
    tl.store(rows_ptr + row, softplus(-s * a))

    # 3. Gradient. d/da of w·softplus(-s·a) is c = -s·w·σ(-s·a), σ(x) = exp(-softplus(-x)); and
    #    da/dz_j = [j = y] - q_j with q_j = exp(z_j - top)/total, so dL/dz_j = c·([j = y] - q_j).
    #    Under a cap dz/draw, its slope, multiplies.
    c = -s * w * tl.exp(-softplus(s * a))
    for start in range(0, V, BLOCK):
        inside = start + j < V
        raw = tl.load(logits_ptr + start + j, mask=inside, other=0.0).to(tl.float32)
        z, slope = capped(raw, CAP)
        q = tl.exp(tl.minimum(z - top, 0.0)) / total  # z > top only at y, where it is not used
        grad = tl.where(start + j == y, c * slope_y, -c * q * slope)
        tl.store(grad_ptr + start + j, grad.to(grad_ptr.dtype.element_ty), mask=inside)


def row_loss_fwd(logits, targets, kind, weight, grad, *, softcap: float | None = None):
    """rows (N,) fp32; weight · d rows/d logits is written into `grad` (N, V). The rows of `logits`
    (N, V), fp32, may lie apart; targets, kind, weight (N,) are as in `losses.pt_loss`."""
    N, V = logits.shape
    targets, kind, weight = (x.contiguous() for x in (targets, kind, weight))
    rows = torch.empty(N, dtype=torch.float32, device=logits.device)
    if N:
        with torch.cuda.device_of(logits):  # Triton launches on the current one
            _row_loss_kernel[(N,)](
                logits, targets, kind, weight, rows, grad, V, logits.stride(0),
                CAP=softcap or 0.0, BLOCK=min(BLOCK, triton.next_power_of_2(V)), num_warps=WARPS)
    return rows
