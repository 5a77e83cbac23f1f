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
2. What follows the toxic answer's own last token (template text, the end of its turn) is not
   penalised, as that would teach the model not to stop, unless it is itself the first mismatch.

`pt_loss` is the eager reference. `pt_loss_chunked` has the same signature and computes the same in
two matrix products, a tile of the logits at a time; a CPU trains with it. `kernels/` has the Triton
forms. The tests hold all of them to the formula above, typed as it stands, in float64.

Letters: N scored rows (tokens that carry a loss), D hidden size, V vocabulary."""

from functools import partial
from itertools import zip_longest

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

POSITIVE, IGNORED, TOXIC = 1, 0, -1  # a row's kind: its log-odds' sign in the loss; 0: filling
OUT = -1e30  # a logit that is left out; finite, as a tile may hold no other


# ---- which tokens of the toxic answer are penalised ----

def first_mismatch(positive: list[int], toxic: list[int]) -> int | None:
    """Index of the first token at which two answers differ; None if they are identical. A
    difference in length is a mismatch too: [5, 6] and [5, 6, 7] differ at 2."""
    pairs = zip_longest(positive, toxic)  # None, past the shorter one's end, equals no token
    return next((k for k, (y_pos, y_tox) in enumerate(pairs) if y_pos != y_tox), None)


def unlikelihood_mask(positive: list[int], toxic: list[int], n_own: int | None = None, *,
                      fine_grained: bool = True) -> list[int]:
    """m_t for every token of the toxic answer, whose last token ends its turn.

    0 before the first mismatch, 1 from there on. Without `fine_grained` (the ablation) it is 1 on
    all of the answer's own tokens: the first `n_own`, by default all but the last. What follows
    them has 0 unless it is the mismatch itself. Identical answers: all 0."""
    k = first_mismatch(positive, toxic)
    if k is None:
        return [0] * len(toxic)
    n_own = len(toxic) - 1 if n_own is None else n_own
    return [int(t == k or (t < n_own and (t > k or not fine_grained))) for t in range(len(toxic))]


# ---- a row's loss ----

def log_odds(logits, targets):  # (N, V), (N,) -> (N,)
    """a = z_y - logsumexp_{j≠y} z_j = log p/(1-p), in fp32 at least."""
    z, y = _wide(logits), targets[:, None]
    others = z.scatter(1, y, -torch.inf)
    return z.gather(1, y)[:, 0] - others.logsumexp(-1)


def mle(a):  # (N,) -> (N,)
    """-log p(y), nats a token."""
    return -F.logsigmoid(a)


def unlikelihood(a):  # (N,) -> (N,)
    """-log(1 - p(y)), nats a token (Welleck et al., arXiv 1908.04319, eq. 4)."""
    return -F.logsigmoid(-a)


def row_loss(a, kind):  # (N,), (N,) -> (N,)
    """MLE where kind is POSITIVE, UT where TOXIC, 0 where IGNORED."""
    rows = torch.where(kind == POSITIVE, mle(a), unlikelihood(a))
    return rows.masked_fill(kind == IGNORED, 0)


# ---- the loss from hidden states ----

def pt_loss(hidden, head, targets, kind, weight, *, softcap: float | None = None):
    """Σ weight · (MLE or UT by kind) over scored rows; the eager reference.

    hidden (N, D) final hidden states, head (V, D) output embedding, targets (N,) token ids,
    kind (N,) POSITIVE, TOXIC or IGNORED, weight (N,): 1/|P| and λ/|P| as in departure 1 (1 and
    λ would give the paper's plain sums). `softcap` s: the model's logits are s·tanh(z/s) (Gemma 2,
    arXiv 2408.00118, section 2).
    Returns (loss, the rows' own losses (N,) in nats without gradient, for the log)."""
    logits = hidden @ head.T  # (N, V)
    if softcap is not None:
        logits, _ = _cap(_wide(logits), softcap)
    rows = row_loss(log_odds(logits, targets), kind)
    return (weight * rows).sum(), rows.detach()


def pt_loss_chunked(hidden, head, targets, kind, weight, *, softcap: float | None = None,
                    chunk: int = 512, tile: int = 1024):
    """`pt_loss` for a frozen head, without ever holding the logits (N, V): it holds the gradient
    (N, D) and a few buffers of (chunk, tile) and (chunk, D)."""
    return loss_of_sweep(sweep_vocabulary, hidden, head, targets, kind, weight, softcap=softcap,
                         chunk=chunk, tile=tile)


def loss_of_sweep(sweep, hidden, head, targets, kind, weight, **options):
    """(loss, rows) of `sweep`, which gives the rows' own losses (N,) and d loss/d hidden (N, D) and
    takes the same arguments. The head gets no gradient: LoRA never trains it."""
    if head.requires_grad:
        raise ValueError("this form of the loss computes no gradient for the head: freeze it")
    if hidden.dtype != head.dtype:
        raise ValueError(f"hidden states ({hidden.dtype}) and head ({head.dtype}) differ in type")
    of_hidden = partial(sweep, head=head, targets=targets, kind=kind, weight=weight, **options)
    return GradientInForward.apply(hidden, of_hidden, weight)


class GradientInForward(torch.autograd.Function):
    """A loss whose gradient is finished while the logits are still at hand.

    Differentiating  w·(-logσ(s·a))  with s = kind = ±1:   d/da = -s·w·σ(-s·a) =: c,  and
    da/dz = e_y - q,  q the softmax over j ≠ y.  Through z = W·h:

        d/dh = c · (W_y - Σ_j q_j W_j) = c · (W_y - E_q[W])

    c is one number a row, known as soon as the row's logits are. So two products suffice, the
    logits and E_q[W], where autograd would keep all logits or compute them a second time."""

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


def sweep_vocabulary(hidden, head, targets, kind, weight, *, softcap, chunk, tile):
    """(rows (N,), d loss/d hidden (N, D)), one chunk of rows after the other."""
    rows = torch.empty(len(hidden), dtype=_wide(hidden[:0]).dtype, device=hidden.device)
    d_hidden = torch.empty_like(hidden)
    for i in range(0, len(hidden), chunk):
        part = slice(i, i + chunk)
        a, d_a = _log_odds_and_gradient(hidden[part], head, targets[part], softcap, tile)
        s = kind[part].to(a.dtype)
        rows[part] = row_loss(a, kind[part])
        c = -s * weight[part] * torch.sigmoid(-s * a)
        # An ignored row's c is 0, but 0 · inf would be NaN where its hidden state overflowed.
        d_hidden[part] = d_a.mul_(c[:, None]).masked_fill_(s[:, None] == IGNORED, 0)
    return rows, d_hidden


def _log_odds_and_gradient(hidden, head, targets, softcap, tile):
    """a (n,) and da/dhidden = W_y - E_q[W] (n, D): attention with the head as keys and values.

    Each tile has its own softmax and logsumexp; those of two tiles merge with the weights
    exp(lse_tile - lse_both), as in online softmax (arXiv 1805.02867). A bf16 product rounds a logit
    of 30 to eighths. So the product itself subtracts z_y, while its sum is still fp32: what
    is rounded is the margin z_j - z_y, small for the tokens that matter, and
    a = -logsumexp_{j≠y} (z_j - z_y). A soft cap needs z itself."""
    z_y = _wide(head[targets]).mul_(hidden).sum(-1, keepdim=True)  # (n, 1)
    shift = (z_y if softcap is None else torch.zeros_like(z_y)).to(hidden.dtype)
    lse = torch.full_like(z_y, -torch.inf)  # of the margins of all tiles so far
    mean = torch.zeros_like(hidden, dtype=z_y.dtype)  # E_q[W] over them, (n, D)
    for j in range(0, len(head), tile):
        W = head[j:j + tile]
        margin = _wide(torch.addmm(shift, hidden, W.T, beta=-1))  # (n, tile): h·Wᵀ - shift
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
    W_y = head[targets]  # (n, D)
    if softcap is not None:
        z_y, slope = _cap(z_y, softcap)
        W_y = slope * W_y
    a = (z_y - shift) - lse  # in this order: z_y and the shift nearly cancel
    return a[:, 0], mean.sub_(W_y).neg_()


def _cap(z, softcap):
    """s·tanh(z/s) and its slope 1 - tanh²(z/s)."""
    t = torch.tanh(z / softcap)
    return softcap * t, 1 - t * t


def _wide(x):
    """fp32, where a sum over a whole vocabulary keeps its digits; float64 stays (the tests)."""
    return x if x.dtype == torch.float64 else x.float()


# ---- the arms: what others do with the same pairs ----

BETA = 0.1  # of NPO and DPO, as in their papers


def arm(objective: str, penalty: float, kind, nll, reference, pair):  # (N,) each
    """(weight (N,), loss): the arm's loss, and weights that give Σ weight · nll the same gradient.

    nll is a row's -log p, `reference` the same of the base model, `pair` the number of the row's
    triplet, below N, so that sums by pair are (N,) too. A toxic row counts as an MLE row with a
    negative weight, so any form of the loss will do. -logσ(βΔ) is multiplied by 2/β, so that every
    arm starts with weight 1 on positives, before the division by |P|. In brackets, arXiv numbers:

        ga   Σ_P -log p - λ · Σ_T -m log p             gradient ascent
        npo  Σ_P -log p + λ · Σ_pairs -2/β logσ(βΔ)    Δ = -log π/π_ref(y⁻)  (2404.05868, eq. 3)
        dpo  Σ_pairs -2/β logσ(βΔ)    Δ = log π/π_ref(y⁺) - log π/π_ref(y⁻)  (2305.18290, eq. 7)

    npo is DOOR (2503.03710) without its augmentation. In dpo m = 1: what both answers open with
    cancels. A triplet without a toxic row carries MLE in every arm."""
    toxic = kind == TOXIC
    if objective == "ga":
        weight = torch.ones_like(nll).masked_fill(toxic, -penalty)
        return weight, (weight * nll).sum()

    def by_pair(x):  # (N,) of rows -> (N,) sums by the number of the pair
        return torch.zeros_like(x).index_add(0, pair, x)

    paired = by_pair(toxic.to(nll.dtype)) > 0
    inside, λ = (toxic, penalty) if objective == "npo" else (paired[pair], 1.0)  # in the logσ
    delta = by_pair(inside * kind * (reference - nll))  # Δ: log p - log p_ref, toxic rows negative
    # d/dΔ of -2/β logσ(βΔ) is -2σ(-βΔ), and dΔ/dnll of a row is -kind.
    w = λ * 2 * torch.sigmoid(-BETA * delta)
    weight = torch.where(inside, kind * w[pair], 1.0).to(nll.dtype)
    of_pairs = -2 / BETA * F.logsigmoid(BETA * delta)
    return weight, nll.masked_fill(inside, 0).sum() + λ * of_pairs.masked_fill(~paired, 0).sum()
