"""A frozen base in 4 bits: NF4 with double quantisation (QLoRA, arXiv 2305.14314, section 3).

    W ≈ level[code] · s        code: 4 bits a weight; s = max |W| of a block of 64 weights
    s ≈ step[byte] · t + m     byte: 8 bits a block; t of 256 blocks and m of all of them in fp32

which is 4 + 8/64 + 32/(64·256) = 4.127 bits a weight. A block's weights are nearly normal, so that
the 16 levels are quantiles of the normal distribution (the paper's equation 4). Blocks are cut from
a weight row by row. A product makes W in the computing dtype one tile of rows at a time, and makes
the tiles again on the way back: autograd keeps nothing. LoRA stays beside it in fp32 (lora.py);
head, embeddings, norms and biases stay as they are. The numbers are bitsandbytes'
(tests/test_nf4.py).

Letters: N rows of x, O numbers out of a linear, I into it, K blocks of 64 weights."""

import math
from functools import lru_cache
from statistics import NormalDist

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

from support import distributed
from support.files import InputError

BLOCK, SCALE_BLOCK = 64, 256  # weights with one scale, scales with one scale of their own
TILE = 2**20  # weights that are dequantised at a time: some 10 MB with their codes


@lru_cache
def levels() -> torch.Tensor:  # (16,) from -1 to 1
    """Quantiles of the normal distribution: 7 below a zero that is exact, and 8 above it. The
    outermost would be infinite: the paper's code starts at the mean of 1/30 and 1/32 from the end.
    """
    end = 1 - (1 / 30 + 1 / 32) / 2

    def quantiles(n: int) -> list[float]:
        return [NormalDist().inv_cdf(end + (0.5 - end) * i / n) for i in range(n)]

    values = [*quantiles(8), 0.0, *(-q for q in quantiles(7))]
    return torch.tensor(sorted(values), dtype=torch.float64).div(max(values)).float()


@lru_cache  # copied to a GPU once: its recording refuses such a copy
def steps(device=None) -> torch.Tensor:  # (256,) from near -1 to 1
    """Numbers that share 8 bits between exponent and fraction (dynamic quantisation, arXiv
    2110.02861): each decade below 1 has half as many values as the one above it."""
    values = [0.0, 1.0]
    for decade in range(7):  # 2^6 values in 0.1 to 1, 2^5 in 0.01 to 0.1, ...
        n = 2 ** (6 - decade)
        middles = [(0.1 + 0.9 * (i + 0.5) / n) * 10.0**-decade for i in range(n)]
        values += middles + [-m for m in middles]
    return torch.tensor(sorted(values), dtype=torch.float64).float().to(device)


def nearest(x, values):  # (...) and (V,) ascending -> (...) int64 places in `values`
    return torch.bucketize(x, (values[1:] + values[:-1]) / 2)


@lru_cache
def pairs(device: torch.device) -> torch.Tensor:  # (256,), each two fp32 levels seen as one number
    """Both weights of a byte at once, the first in its high half: one look-up for two weights."""
    table = torch.stack((levels().repeat_interleave(16), levels().repeat(16)), dim=1)
    return table.view(torch.int64)[:, 0].to(device)


def in_blocks(x, size: int):  # any shape -> (blocks, size), the last one filled up with zeros
    return F.pad(x.flatten(), (0, -x.numel() % size)).view(-1, size)


