"""losses.py and kernels/: masks against hand-written tables, losses against exact answers.

Eager, chunked and the Triton forms run one table of cases (loss_cases.py) and are compared with
`pt_loss_naive` in float64 (loss, rows, gradient) and, where p is nearly 1 or 0 and every formula in
p breaks, with logits built so that the log-odds are known. fp32 and bf16 are held to eager's own
error in that type. The torch forms, which know float64, also meet finite differences.
"""

import math

import pytest
import torch
from loss_cases import (
    CASES,
    DEVICE,
    FORMS,
    MIXED,
    TORCH_FORMS,
    TRITON_FORMS,
    doubled,
    error,
    grad_of,
    known_odds,
    larger_blocks,  # noqa: F401  a fixture
    make,
    needs_triton,
    options_of,
    pt_loss_naive,
    small_blocks,  # noqa: F401  a fixture
)
from torch.utils._python_dispatch import TorchDispatchMode

import losses
from losses import IGNORED, POSITIVE, TOXIC, pt_loss

every_form = pytest.mark.parametrize("form", FORMS)
torch_forms = pytest.mark.parametrize("form", TORCH_FORMS)
pytestmark = pytest.mark.usefixtures("small_blocks")


# ---- masks ----

E = 9  # the end-of-turn token
MASKS = [  # positive, toxic, first mismatch, m_t, m_t of the coarse ablation
    ([5, 6, E], [7, 8, E], 0, [1, 1, 0], [1, 1, 0]),  # at the start: all but the end
    ([5, 6, 7, E], [5, 8, 7, E], 1, [0, 1, 1, 0], [1, 1, 1, 0]),  # middle: agreeing again counts
    ([5, 6, 7, E], [5, 6, 8, E], 2, [0, 0, 1, 0], [1, 1, 1, 0]),  # at the last word
    ([5, 6, E], [5, 6, E], None, [0, 0, 0], [0, 0, 0]),  # never: no UT, coarse or not
    ([5, 6, E], [5, E], 1, [0, 1], [1, 1]),  # toxic stops early: its end is the mismatch
    ([5, E], [5, 6, E], 1, [0, 1, 0], [1, 1, 0]),  # toxic goes on where positive ends
    ([5, E], [E], 0, [1], [1]),  # toxic says nothing at all
    ([E], [5, E], 0, [1, 0], [1, 0]),  # positive says nothing at all
    ([5, E, 6, E], [5, E, 7, E], 2, [0, 0, 1, 0], [1, 1, 1, 0]),  # only the last E is the end
    ([5, 6], [5, 6, 7], 2, [0, 0, 1], [1, 1, 1]),  # positive a prefix of toxic
    ([5, 6, 7], [5, 6], 2, [0, 0], [1, 0]),  # toxic a prefix: the mismatch lies beyond its end
    ([5], [], 0, [], []),  # nothing to penalise
    ([], [], None, [], []),
]


@pytest.mark.parametrize("positive, toxic, k, fine, coarse", MASKS)
def test_masks(positive, toxic, k, fine, coarse):
    assert losses.first_mismatch(positive, toxic) == losses.first_mismatch(toxic, positive) == k
    assert losses.unlikelihood_mask(positive, toxic) == fine
    assert losses.unlikelihood_mask(positive, toxic, fine_grained=False) == coarse


TEMPLATED = [  # Llama-2's template ends an answer with a token S (8), then E; the third: own tokens
    ([5, 6, 8, E], [7, 6, 8, E], 2, [1, 1, 0, 0], [1, 1, 0, 0]),  # neither S nor E
    ([5, 6, 8, E], [5, 8, E], 1, [0, 1, 0], [1, 1, 0]),  # S is the mismatch itself
    ([5, 6, 8, E], [5, 6, 8, E], 2, [0, 0, 0, 0], [0, 0, 0, 0]),
]


@pytest.mark.parametrize("positive, toxic, n_own, fine, coarse", TEMPLATED)
def test_masks_spare_the_template(positive, toxic, n_own, fine, coarse):
    assert losses.unlikelihood_mask(positive, toxic, n_own) == fine
    assert losses.unlikelihood_mask(positive, toxic, n_own, fine_grained=False) == coarse


