"""The PT-ALIGN loss (arXiv 2502.08657): L = MLE(positive) + λ · UT(toxic), token by token.

    MLE = -Σ log p(y⁺_t)        UT = -Σ m_t log(1 - p(y⁻_t))        m_t = 1 from the first mismatch

Both are written in the target's log-odds  a = z_y - logsumexp_{j≠y} z_j,  because  p = σ(a)  and
1 - p = σ(-a)  exactly:

    -log p = -logσ(a)           -log(1 - p) = -logσ(-a)

so nothing is clamped, nothing overflows, and the gradient is right even where p rounds to 1. Taking
y out of the logsumexp is what makes it exact: lse(z) - z_y would cancel there.

Departures from the paper's formula as its summaries give it:
1. Both sums are divided by |P|, the positive tokens of the whole step (`weight`): one factor for
   both, so that λ is the formula's and the gradient does not grow with the step.
2. The toxic answer's end-of-turn token is not penalised, unless it is itself the first mismatch:
   the model would be taught not to stop.

Three forms share one signature: `pt_loss_naive` (the paper's formula as a reader would type it, the
tests' float64 reference), `pt_loss` (eager, log-odds) and `pt_loss_chunked` (the same in two matrix
products, a tile of the logits at a time; what the CPU trains with). `kernels/` has the Triton ones.

Letters: N scored rows (tokens that carry a loss), D hidden size, V vocabulary; B answers, T tokens.
"""

from itertools import zip_longest

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

POSITIVE, IGNORED, TOXIC = 1, 0, -1  # a row's kind: the sign of its log-odds in the loss
OUT = -1e30  # a logit that is left out; finite, for a tile may hold nothing else


# ---- which tokens of the toxic answer are penalised ----

def first_mismatch(positive: list[int], toxic: list[int]) -> int | None:
    """Index of the first token at which two answers differ; None if they are identical.

    A difference in length is a mismatch too: [5, 6] and [5, 6, 7] differ at 2.
    """
    pairs = zip_longest(positive, toxic)  # None, past the shorter one's end, equals no token
    return next((k for k, (y_pos, y_tox) in enumerate(pairs) if y_pos != y_tox), None)


def unlikelihood_mask(positive: list[int], toxic: list[int], *, fine_grained: bool = True):
    """m_t for every token of the toxic answer, whose last token is the end of its turn.

    0 before the first mismatch, 1 from there on; all 1 if not `fine_grained` (the ablation). The
    end-of-turn token has m = 0 unless it is the mismatch itself. Identical answers: all 0.
    """
    k = first_mismatch(positive, toxic)
    if k is None:
        return [0] * len(toxic)
    mask = [int(t >= k or not fine_grained) for t in range(len(toxic))]
    if toxic and k != len(toxic) - 1:
        mask[-1] = 0
    return mask


def unlikelihood_masks(positive, toxic, n_positive, n_toxic, *, fine_grained: bool = True):
    """`unlikelihood_mask` of a padded batch: ids (B, T⁺) and (B, T⁻), lengths (B,) -> (B, T⁻) int8.

    What stands beyond an answer's length is not read; m = 0 there.
    """
    width = max(positive.shape[1], toxic.shape[1])
    t = torch.arange(width, device=toxic.device)  # (T,)
    y_pos, y_tox = (F.pad(ids, (0, width - ids.shape[1])) for ids in (positive, toxic))
    in_pos, in_tox = t < n_positive[:, None], t < n_toxic[:, None]  # (B, T)
    differ = (in_pos != in_tox) | in_pos & in_tox & (y_pos != y_tox)
    from_mismatch = differ.cumsum(1) > 0
    mask = from_mismatch if fine_grained else differ.any(1, keepdim=True)
    is_mismatch = from_mismatch & (differ.cumsum(1) == 1) & differ
    is_end = t == n_toxic[:, None] - 1
    return (mask & in_tox & (~is_end | is_mismatch))[:, :toxic.shape[1]].to(torch.int8)


# ---- a row's loss ----

