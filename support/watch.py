"""What a training run is watched for: data that carries no loss, steps that go wrong, memory."""

import math
import resource
import sys

import torch

from support.files import InputError
from support.progress import say

HIGH_UT = 2.0  # nats a token at step one; a model's own sampled text starts near 0.5
SPIKE = 2.0  # times the running mean of the loss


def running_mean(mean: float | None, loss: float) -> float:
    return loss if mean is None else 0.9 * mean + 0.1 * loss


def cosine(g: list, h: list) -> float:
    """Of two lists of tensors, each as one long vector. In float64: over millions of parameters
    torch's fp32 sums put it up to 1 % too high. Tensor by tensor, as copies of all the gradients
    might take more memory than a step."""
    def dot(a, b):
        return sum(torch.dot(x.flatten().double(), y.flatten().double())
                   for x, y in zip(a, b, strict=True))
    return float(dot(g, h) / (dot(g, g) * dot(h, h)).sqrt())


def check_step(step: int, total: float, ut: float, norm: float, recent: float | None) -> None:
    """Before the step is taken: refuse what is not finite, warn of what is likely wrong."""
    if not math.isfinite(total) or not math.isfinite(norm):
        raise InputError("loss or gradient not finite", f"step {step + 1}",
                         "lower --lr, with --fresh")
    if step == 0 and ut > HIGH_UT:
        say(f"warning: UT starts at {ut:.1f} nats a token (a model's own text: about 0.5). The"
            " toxic answers are nearly deterministic for this model and UT will swamp MLE: lower"
            " --penalty or make more varied data.")
    if recent is not None and total > SPIKE * recent:
        say(f"warning: loss {total:.2f} at step {step + 1}, {total / recent:.1f} times its recent"
            f" mean (gradient norm {norm:.1f}). Likely the learning rate is too high: lower --lr.")


def say_counts(examples: list, objective: str, accumulate: int, processes: int = 1) -> None:
    """What the loss will see of the examples (triplets.Example), and what of it is idle."""
    pairs = [e for e in examples if e.toxic]
    identical = sum(not any(e.mask) for e in pairs)
    say(f"{len(examples)} rows: {len(pairs)} pairs, {len(examples) - len(pairs)} positive only; "
        f"{sum(len(e.positive) for e in examples)} positive and "
        f"{sum(sum(e.mask) for e in examples)} penalised toxic tokens")
    if objective != "mle" and not pairs:
        say(f"warning: no row has a toxic answer, so that --objective {objective} is the same as"
            " mle")
    if identical:
        say(f"warning: {identical} pairs are identical token by token and carry MLE alone")
    if accumulate % processes:
        say(f"warning: {processes} processes share {accumulate} micro-batches a step, so"
            " that some wait: give --accumulate a multiple of the processes")


def peak_mib(device: torch.device) -> float:
    """Peak so far: GPU memory on a GPU, else the process's resident set."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    # Kilobytes on Linux, bytes on macOS.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**10 if sys.platform == "linux"
                                                                 else 2**20)