# ---- against the formula in float64 ----

@torch_forms
@pytest.mark.parametrize("name", CASES)
def test_equals_naive(form, name):
    kinds, V, chunk, softcap = CASES[name]
    case = make(kinds, V)
    got = grad_of(FORMS[form], case, softcap=softcap, **options_of(form, chunk))
    for x, exact in zip(got, grad_of(pt_loss_naive, case, softcap=softcap), strict=True):
        torch.testing.assert_close(x, exact, rtol=1e-11, atol=1e-13)


@torch_forms
@pytest.mark.parametrize("name", ["one row", "N not a multiple of chunk", "V odd", "V of two",
                                  "soft cap"])
def test_gradcheck(form, name):
    kinds, V, chunk, softcap = CASES[name]
    hidden, *rest = make(kinds, V, D=6)

    def loss(h):
        return FORMS[form](h, *rest, softcap=softcap, **options_of(form, chunk))[0]

    assert torch.autograd.gradcheck(loss, hidden.requires_grad_())


# Rounding of the result itself. Triton's interpreter cuts fp32 to bf16 instead of rounding it.
FLOORS = {torch.float32: 1e-6, torch.bfloat16: 2**-9}
CUT = 2**-7


@every_form
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", CASES)
def test_error(form, dtype, name):
    """At most twice eager's own in the same type, plus a floor."""
    kinds, V, chunk, softcap = CASES[name]
    check_error(form, make(kinds, V, dtype=dtype), softcap, chunk)


@every_form
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [0.3, 1.0, 3.0])
def test_error_of_many_rows(form, dtype, scale, larger_blocks):
    """At a vocabulary where a careless sum would lose digits; no seed is chosen for its luck."""
    seed = torch.seed() % 2**32
    print(f"seed {seed}")  # pytest shows it where the test fails
    case = make(MIXED * 8, 1003, D=80, scale=scale, dtype=dtype, seed=seed)
    check_error(form, case, None, 7, tile=100)


def check_error(form, case, softcap, chunk, **options):
    dtype = case[0].dtype
    if form == "triton flash":
        if softcap is not None:
            pytest.skip("the flash head takes no soft cap (test_kernels.py: it says so)")
        if (DEVICE, dtype) == ("cpu", torch.bfloat16):
            pytest.skip("Triton's interpreter has no bf16 products")
    floor = FLOORS[dtype]
    if (form, DEVICE, dtype) == ("triton chunked", "cpu", torch.bfloat16):
        floor = CUT
    exact = grad_of(pt_loss_naive, doubled(case), softcap=softcap)
    eager = grad_of(pt_loss, case, softcap=softcap)
    ours = grad_of(FORMS[form], case, softcap=softcap, **options_of(form, chunk, **options))
    for x, by_eager, wanted in zip(ours, eager, exact, strict=True):
        assert error(by_eager, wanted) < 0.05
        assert error(x, wanted) <= 2 * error(by_eager, wanted) + floor
    assert ours[0].dtype == ours[1].dtype == torch.float32 and ours[2].dtype == dtype


@pytest.mark.parametrize("form", ["chunked", pytest.param("triton chunked", marks=needs_triton)])
def test_bf16_margins(form, larger_blocks):
    """What fp32 logits, or z_y subtracted inside the product, are for: logits far from 0, as real
    heads have them.

    The head's rows share a direction along which every hidden state is long; nothing in the loss
    depends on it, but bf16 logits of 40 are a quarter apart.
    """
    hidden, head, *rest = make(MIXED * 8, 1003, D=80)
    hidden[:, 0], head[:, 0] = 10.0, 4.0
    case = hidden.bfloat16(), head.bfloat16(), *rest[:2], rest[2].float()
    exact = grad_of(pt_loss_naive, doubled(case))
    eager, ours = grad_of(pt_loss, case), grad_of(FORMS[form], case)
    assert error(eager[2], exact[2]) > max(0.01, 3 * error(ours[2], exact[2]))
    if form == "triton chunked":
        assert error(ours[1], exact[1]) < 1e-4 < error(eager[1], exact[1]) / 10


