"""Linear layers with bf16 weights stored in the order that the CPU's products (oneDNN) read.

A product from plain rows brings the weights into that order at each call. On an AMD core with
AVX-512 bf16, ms a call for 1, 8, 32 and 64 rows of x and a weight (4864, 896): plain 0.36, 0.64,
2.00, 3.50, packed 0.20, 0.43, 1.48, 2.90. The operators are those of torch.compile's freezing."""

from contextlib import contextmanager
from functools import partial
from weakref import WeakKeyDictionary

import torch
from torch import nn

MOST_BYTES = 2**32  # of weights that are held a second time; those of larger models are not packed
# linear -> ((its weight's address, its count of changes), the weight packed)
PACKED: WeakKeyDictionary = WeakKeyDictionary()


@contextmanager
def packed_linears(model):
    """Inside, bf16 products on a CPU read packed weights, except where a gradient is recorded. The
    packed ones lie beside the model's own, MOST_BYTES of them at most, as long as it lives."""
    linears = []
    if packable(model.lm_head.weight):
        linears = [m for m in model.modules() if isinstance(m, nn.Linear) and packable(m.weight)
                   and "forward" not in vars(m)]  # set where another stream is under way
    if sum(linear.weight.nbytes for linear in linears) > MOST_BYTES:
        linears = []
    for module in linears:
        module.forward = partial(packed_product, module)
    try:
        yield
    finally:
        for module in linears:
            del module.forward


def packable(weight) -> bool:
    return (weight.device.type == "cpu" and weight.dtype == torch.bfloat16
            and not weight.is_inference()  # made in inference mode: it does not count its changes
            and torch.backends.mkldnn.is_available()
            and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def packed_product(linear: nn.Linear, x):  # (..., in) -> (..., out)
    if torch.is_grad_enabled():  # a stream's caller computes between two of its tokens
        return type(linear).forward(linear, x)
    weight = linear.weight
    version, packed = PACKED.get(linear, (None, None))
    if version != (weight.data_ptr(), weight._version):  # new, or changed since
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, None)
        PACKED[linear] = (weight.data_ptr(), weight._version), packed
    y = torch.ops.mkldnn._linear_pointwise(x, packed, linear.bias, "none", [], "")
    return y if type(linear) is nn.Linear else linear.finish(y)  # model.Head's
