"""What head.py times: other people's ways to the same loss, ours, and the matrix products alone.

Every rival is a function (hidden, head, targets, kind, weight) -> loss whose backward reaches
hidden. Its docstring says what it is and whether it clamps 1 - p, and is printed below the table. A
rival that cannot run here raises, and is listed with that reason.

A fused cross-entropy becomes unlikelihood by one more line (`from_nll`), which is as far as its
users get today: -log(1 - p) = -log(-expm1(-nll)), infinite where nll rounds to 0.

Letters: N rows, D hidden size, V vocabulary.
"""

from functools import cache

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

import losses
from benchmarks.timing import Unavailable
from losses import IGNORED, POSITIVE, TOXIC

CLAMP = 1e-5  # fairseq's guard, in most unlikelihood code: no gradient where p is above 1 - CLAMP


# ---- what a rival is made of ----

def naive_rows(hidden, head, targets, kind):  # (N, D), (V, D), (N,), (N,) -> (N,)
    lp = F.log_softmax((hidden @ head.T).float(), -1).gather(1, targets[:, None])[:, 0]
    ut = -torch.log(torch.clamp(1 - lp.exp(), min=CLAMP))
    return torch.where(kind == POSITIVE, -lp, ut) * (kind != IGNORED)


def from_nll(nll, kind, weight):  # (N,) each -> ()
    """The loss from each row's -log p. Positive rows are kept out of the second formula, where a
    p of 1 would send NaN into their gradient too.
    """
    nll = nll.float()
    toxic = kind == TOXIC
    ut = -torch.log(-torch.expm1(-torch.where(toxic, nll, 1)))
    return (weight * torch.where(toxic, ut, nll)).sum()


def need_gpu(hidden, name: str) -> None:
    if not hidden.is_cuda:
        raise Unavailable(f"{name} is not available on a CPU")


def two_products(hidden, head, *, chunk: int):  # (N, D), (V, D) -> a call
    """h·Wᵀ and z·W alone, which no exact form can do without; `chunk` rows at a time."""
    hidden, N = hidden.detach(), len(hidden)
    out = torch.empty_like(hidden)

    def logits():
        return torch.empty(min(chunk, N), len(head), dtype=hidden.dtype, device=hidden.device)

    # Held on a CPU, where new memory costs time; a GPU's allocator has the same block at hand, and
    # what is held there would be missing for the rivals.
    held = None if hidden.is_cuda else logits()

    def call():
        buffer = logits() if held is None else held
        for i in range(0, N, chunk):
            part = hidden[i:i + chunk]
            z = torch.mm(part, head.T, out=buffer[:len(part)])
            torch.mm(z, head, out=out[i:i + chunk])

    return call


# ---- the rivals ----

def naive(hidden, head, targets, kind, weight):
    """F.log_softmax over all logits in fp32, as people write it; clamps"""
    return (weight * naive_rows(hidden, head, targets, kind)).sum()


def naive_every_row(hidden, head, targets, kind, weight):
    """as shipped: naive over prompts and m_t = 0 rows too, as many again as are scored; clamps"""
    return naive(hidden, head, targets, kind, weight)


@cache
def compiled_naive():
    return torch.compile(naive, dynamic=False)


def compiled(hidden, head, targets, kind, weight):
    """torch.compile(naive); clamps"""
    return compiled_naive()(hidden, head, targets, kind, weight)


def torch_linear_ce(hidden, head, targets, kind, weight):
    """torch's F.linear_cross_entropy, in chunks, a loss per token; no clamp. On a CPU its own
    choice is fp32 products; its faster policies give the loss in bf16, where 1 - p may be 0"""
    # 128 is its best on two cores (of 128 and 256).
    options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=2048 if hidden.is_cuda else 128)
    nll = F.linear_cross_entropy(hidden, head, targets, reduction="none", options=options)
    return from_nll(nll, kind, weight)