# ---- p near 1 and near 0 ----

def softplus(x):
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


ODDS = [8.0, 11.5, 15.0, 16.0, 21.4, 40.0, 88.0, 1000.0]  # 1 - p: 3.4e-4 .. 5e-10 (21.4) .. 0


@every_form
@pytest.mark.parametrize("kind", [POSITIVE, TOXIC])
@pytest.mark.parametrize("odds", [*ODDS, *(-a for a in ODDS)])
def test_extreme_p(form, kind, odds):
    """Loss = softplus(∓a), and with the two-column head dhidden = (c, -c), c = ∓σ(∓a)."""
    interpreted = form in TRITON_FORMS and DEVICE == "cpu"
    case, a = known_odds(odds, kind, V=501 if interpreted else 49152)
    loss, _, grad = grad_of(FORMS[form], case)
    c = -kind * math.exp(-softplus(kind * a))
    tiny = 1e-37  # fp32 has nothing below
    slack = 1e-5  # beside logits of 40 to 130 fp32's spacing is 4e-6 to 8e-6
    assert float(loss) == pytest.approx(softplus(-kind * a), rel=slack, abs=tiny)
    assert float(grad[0, 0]) == pytest.approx(c, rel=slack, abs=tiny)
    assert float(grad[0, 1]) == pytest.approx(-c, rel=1e-3, abs=tiny)  # 49151 terms in one product


@pytest.mark.parametrize("odds, clamped, naive", [
    (8.0, 1, True),  # 1 - p = 3.4e-4: all agree
    (15.0, 0, True),  # 3e-7, below the usual clamp of 1e-5: no gradient at all
    (21.4, 0, False),  # 5e-10: 1 - p is 0 in fp32, the plain formula is infinite
])
def test_what_others_do(odds, clamped, naive):
    """-log(clamp(1 - p, 1e-5)), as in code in the wild, is flat where the model is surest."""
    case, a = known_odds(odds, TOXIC, others=0.0)

    def with_clamp(hidden, head, targets, kind, weight):
        p = torch.softmax(hidden @ head.T, -1).gather(1, targets[:, None])
        rows = -torch.log((1 - p).clamp(min=1e-5))
        return rows.sum(), rows.detach()

    assert float(grad_of(with_clamp, case)[2][0, 0]) == pytest.approx(clamped, abs=1e-3)
    assert bool(torch.isfinite(grad_of(pt_loss_naive, case)[0])) == naive
    for form in TORCH_FORMS.values():
        assert float(grad_of(form, case)[0]) == pytest.approx(a, rel=1e-4)
        assert float(grad_of(form, case)[2][0, 0]) == pytest.approx(1, abs=1e-3)


def test_rows_by_themselves():
    """mle and unlikelihood are -log p and -log(1 - p); bf16 logits are widened to fp32."""
    hidden, head, targets, *_ = make(MIXED, 13)
    logits = hidden @ head.T
    log_p = logits.log_softmax(-1).gather(1, targets[:, None])[:, 0]
    a = losses.log_odds(logits, targets)
    torch.testing.assert_close(a, log_p - torch.log1p(-log_p.exp()))
    torch.testing.assert_close(losses.mle(a), -log_p)
    torch.testing.assert_close(losses.unlikelihood(a), -torch.log1p(-log_p.exp()))
    assert losses.log_odds(logits.bfloat16(), targets).dtype == torch.float32


# ---- what a caller may rely on ----

@every_form
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_ignored_rows_are_zero(form, dtype):
    """Exactly, whatever their logits and weights; beside live rows."""
    if form in TRITON_FORMS and dtype != torch.float32:
        pytest.skip("Triton: no float64, and its interpreter no bf16 products")
    hidden, *rest = make(MIXED, 13, dtype=dtype)
    ignored = rest[2] == IGNORED
    hidden[ignored] *= 1e4  # p is 1 or 0 to the last bit
    loss, rows, grad = grad_of(FORMS[form], (hidden, *rest))
    assert not rows[ignored].any() and not grad[ignored].any()
    assert torch.all(grad[~ignored].any(-1)) and torch.isfinite(loss)


