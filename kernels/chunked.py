"""The head for any hidden size: cuBLAS products and the row kernel between them, chunk by chunk.

The twin of `losses.pt_loss_chunked`. At D = 4096 the products take most of the time and no kernel
of ours would beat the library's; what is won is that they are only two.

Letters: N rows, D hidden size, V vocabulary."""

import torch

from kernels.rows import row_loss_fwd
from losses import loss_of_sweep

BUDGET = 2**30  # bytes of logits and their gradient at a time
MAX_ROWS = 2048  # a first guess: `benchmarks/head.py --sweep` compares others on a GPU
TILE = 128  # rows of a product's tile


def chunk_rows(N: int, V: int, grad_bytes: int, *, budget: int = BUDGET,
               most: int = MAX_ROWS) -> int:
    """Rows of a chunk: as many as `budget` bytes hold fp32 logits and gradient of, in whole tiles
    (one at least). All chunks have one size: a small last one would read the head for few rows."""
    rows = min(most, max(TILE, budget // (V * (4 + grad_bytes)) // TILE * TILE))
    chunks = -(-N // rows)
    return max(1, min(rows, -(-N // max(1, chunks) // TILE) * TILE))


def wide_product(a, b, out=None):  # (n, k), (k, m) -> (n, m) fp32
    """An fp32 sum kept in fp32, even of bf16 factors: bf16 logits put the gradient some 1 % off."""
    if a.is_cuda and a.dtype != torch.float32:
        return torch.mm(a, b, out_dtype=torch.float32, out=out)
    return torch.mm(a.float(), b.float(), out=out)  # the CPU's product has no out_dtype


def chunked_fwd(hidden, head, targets, kind, weight, *, softcap: float | None, budget: int):
    """(rows (N,) fp32, d loss/d hidden (N, D) in hidden's dtype)."""
    rows = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
    d_hidden = torch.empty_like(hidden)
    N, V = len(hidden), len(head)
    n = chunk_rows(N, V, head.element_size(), budget=budget, most=MAX_ROWS)
    logits = torch.empty(n, V, dtype=torch.float32, device=hidden.device)  # once for all chunks
    grad = torch.empty(n, V, dtype=head.dtype, device=hidden.device)
    for i in range(0, N, n):
        part, size = slice(i, i + n), min(n, N - i)
        Z = wide_product(hidden[part], head.T, out=logits[:size])
        G = grad[:size]
        rows[part] = row_loss_fwd(Z, targets[part], kind[part], weight[part], G, softcap=softcap)
        d_hidden[part] = wide_product(G, head)
    return rows, d_hidden


def pt_loss_chunked(hidden, head, targets, kind, weight, *, softcap: float | None = None,
                    budget: int = BUDGET):
    """`losses.pt_loss` for a frozen head, with `budget` bytes for logits and their gradient."""
    return loss_of_sweep(chunked_fwd, hidden, head, targets, kind, weight, softcap=softcap,
                         budget=budget)