def trl_chunks(hidden, head, targets, kind, weight):
    """naive in checkpointed chunks of 256 rows, the shape of TRL's default loss; clamps"""
    loss = 0
    for i in range(0, len(hidden), 256):
        part = slice(i, i + 256)
        rows = checkpoint(naive_rows, hidden[part], head, targets[part], kind[part],
                          use_reentrant=False)
        loss = loss + (weight[part] * rows).sum()
    return loss


def cce_nll(hidden, head, targets, **options):
    from cut_cross_entropy import linear_cross_entropy
    return linear_cross_entropy(hidden, head, targets, reduction="none", **options)


def cce_compiled(hidden, head, targets, kind, weight):
    """Apple's Cut Cross Entropy, its torch.compile form; no clamp"""
    return from_nll(cce_nll(hidden, head, targets, impl="torch_compile"), kind, weight)


def cce(hidden, head, targets, kind, weight):
    """Cut Cross Entropy's kernel, which leaves small gradients out; no clamp"""
    need_gpu(hidden, "CCE's kernel")
    return from_nll(cce_nll(hidden, head, targets, impl="cce"), kind, weight)


def cce_exact(hidden, head, targets, kind, weight):
    """Cut Cross Entropy's kernel, leaving nothing out (filter_eps=None); no clamp"""
    need_gpu(hidden, "CCE's kernel")
    return from_nll(cce_nll(hidden, head, targets, impl="cce", filter_eps=None), kind, weight)


def liger_nll(hidden, head, targets, reduction: str, budget: int):
    need_gpu(hidden, "Liger")
    from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction
    return LigerFusedLinearCrossEntropyFunction.apply(
        hidden, head, targets, None, None, -100, 0.0, 0.0, reduction, None,
        False, None, False, False, False, None, None, budget)[0]


def liger(hidden, head, targets, kind, weight):
    """Liger's fused cross-entropy, a loss per token; no clamp"""
    return from_nll(liger_nll(hidden, head, targets, "none", 1), kind, weight)


def liger_16(hidden, head, targets, kind, weight):
    """the same with chunks 16 times as large (chunk_mem_const); no clamp"""
    return from_nll(liger_nll(hidden, head, targets, "none", 16), kind, weight)


def liger_and_torch(hidden, head, targets, kind, weight):
    """Liger's summed cross-entropy for positive rows, naive for toxic ones; clamps"""
    mle, ut = kind == POSITIVE, kind == TOXIC
    nll = liger_nll(hidden[mle], head, targets[mle], "sum", 1)
    return weight[mle].amax() * nll + naive(  # the positive rows have one weight, 1/|P|
        hidden[ut], head, targets[ut], kind[ut], weight[ut])


def quack(hidden, head, targets, kind, weight):
    """QuACK's chunked linear cross-entropy, every row MLE of weight 1: speed only; no clamp"""
    need_gpu(hidden, "QuACK")
    from quack.linear_cross_entropy import chunked_linear_cross_entropy
    return chunked_linear_cross_entropy(hidden, head, targets, chunk_size=4096, reduction="sum")


def ours(hidden, head, targets, kind, weight):
    """losses.pt_loss_chunked, plain torch; log-odds, no clamp"""
    return losses.pt_loss_chunked(hidden, head, targets, kind, weight)[0]


def ours_triton(hidden, head, targets, kind, weight):
    """kernels.chunked.pt_loss_chunked: chunks of rows, a Triton row kernel; log-odds, no clamp"""
    need_gpu(hidden, "our Triton kernel")
    from kernels.chunked import pt_loss_chunked
    return pt_loss_chunked(hidden, head, targets, kind, weight)[0]


def ours_flash(hidden, head, targets, kind, weight):
    """kernels.flash_head.pt_loss_flash: one kernel, for small D; log-odds, no clamp"""
    need_gpu(hidden, "our flash kernel")
    from kernels import flash_head
    if not flash_head.fits(hidden):
        raise Unavailable(f"D = {hidden.shape[1]} does not fit our flash kernel")
    return flash_head.pt_loss_flash(hidden, head, targets, kind, weight)[0]


MLE_ONLY = (quack,)  # of no use for PT-ALIGN as they are, so without an error