def log_odds(logits, targets):  # (N, V), (N,) -> (N,)
    """a = z_y - logsumexp_{j≠y} z_j = log p/(1-p), in fp32 at least."""
    z, y = _wide(logits), targets[:, None]
    others = z.scatter(1, y, -torch.inf)
    return z.gather(1, y)[:, 0] - others.logsumexp(-1)


def mle(logits, targets):  # (N, V), (N,) -> (N,)
    """-log p(y), nats a token."""
    return -F.logsigmoid(log_odds(logits, targets))


def unlikelihood(logits, targets):  # (N, V), (N,) -> (N,)
    """-log(1 - p(y)), nats a token (Welleck et al., arXiv 1908.04319, eq. 4)."""
    return -F.logsigmoid(-log_odds(logits, targets))


def row_loss(logits, targets, kind, *, softcap: float | None = None):  # (N, V), (N,), (N,) -> (N,)
    """MLE where kind is POSITIVE, UT where TOXIC, 0 where IGNORED, in nats.

    `softcap` s: the model's logits are s·tanh(z/s) (Gemma 2, arXiv 2408.00118, section 2).
    """
    if softcap is not None:
        logits = softcap * torch.tanh(_wide(logits) / softcap)
    a = log_odds(logits, targets)
    return torch.where(kind == IGNORED, torch.zeros_like(a), -F.logsigmoid(kind * a))


# ---- the loss from hidden states ----

def pt_loss_naive(hidden, head, targets, kind, weight, *, softcap: float | None = None):
    """The paper's formula: infinite where p rounds to 0 (MLE) or to 1 (UT); fine in float64."""
    logits = hidden @ head.T
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    p = torch.softmax(logits, dim=-1).gather(1, targets[:, None])[:, 0]  # (N,)
    rows = torch.where(kind == POSITIVE, -torch.log(p), -torch.log(1 - p))
    rows = torch.where(kind == IGNORED, torch.zeros_like(rows), rows)
    return (weight * rows).sum(), rows.detach()


def pt_loss(hidden, head, targets, kind, weight, *, softcap: float | None = None):
    """Σ weight · (MLE or UT by kind) over scored rows; the eager reference.

    hidden (N, D) final hidden states, head (V, D) output embedding, targets (N,) token ids,
    kind (N,) POSITIVE, TOXIC or IGNORED, weight (N,): 1/|P| and λ/|P| give departure 1, 1 and
    λ the paper's plain sums.
    Returns (loss, the rows' own losses (N,) in nats without gradient, for the log).
    """
    rows = row_loss(hidden @ head.T, targets, kind, softcap=softcap)
    return (weight * rows).sum(), rows.detach()


def pt_loss_chunked(hidden, head, targets, kind, weight, *, softcap: float | None = None,
                    chunk: int = 512, tile: int = 1024):
    """`pt_loss` for a frozen head, never holding more than a few buffers of (chunk, tile)."""
    def sweep(hidden):
        return sweep_vocabulary(hidden, head, targets, kind, weight, softcap, chunk, tile)

    return loss_of_sweep(sweep, hidden, head, weight)


def loss_of_sweep(sweep, hidden, head, weight):
    """(loss, rows) from a function of hidden that gives (rows (N,), d loss/d hidden (N, D)).

    The head gets no gradient: LoRA never trains it.
    """
    if head.requires_grad:
        raise ValueError("this form of the loss computes no gradient for the head: freeze it")
    if hidden.dtype != head.dtype:
        raise ValueError(f"hidden states ({hidden.dtype}) and head ({head.dtype}) differ in type")
    return GradientInForward.apply(hidden, sweep, weight)


