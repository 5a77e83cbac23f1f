"""Low-rank adapters (LoRA, arXiv 2106.09685) on named linears; support/adapters.py has their files.

    y = W x + (α/r) B A x        W frozen; A (r, in) random, B (out, r) zero: no change at the start

A and B are kept in fp32 whatever the model's dtype, since a step of 1e-4 is lost in bf16's 8 bits.
"""

import math
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from support.adapters import PREFIX, read_adapter, read_adapter_config
from support.files import InputError


class LoRALinear(nn.Module):
    def __init__(self, base: nn.Linear, rank: int, scale: float):
        super().__init__()
        self.base, self.scale, self.enabled = base, scale, True
        A = torch.empty(rank, base.in_features, dtype=torch.float32)
        # As nn.Linear and PEFT do it. On the CPU, since two kinds of GPU draw different numbers.
        nn.init.kaiming_uniform_(A, a=math.sqrt(5))
        self.lora_A = nn.Parameter(A.to(base.weight.device))
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, rank, dtype=torch.float32,
                                               device=base.weight.device))

    def forward(self, x):  # (..., in) -> (..., out)
        y = self.base(x)
        if not self.enabled:
            return y
        Ax = F.linear(x, self.lora_A.to(x.dtype))  # (..., r)
        # Added to y in one pass: a separate product would need as much memory, and one more pass.
        y.view(-1, y.shape[-1]).addmm_(Ax.view(-1, Ax.shape[-1]), self.lora_B.to(x.dtype).T,
                                       alpha=self.scale)
        return y


def block_linears(model: nn.Module) -> list[str]:
    """The kinds of linear inside the blocks, by their last name; never the head."""
    linears = (name.removesuffix(".base")  # what a LoRALinear calls the one that it wraps
               for name, module in model.model.named_modules() if isinstance(module, nn.Linear))
    return sorted({name.rpartition(".")[2] for name in linears})


def choose_targets(model, asked: list[str] | None) -> list[str]:
    """The linears to adapt: all of a block, or those asked for, once each. InputError otherwise."""
    have = block_linears(model)
    wanted = have if asked is None else list(dict.fromkeys(asked))
    for name in wanted or ["(none given)"]:
        if name not in have:
            raise InputError(f"no linear named {name}", "--targets",
                             f"this model has {', '.join(have)}")
    return wanted


def add_lora(model, targets: list[str], *, rank: int, alpha: float) -> None:
    """Wrap every linear of the blocks whose last name is in `targets`, in place."""
    targets = choose_targets(model, targets)
    for name, module in list(model.model.named_modules()):
        if isinstance(module, nn.Linear) and name.rpartition(".")[2] in targets:
            model.model.set_submodule(name, LoRALinear(module, rank, alpha / rank))


def merged(weight, A, B, scale: float):  # (out, in), (r, in), (out, r) -> (out, in) fp32
    """W + (α/r) B A, in fp32 whatever the dtypes: the caller rounds it once."""
    return weight.float() + scale * (B.float() @ A.float())


def remove_lora(model) -> None:
    """Put the plain linears back, untouched."""
    for name, module in lora_modules(model).items():
        model.set_submodule(name, module.base)


def lora_modules(model) -> dict[str, LoRALinear]:
    return {n: m for n, m in model.named_modules() if isinstance(m, LoRALinear)}


def lora_parameters(model) -> dict[str, nn.Parameter]:
    """The trained parameters under PEFT's names."""
    return {f"{PREFIX}{name}.lora_{side}.weight": getattr(module, f"lora_{side}")
            for name, module in lora_modules(model).items() for side in "AB"}


@contextmanager
def adapter_disabled(model):
    """The base model inside the with block; the adapter is back after it."""
    modules = lora_modules(model).values()
    for module in modules:
        module.enabled = False
    try:
        yield
    finally:
        for module in modules:
            module.enabled = True


def load_adapter(model, folder: Path) -> None:
    """Add the adapter of a PEFT folder, ours or theirs, to a model without one. Raises InputError,
    and changes nothing, where `read_adapter` does."""
    factors = read_adapter(Path(folder), read_adapter_config(Path(folder)), model)
    for name, (A, B, scale) in factors.items():
        layer = LoRALinear(model.get_submodule(name), len(A), scale)
        layer.lora_A.data.copy_(A)
        layer.lora_B.data.copy_(B)
        layer.requires_grad_(False)
        model.set_submodule(name, layer)
