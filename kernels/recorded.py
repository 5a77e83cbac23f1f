"""A GPU's work recorded once and replayed: CUDA graphs.

Python takes some 10 µs to launch a kernel, and most kernels of a decoding step or of a small
model's training step take less: the GPU waits for Python. A replay launches all of them at once."""

import torch

# The first recording. All use one pool of memory, as no two of them run at a time. A pool lasts as
# long as any of its graphs: the first is kept, or each recording would leave a pool behind.
FIRST: list[torch.cuda.CUDAGraph] = []


def on_device(tensor, device):  # without waiting for what the GPU has still to do
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


class Recorded:
    """`function(*tensors)` for calls with CPU tensors that always have the same shapes. The first
    call runs as it is written, so that kernels are compiled and libraries are ready. The second one
    is recorded; from then on a call copies its tensors to the recorded places. What is returned is
    overwritten by the next call. Nothing in `function` may read a tensor on the CPU."""

    def __init__(self, function):
        self.function, self.graph, self.called = function, None, False

    def __call__(self, *tensors):
        tensors = [on_device(t, torch.device("cuda")) for t in tensors]
        if not self.called:
            self.called = True
            return self.function(*tensors)
        if self.graph is None:
            self.places = [t.clone() for t in tensors]
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph, pool=FIRST[0].pool() if FIRST else None):
                self.result = self.function(*self.places)
            FIRST[:] = FIRST or [self.graph]
        for place, tensor in zip(self.places, tensors, strict=True):
            place.copy_(tensor)
        self.graph.replay()
        return self.result