class GradientInForward(torch.autograd.Function):
    """A loss whose gradient is finished while the logits are still at hand.

    Differentiating  w·(-logσ(s·a))  with s = kind = ±1:   d/da = -s·w·σ(-s·a) =: c,  and
    da/dz = e_y - q,  q the softmax over j ≠ y.  Through z = W·h:

        d/dh = c · (W_y - Σ_j q_j W_j) = c · (W_y - E_q[W])

    c is one number a row, known as soon as the row's logits are. So two products suffice, the
    logits and E_q[W], where autograd would keep all logits or compute them a second time.
    """

    @staticmethod
    def forward(ctx, hidden, sweep, weight):
        rows, d_hidden = sweep(hidden)
        ctx.save_for_backward(d_hidden)
        ctx.mark_non_differentiable(rows)
        return (weight * rows).sum(), rows

    @staticmethod
    @once_differentiable
    def backward(ctx, d_loss, _):
        (d_hidden,) = ctx.saved_tensors
        return d_hidden * d_loss, None, None


def sweep_vocabulary(hidden, head, targets, kind, weight, softcap, chunk, tile):
    """(rows (N,), d loss/d hidden (N, D)), one chunk of rows after the other."""
    rows = torch.empty(len(hidden), dtype=_wide(hidden[:0]).dtype, device=hidden.device)
    d_hidden = torch.empty_like(hidden)
    for i in range(0, len(hidden), chunk):
        part = slice(i, i + chunk)
        a, d_a = _log_odds_and_gradient(hidden[part], head, targets[part], softcap, tile)
        s = kind[part].to(a.dtype)
        rows[part] = torch.where(s == IGNORED, torch.zeros_like(a), -F.logsigmoid(s * a))
        c = -s * weight[part] * torch.sigmoid(-s * a)
        d_hidden[part] = d_a.mul_(c[:, None]).masked_fill_(s[:, None] == IGNORED, 0)
    return rows, d_hidden


def _log_odds_and_gradient(hidden, head, targets, softcap, tile):
    """a (n,) and da/dhidden = W_y - E_q[W] (n, D): attention with the head as keys and values.

    Each tile has its own softmax and logsumexp; those of two tiles merge with the weights
    exp(lse_tile - lse_both), as in online softmax (arXiv 1805.02867). A bf16 product rounds a logit
    of 30 to the next eighth. So the product itself subtracts z_y, while its sum is still fp32: what
    is rounded is the margin z_j - z_y, small for the tokens that matter, and
    a = -logsumexp_{j≠y} (z_j - z_y). A soft cap needs z itself.
    """
    z_y = _wide(head[targets]).mul_(hidden).sum(-1, keepdim=True)  # (n, 1)
    shift = (z_y if softcap is None else torch.zeros_like(z_y)).to(hidden.dtype)
    lse = torch.full_like(z_y, -torch.inf)  # of the margins of all tiles so far
    mean = torch.zeros_like(hidden, dtype=z_y.dtype)  # E_q[W] over them
    for j in range(0, len(head), tile):
        W = head[j:j + tile]
        margin = _wide(torch.addmm(shift, hidden, W.T, beta=-1))  # (n, tile)
        if softcap is not None:
            margin, slope = _cap(margin, softcap)
        here = ((targets >= j) & (targets < j + len(W))).nonzero()[:, 0]
        margin[here, targets[here] - j] = OUT
        q = margin.softmax(-1)
        # The largest q is exp(largest margin - lse): torch's softmax is fast, its logsumexp slow.
        lse_tile = margin.amax(-1, keepdim=True) - q.amax(-1, keepdim=True).log()
        both = torch.logaddexp(lse, lse_tile)
        if softcap is not None:
            q *= slope
        mean.mul_((lse - both).exp()).addcmul_((lse_tile - both).exp(), _wide(q.to(W.dtype) @ W))
        lse = both
    if softcap is not None:
        z_y, slope = _cap(z_y, softcap)
        mean -= slope * head[targets]
    else:
        mean -= head[targets]
    a = (z_y - shift) - lse  # in this order: z_y and the shift nearly cancel
    return a[:, 0], mean.neg_()


def _cap(z, softcap):
    """s·tanh(z/s) and its slope 1 - tanh²(z/s)."""
    t = torch.tanh(z / softcap)
    return softcap * t, 1 - t * t


def _wide(x):
    """fp32, where a sum over a whole vocabulary keeps its digits; float64 stays (the tests)."""
    return x if x.dtype == torch.float64 else x.float()
