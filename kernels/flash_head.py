"""The whole head as one kernel for small hidden sizes; the twin of `losses.pt_loss_chunked`.

One sweep over the vocabulary, as kernels/__init__.py derives it and as FlashAttention (arXiv
2205.14135) does it, with the target's column masked. c is known only when the sweep has ended,
which does no harm, because it is one number a row.

Few rows leave multiprocessors idle, so the vocabulary is then cut into splits (as Flash-Decoding
does with the keys); a second, small kernel puts the splits together and finishes the row.
Each tile of the head serves BLOCK_M rows, so what bounds the sweep is the L2 cache's bandwidth; at
D = 576 no larger block fits the registers.

Letters: N rows, D hidden size, V vocabulary. D = D1 + D2, since tiles have powers of two: D1 is
the largest one in D, D2 what remains, rounded up and masked (576 = 512 + 64)."""

import torch
import triton
import triton.language as tl

from kernels.rows import softplus
from losses import loss_of_sweep

# A first guess: `benchmarks/head.py --sweep` compares others on a GPU.
BLOCK_M, BLOCK_N, WARPS, STAGES = 64, 32, 8, 2
MAX_D = 640  # the sums of BLOCK_M rows, fp32, fill the registers


@triton.jit(do_not_specialize=["N"])  # N changes from step to step
def _sweep_kernel(hidden_ptr, head_ptr, targets_ptr, top_ptr, total_ptr, mean_ptr, N, V, columns,
                  D: tl.constexpr, D1: tl.constexpr, D2: tl.constexpr,
                  BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """One program takes BLOCK_M rows and one split of `columns` of the vocabulary.
    It writes, for each split and row, the largest logit over j ≠ y, Σ exp(z_j - top) and
    Σ exp(z_j - top)·W_j: (splits, N), (splits, N), (splits, N, D), fp32."""
    i = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    split = tl.program_id(1)
    d1, d2 = tl.arange(0, D1), D1 + tl.arange(0, max(D2, 1))
    row, at = (i < N)[:, None], i.to(tl.int64)[:, None]
    y = tl.load(targets_ptr + i, mask=i < N, other=-1).to(tl.int32)
    x1 = tl.load(hidden_ptr + at * D + d1[None, :], mask=row, other=0.0)  # (BLOCK_M, D1)
    mean1 = tl.zeros([BLOCK_M, D1], tl.float32)
    if D2 > 0:
        x2 = tl.load(hidden_ptr + at * D + d2[None, :], mask=row & (d2 < D)[None, :], other=0.0)
        mean2 = tl.zeros([BLOCK_M, D2], tl.float32)
    top = tl.full([BLOCK_M], -float("inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)

    end = tl.minimum((split + 1) * columns, V)
    for start in range(split * columns, end, BLOCK_N):
        j = start + tl.arange(0, BLOCK_N)
        column, from_j = (j < end)[:, None], j.to(tl.int64)[:, None]
        # 1. Logits of the tile: the head's rows as keys.
        W1 = tl.load(head_ptr + from_j * D + d1[None, :], mask=column, other=0.0)
        z = tl.dot(x1, tl.trans(W1), input_precision="ieee")  # (BLOCK_M, BLOCK_N)
        if D2 > 0:
            W2 = tl.load(head_ptr + from_j * D + d2[None, :],
                         mask=column & (d2 < D)[None, :], other=0.0)
            z += tl.dot(x2, tl.trans(W2), input_precision="ieee")
        # 2. Online softmax over j ≠ y. A tile may hold y alone: its maximum is -inf then.
        z = tl.where((j < end)[None, :] & (j[None, :] != y[:, None]), z, -float("inf"))
        higher = tl.maximum(top, tl.max(z, 1))
        finite = tl.where(higher == -float("inf"), 0.0, higher)
        e = tl.exp(z - finite[:, None])
        rescale = tl.exp(top - finite)
        total = total * rescale + tl.sum(e, 1)
        top = higher
        # 3. The same rows as values.
        mean1 = mean1 * rescale[:, None]
        mean1 += tl.dot(e.to(W1.dtype), W1, input_precision="ieee")
        if D2 > 0:
            mean2 = mean2 * rescale[:, None]
            mean2 += tl.dot(e.to(W2.dtype), W2, input_precision="ieee")

    out = split.to(tl.int64) * N + i
    tl.store(top_ptr + out, top, mask=i < N)
    tl.store(total_ptr + out, total, mask=i < N)
    tl.store(mean_ptr + out[:, None] * D + d1[None, :], mean1, mask=row)
    if D2 > 0:
        tl.store(mean_ptr + out[:, None] * D + d2[None, :], mean2, mask=row & (d2 < D)[None, :])


@triton.jit(do_not_specialize=["N", "splits"])
def _finish_kernel(hidden_ptr, head_ptr, targets_ptr, kind_ptr, weight_ptr, top_ptr, total_ptr,
                   mean_ptr, rows_ptr, d_hidden_ptr, N, splits, D: tl.constexpr,
                   BLOCK_D: tl.constexpr, SPLITS: tl.constexpr):
    """One program a row puts the splits together, then finishes log-odds, loss, c and gradient."""
    row = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, BLOCK_D)
    s = tl.load(kind_ptr + row).to(tl.float32)
    w = tl.load(weight_ptr + row).to(tl.float32)

    # 1. logsumexp over all SPLITS, a power of two, at once; then E_q[W], whose loads need not wait.
    part = tl.arange(0, SPLITS)
    tops = tl.load(top_ptr + part * N + row, mask=part < splits, other=-float("inf"))
    totals = tl.load(total_ptr + part * N + row, mask=part < splits, other=0.0)
    top = tl.max(tops, 0)
    finite = tl.where(top == -float("inf"), 0.0, top)  # V = 1: y alone
    total = tl.sum(totals * tl.exp(tops - finite), 0)
    mean = tl.zeros([BLOCK_D], tl.float32)
    for split in range(0, splits):
        at = split * N + row
        scale = tl.exp(tl.load(top_ptr + at) - finite)
        mean += scale * tl.load(mean_ptr + at * D + d, mask=d < D, other=0.0)

    # 2. a = z_y - logsumexp, with z_y as a plain fp32 sum.
    y = tl.where(s == 0.0, 0, tl.load(targets_ptr + row)).to(tl.int64)  # an ignored row's is free
    x = tl.load(hidden_ptr + row * D + d, mask=d < D, other=0.0).to(tl.float32)
    W_y = tl.load(head_ptr + y * D + d, mask=d < D, other=0.0).to(tl.float32)
    a = (tl.sum(x * W_y, 0) - top) - tl.log(total)

    # 3. c = -s·w·σ(-s·a), 0 for an ignored row (s = 0); d loss/d hidden = c·(W_y - E_q[W]).
    c = -s * w * tl.exp(-softplus(s * a))
    tl.store(rows_ptr + row, tl.where(s == 0.0, 0.0, softplus(-s * a)))
    grad = tl.where(s == 0.0, 0.0, c * (W_y - mean / total))
    tl.store(d_hidden_ptr + row * D + d, grad.to(d_hidden_ptr.dtype.element_ty), mask=d < D)


def flash_head_fwd(hidden, head, targets, kind, weight, *, splits: int | None):
    """(rows (N,) fp32, d loss/d hidden (N, D) in hidden's dtype)."""
    (N, D), V = hidden.shape, len(head)
    hidden, head, targets, kind, weight = (
        x.contiguous() for x in (hidden, head, targets, kind, weight))
    blocks = triton.cdiv(N, BLOCK_M)
    if splits is None:  # one program a multiprocessor at a time; Triton's interpreter has one
        processors = (torch.cuda.get_device_properties(hidden.device).multi_processor_count
                      if hidden.is_cuda else 1)
        splits = fewest_waves(blocks, processors)
    columns = triton.cdiv(V, splits * BLOCK_N) * BLOCK_N
    splits = triton.cdiv(V, columns)  # none of them empty

    def fp32(*shape):
        return torch.empty(*shape, dtype=torch.float32, device=hidden.device)

    rows, d_hidden = fp32(N), torch.empty_like(hidden)
    top, total, mean = fp32(splits, N), fp32(splits, N), fp32(splits, N, D)
    if N:
        D1, D2 = tile_widths(D)
        with torch.cuda.device_of(hidden):  # Triton launches on the current one
            _sweep_kernel[(blocks, splits)](
                hidden, head, targets, top, total, mean, N, V, columns, D=D, D1=D1, D2=D2,
                BLOCK_M=BLOCK_M, BLOCK_N=BLOCK_N, num_warps=WARPS, num_stages=STAGES)
            _finish_kernel[(N,)](
                hidden, head, targets, kind, weight, top, total, mean, rows, d_hidden, N, splits,
                D=D, BLOCK_D=triton.next_power_of_2(D), SPLITS=triton.next_power_of_2(splits))
    return rows, d_hidden


def tile_widths(D: int) -> tuple[int, int]:
    """D as (power of two, what remains rounded up to one; 0 if nothing does)."""
    D1 = 1 << D.bit_length() - 1
    return D1, max(16, triton.next_power_of_2(D - D1)) if D > D1 else 0


def fewest_waves(blocks: int, processors: int) -> int:
    """The least number s of splits whose ceil(blocks·s/processors) waves, each 1/s of the work, end
    soonest: with 96 blocks on 132 processors one split leaves 36 idle, eleven leave none."""
    most = max(16, processors // max(1, blocks))
    return min(range(1, most + 1), key=lambda s: -(-blocks * s // processors) / s)


def fits(hidden, softcap: float | None = None) -> bool:
    """Whether the flash head can take these: D small enough, no soft cap, room on the device."""
    D = hidden.shape[1]
    if softcap is not None or not 16 <= D <= MAX_D:
        return False
    if hidden.device.type != "cuda":
        return hidden.dtype != torch.bfloat16  # Triton's interpreter has no such products
    gpu = torch.cuda.get_device_properties(hidden.device)
    return fits_chip(D, hidden.element_size(), gpu.major, gpu.shared_memory_per_block_optin)


def fits_chip(D: int, size: int, major: int, room: int) -> bool:
    """By `size` bytes a number, the `major` compute capability, and a block's shared memory: `room`
    bytes. tests/compile_kernels.py compiles the kernels to check it."""
    # Tensor cores take no fp32, and bf16 from 8 on. Before 9 wide sums spill up to 12 KB a thread.
    if (size > 2 and D > 64) or major < 8 or (major == 8 and D > 512):
        return False
    # The queries, a copy of them on Blackwell, and a tile of the head for each pipeline stage.
    kept = BLOCK_M * (2 if major >= 10 else 1) + STAGES * BLOCK_N
    return kept * sum(tile_widths(D)) * size <= room


def pt_loss_flash(hidden, head, targets, kind, weight, *, softcap: float | None = None,
                  splits: int | None = None):
    """`losses.pt_loss` for a frozen head with no logits in memory; ValueError unless it `fits`."""
    if not fits(hidden, softcap):
        raise ValueError("the flash head takes no soft cap and hidden sizes of 16 to"
                         f" {MAX_D} that fit the device's shared memory: use the chunked form")
    return loss_of_sweep(flash_head_fwd, hidden, head, targets, kind, weight, splits=splits)