@every_form
def test_callers_tensors_untouched(form):
    case = make(MIXED, 13, dtype=torch.float32)
    before = [x.clone() for x in case]
    hidden = case[0].requires_grad_()  # the caller's own tensor, not a copy
    FORMS[form](*case, **options_of(form, 2))[0].backward()
    assert all(map(torch.equal, case, before))
    logits = (hidden @ case[1].T).detach()
    was = logits.clone()
    losses.log_odds(logits, case[2])
    assert torch.equal(logits, was)


@every_form
def test_strided(form):
    """Views with gaps, as slices of a larger tensor are, give what their copies give."""
    case = make(MIXED, 40, dtype=torch.float32)
    views = [torch.stack([x, x], -1)[..., 0] for x in case]
    assert not any(x.is_contiguous() for x in views)
    for by_view, by_copy in zip(grad_of(FORMS[form], views), grad_of(FORMS[form], case),
                                strict=True):
        torch.testing.assert_close(by_view, by_copy)


@every_form
def test_upstream_gradient(form):
    """The loss may be scaled, or be a term of a larger sum."""
    case = make(MIXED, 13, dtype=torch.float32)
    hidden = case[0].clone().requires_grad_()
    loss, _ = FORMS[form](hidden, *case[1:])
    (3 * loss + hidden.sum()).backward()
    torch.testing.assert_close(hidden.grad, 3 * grad_of(FORMS[form], case)[2] + 1)


class Watch(TorchDispatchMode):
    """Counts matrix products and keeps the size of the largest new tensor, in elements."""

    def __init__(self, head):
        super().__init__()
        self.head, self.largest, self.products = head.untyped_storage().data_ptr(), 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        self.products += "mm" in str(function)
        if isinstance(out, torch.Tensor) and out.untyped_storage().data_ptr() != self.head:
            self.largest = max(self.largest, out.numel())
        return out


@pytest.mark.parametrize("form, logits, products", [
    ("chunked", 4 * 30, 2 * 9 * 4),  # logits and mean for each of 9 chunks and 4 tiles, no more
    ("eager", 33 * 101, 2),
])
def test_logits_held(form, logits, products):
    """Never more than a tile of logits, two products a tile, nothing for the head."""
    case = make([POSITIVE, TOXIC, IGNORED] * 11, 101, D=8)
    hidden, head = case[0].requires_grad_(), case[1]
    with Watch(head) as watch:
        FORMS[form](hidden, *case[1:], **options_of(form, 4, tile=30))[0].backward()
    assert watch.largest == max(logits, 33 * 8) and watch.products == products
    assert head.grad is None


def test_head_with_gradient():
    """All but eager refuse a head that would silently stay untrained; eager trains it."""
    case = make(MIXED, 13)
    case[1].requires_grad_()
    for form in FORMS:
        if form != "eager":
            with pytest.raises(ValueError, match="freeze"):
                FORMS[form](*case)
    pt_loss(*case)[0].backward()
    assert case[1].grad.any()


@torch_forms
def test_normalisation(form):
    """Weights 1/|P| and λ/|P| give the paper's sums, with its λ, over |P|."""
    hidden, head, targets, kind, _ = make(MIXED, 13)
    a, λ = losses.log_odds(hidden @ head.T, targets), 0.4
    n_pos = int((kind == POSITIVE).sum())
    sum_mle = losses.mle(a)[kind == POSITIVE].sum()
    sum_ut = losses.unlikelihood(a)[kind == TOXIC].sum()
    weight = torch.where(kind == POSITIVE, 1 / n_pos, λ / n_pos).double()
    loss, rows = FORMS[form](hidden, head, targets, kind, weight)
    torch.testing.assert_close(loss * n_pos, sum_mle + λ * sum_ut)
    torch.testing.assert_close(rows.sum(), sum_mle + sum_ut)  # the log's rows carry no weight
