"""The rows that head.py gives its rivals: like a language model's, or taken from one.

What decides speed is the shape alone. What decides errors is how sure the model is, how large its
logits are, and that real heads have a component common to all rows, which moves all logits of a row
together and so makes bf16 round them badly while it cancels in the loss.

Letters: N scored rows, D hidden size, V vocabulary.
"""

import math
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch

import losses
from losses import IGNORED, POSITIVE, TOXIC
from model import DTYPES, load_model

SEED = 0
PENALTY = 0.4  # λ of the paper
# Target's log-odds: logistic of this centre and scale. A small chat model's own answers have 1 - p
# below 1e-3 in 4.4 % and below 1e-5 in 0.2 to 0.4 % of their tokens; this gives 4.0 and 0.3 %.
CENTRE, SCALE = 1.5, 1.7
SPREAD = 2.5  # standard deviation of the other logits
COMMON = 15.0  # what the head's common component adds to every logit
CHECKED = 256  # rows whose gradient is compared with float64
TEXT = Path(__file__).parents[1] / "README.md"
WINDOW = 512  # tokens of the text seen at a time
TEMPERATURE = 0.7


class Case(NamedTuple):
    hidden: torch.Tensor  # (N, D), a leaf that wants its gradient
    head: torch.Tensor  # (V, D)
    targets: torch.Tensor  # (N,)
    kind: torch.Tensor  # (N,)
    weight: torch.Tensor  # (N,)


def synthetic(D: int, V: int, N: int, device, dtype) -> Case:
    """2N rows, every other one scored."""
    draw = torch.Generator(device).manual_seed(SEED)
    own = {"generator": draw, "device": device}
    common = torch.nn.functional.normalize(torch.randn(D, **own), dim=0)
    head = torch.randn(V, D, **own).div_(math.sqrt(D))  # rows of length 1, nearly orthogonal
    targets = torch.randint(V, (2 * N,), **own)
    hidden = torch.randn(2 * N, D, **own) * SPREAD + COMMON * common
    u = torch.rand(2 * N, **own).clamp(1e-6, 1 - 1e-6)
    log_odds = CENTRE + SCALE * torch.logit(u)
    # logsumexp of V normal logits is log V + SPREAD²/2; the target's row is added until it is met.
    W_y = head[targets]  # (2N, D)
    wanted = log_odds + math.log(V) + SPREAD**2 / 2
    missing = wanted - ((hidden - COMMON * common) * W_y).sum(-1)
    hidden += missing[:, None] * W_y
    head += common
    return rows_of(hidden.to(dtype), head.to(dtype), targets)


def of_model(folder: Path, N: int, device, dtype) -> Case:
    """2N rows of a model that reads TEXT, over again if it is short; targets sampled from it."""
    states, head = hidden_states(Path(folder), device, dtype)
    draw = torch.Generator(device).manual_seed(SEED)
    hidden = states[torch.arange(2 * N, device=device) % len(states)]
    targets = [torch.multinomial((part @ head.T).float().div(TEMPERATURE).softmax(-1), 1,
                                 generator=draw)[:, 0] for part in hidden.split(CHECKED)]
    return rows_of(hidden, head, torch.cat(targets))


@cache
def hidden_states(folder: Path, device, dtype):  # -> (tokens, D), (V, D)
    from tokenizer import Tokenizer
    name = next(key for key, value in DTYPES.items() if value is dtype)
    model = load_model(folder, device=str(device), dtype=name)
    ids = Tokenizer(folder).encode(TEXT.read_text(encoding="utf-8"))
    windows = torch.tensor(ids, device=device).split(WINDOW)
    with torch.no_grad():
        parts = [model.model(window[None])[0] for window in windows]
    return torch.cat(parts), model.lm_head.weight.detach()


def rows_of(hidden, head, targets) -> Case:  # (2N, D), (V, D), (2N,)
    """Ignored and scored rows by turns, the scored ones positive and toxic by turns."""
    N = len(hidden) // 2
    kind = torch.tensor([IGNORED, POSITIVE, IGNORED, TOXIC]).repeat(N // 2 + 1)[:2 * N]
    weight = torch.where(kind == POSITIVE, 1.0, PENALTY) / (kind == POSITIVE).sum()
    weight[kind == IGNORED] = 0
    kind, weight = kind.to(hidden.device), weight.float().to(hidden.device)
    return Case(hidden.detach().requires_grad_(), head, targets, kind, weight)


def scored(case: Case) -> Case:
    """Only the rows that have a loss, which is what all rivals but one are given."""
    live = case.kind != IGNORED
    hidden = case.hidden.detach()[live].requires_grad_()
    return Case(hidden, case.head, case.targets[live], case.kind[live], case.weight[live])


def truth(case: Case):  # of scored rows -> (<= CHECKED, D), (<= CHECKED,)
    """d loss/d hidden and p of the first rows in float64, where the log-odds form is exact."""
    head, parts = case.head.double(), []
    for i in range(0, min(CHECKED, len(case.hidden)), 64):  # few rows: float64 logits are large
        rows = slice(i, min(i + 64, CHECKED))
        hidden = case.hidden.detach()[rows].double().requires_grad_()
        loss, row_losses = losses.pt_loss(hidden, head, case.targets[rows], case.kind[rows],
                                          case.weight[rows].double())
        loss.backward()
        p = torch.where(case.kind[rows] == POSITIVE, row_losses.neg().exp(),
                        -torch.expm1(-row_losses))
        parts.append((hidden.grad, p))
    gradients, p = zip(*parts, strict=True)
    return torch.cat(gradients), torch.cat(p)


def error_of(gradient, kind, exact) -> float:  # (rows, D), (rows,), (<= CHECKED, D)
    """Frobenius norm of what is wrong over that of what is right; nan where not finite."""
    gradient = gradient[kind != IGNORED][:len(exact)].double()
    return ((gradient - exact).norm() / exact.norm()).item()
