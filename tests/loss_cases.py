"""What every form of the loss is tried on: the forms, one table of cases, rows of known log-odds.

On a GPU the Triton forms run there; without one they run under Triton's interpreter (conftest sets
TRITON_INTERPRET), which is slow by the operation, so blocks are made small to have several.
"""

import math
from functools import partial

import pytest
import torch

from losses import IGNORED, POSITIVE, TOXIC, pt_loss, pt_loss_chunked

try:
    from kernels import chunked, flash_head, rows
    from kernels import head as kernels
except ImportError:
    kernels = None

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TORCH_FORMS = {"eager": pt_loss, "chunked": pt_loss_chunked}
TRITON_FORMS = {} if kernels is None else {
    "triton chunked": kernels.pt_loss_chunked,
    "triton flash": partial(kernels.pt_loss_flash, splits=2)}
FORMS = {**TORCH_FORMS, **TRITON_FORMS}
needs_triton = pytest.mark.skipif(kernels is None, reason="the package triton is not installed")

MIXED = [POSITIVE, TOXIC, IGNORED, TOXIC, POSITIVE, POSITIVE, TOXIC]
CASES = {  # kinds (N rows), V, rows a chunk, soft cap
    "one row": ([TOXIC], 8, 4, None),
    "N not a multiple of chunk": (MIXED, 8, 3, None),
    "N a multiple of chunk": (MIXED[:6], 8, 3, None),
    "a row at a time": (MIXED, 8, 1, None),
    "chunk beyond N": (MIXED, 8, 64, None),
    "V odd": (MIXED, 13, 4, None),
    "V of two": (MIXED, 2, 4, None),
    "V of many tiles, the last one short": (MIXED, 75, 4, None),
    "a target alone in the last tile": (MIXED, 65, 4, None),  # see make
    "positives": ([POSITIVE] * 5, 8, 2, None),
    "toxics": ([TOXIC] * 5, 8, 2, None),
    "all ignored": ([IGNORED] * 5, 8, 2, None),
    "no rows": ([], 8, 2, None),
    "soft cap": (MIXED, 13, 4, 2.0),
    "soft cap, V of many tiles": (MIXED, 75, 4, 5.0),
}


def pt_loss_naive(hidden, head, targets, kind, weight, *, softcap=None):
    """The paper's formula as it stands: infinite where p rounds to 0 (MLE) or to 1 (UT)."""
    logits = hidden @ head.T
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    p = torch.softmax(logits, dim=-1).gather(1, targets[:, None])[:, 0]  # (N,)
    rows = torch.where(kind == POSITIVE, -torch.log(p), -torch.log(1 - p))
    rows = torch.where(kind == IGNORED, torch.zeros_like(rows), rows)
    return (weight * rows).sum(), rows.detach()


def make(kinds, V, *, D=24, scale=1.0, dtype=torch.float64, seed=0, device=DEVICE):
    """(hidden, head, targets, kind, weight), drawn; the weights all differ.

    The first two targets are the last token and the first one.
    """
    draw = torch.Generator().manual_seed(seed)
    N = len(kinds)
    hidden = torch.randn(N, D, generator=draw, dtype=torch.float64) * scale
    head = torch.randn(V, D, generator=draw, dtype=torch.float64) * (6 / D) ** 0.5
    targets = torch.randint(V, (N,), generator=draw)
    targets[:2] = torch.tensor([V - 1, 0])[:N]
    weight = torch.rand(N, generator=draw, dtype=torch.float64) + 0.1
    kind = torch.tensor(kinds, dtype=torch.int64)
    wide = torch.promote_types(dtype, torch.float32)  # weights stay fp32 beside bf16
    case = hidden.to(dtype), head.to(dtype), targets, kind, weight.to(wide)
    return tuple(x.to(device) for x in case)


def known_odds(odds, kind, *, V=49152, others=30.0, device=DEVICE):
    """A row whose log-odds are `odds`: logits z_y and V - 1 times `others`, as a head of rank 2.

    Returns the case in fp32 and the odds that its rounded z_y really has. `others` is large so
    that lse(z) - z_y, which the log-odds avoid, would lose six digits.
    """
    head = torch.zeros(V, 16)
    head[:, 1] = 1.0
    head[7] = 0.0
    head[7, 0] = 1.0
    hidden = torch.zeros(1, 16)
    hidden[0, :2] = torch.tensor([odds + math.log(V - 1) + others, others])
    real = float(hidden[0, 0].double()) - others - math.log(V - 1)
    case = hidden, head, torch.tensor([7]), torch.tensor([kind]), torch.ones(1)
    return tuple(x.to(device) for x in case), real


def doubled(case):
    return tuple(x.double() if x.is_floating_point() else x for x in case)


def grad_of(loss, case, **options):
    """(loss, the rows' losses, d loss / d hidden) of one form."""
    hidden = case[0].detach().requires_grad_()
    value, rows = loss(hidden, *case[1:], **options)
    value.backward()
    assert not rows.requires_grad
    return value.detach(), rows, hidden.grad


def options_of(form, chunk, tile=16):
    return {"chunk": chunk, "tile": tile} if form == "chunked" else {}


def error(x, exact):
    """Relative error in the Frobenius norm; 0 where both are all zeros."""
    off, norm = float((x.double() - exact).norm()), float(exact.norm())
    return off / norm if norm else off


def set_blocks(monkeypatch, *, row, chunk, queries, tile):
    """A GPU runs its real blocks: tests marked gpu have the sizes for these."""
    if kernels is not None and DEVICE == "cpu":
        monkeypatch.setattr(rows, "BLOCK", row)
        monkeypatch.setattr(chunked, "MAX_ROWS", chunk)
        monkeypatch.setattr(flash_head, "BLOCK_M", queries)
        monkeypatch.setattr(flash_head, "BLOCK_N", tile)


@pytest.fixture
def small_blocks(monkeypatch):
    """Several blocks a row and several chunks at sizes the interpreter can bear."""
    set_blocks(monkeypatch, row=64, chunk=4, queries=4, tile=32)


@pytest.fixture
def larger_blocks(small_blocks, monkeypatch):
    """The same for a vocabulary of a thousand: the interpreter pays for each block."""
    set_blocks(monkeypatch, row=256, chunk=14, queries=16, tile=128)