def quantised(name: str, weight) -> dict[str, torch.Tensor]:  # (O, I)
    """What an NF4Linear's state dict has for the weight of this name."""
    codes, scales = [], []
    for part in in_blocks(weight, BLOCK).split(TILE // BLOCK):
        part = part.float()
        scale = part.abs().amax(1)  # (K,)
        # A block of zeros has scale 0. Divided by anything else, it has the code of 0.
        code = nearest(part / scale.clamp_min(1e-38)[:, None], levels().to(part.device))
        codes.append((code[:, ::2] << 4 | code[:, 1::2]).to(torch.uint8))
        scales.append(scale)
    scales = torch.cat(scales)
    mean = scales.mean()
    centred = in_blocks(scales - mean, SCALE_BLOCK)
    most = centred.abs().amax(1)
    step = nearest(centred / most.clamp_min(1e-38)[:, None], steps(most.device))
    return {name: torch.cat(codes), f"{name}_scales": step.flatten()[:len(scales)].byte(),
            f"{name}_scales_most": most, f"{name}_scales_mean": mean}


class NF4Linear(nn.Linear):
    """A linear whose `weight` has codes, two a byte: (K, 32), and whose scales lie beside it."""

    def __init__(self, plain: nn.Linear):
        nn.Module.__init__(self)  # nn.Linear's own would allocate the whole weight
        self.in_features, self.out_features = plain.in_features, plain.out_features
        K = math.ceil(plain.weight.numel() / BLOCK)
        for name, shape, kind in (("weight", (K, BLOCK // 2), torch.uint8),
                                  ("weight_scales", (K,), torch.uint8),
                                  ("weight_scales_most", (math.ceil(K / SCALE_BLOCK),), None),
                                  ("weight_scales_mean", (), None)):
            empty = torch.empty(shape, dtype=kind or torch.float32, device=plain.weight.device)
            self.register_parameter(name, nn.Parameter(empty, requires_grad=False))
        self.bias = plain.bias

    def tiles(self, dtype):
        """(number of its first row, those rows of W: (rows, I)), tile by tile."""
        device, I = self.weight.device, self.in_features  # noqa: E741
        whole = BLOCK // math.gcd(BLOCK, I)  # so many rows end where a block ends
        rows = max(whole, TILE // I // whole * whole)
        most = self.weight_scales_most.repeat_interleave(SCALE_BLOCK)[:len(self.weight)]
        scales = steps(device)[self.weight_scales.int()] * most + self.weight_scales_mean
        for first in range(0, self.out_features, rows):
            last = min(first + rows, self.out_features)
            blocks = slice(first * I // BLOCK, math.ceil(last * I / BLOCK))
            codes = self.weight[blocks].flatten().int()  # indices of bytes would be a mask
            values = pairs(device).index_select(0, codes).view(torch.float32).view(-1, BLOCK)
            W = (values * scales[blocks, None]).to(dtype)
            yield first, W.flatten()[:(last - first) * I].view(-1, I)

    def forward(self, x):  # (..., I) -> (..., O)
        y = Product.apply(x, self)
        return y if self.bias is None else y + self.bias


class Product(torch.autograd.Function):
    """x Wᵀ for a W that is made of its codes, in either direction."""

    @staticmethod
    def forward(ctx, x, linear):
        ctx.linear = linear
        return torch.cat([F.linear(x, W) for _, W in linear.tiles(x.dtype)], dim=-1)

    @staticmethod
    @once_differentiable
    def backward(ctx, d_y):  # (..., O) -> (..., I)
        shape = *d_y.shape[:-1], ctx.linear.in_features
        wide = torch.promote_types(d_y.dtype, torch.float32)
        d_x = torch.zeros(shape, dtype=wide, device=d_y.device)
        for first, W in ctx.linear.tiles(d_y.dtype):  # summed wide: there may be a hundred tiles
            d_x += d_y[..., first:first + len(W)] @ W
        return d_x.to(d_y.dtype), None


def shrink(model) -> set[str]:
    """Put an empty NF4Linear in the place of each linear of the blocks, on its device. Returns the
    names of their weights."""
    if distributed.world() > 1:
        raise InputError("runs in one process", "--base-dtype nf4", "start it without torchrun")
    names = [n for n, linear in model.model.named_modules() if isinstance(linear, nn.Linear)]
    for name in names:
        model.model.set_submodule(name, NF4Linear(model.model.get_submodule(name)))
    return {f"model.{name}.weight" for name in names}
