"""The floor of train_step.py: the matrix products that a training step cannot avoid, by themselves.

Frozen linears forward and their dX, LoRA's products, attention's, and the head's two over the
scored rows, each at the packed step's own shapes.

Letters: T tokens of the packed row, D hidden size, V vocabulary, G key-value heads, E their size.
"""

from collections import Counter

import torch

from benchmarks import rivals
from benchmarks.step_rivals import RANK, Setup
from lora import lora_modules
from model import DTYPES


def floors(setup: Setup) -> dict:
    """name -> (a call, how many times a step does it): the products that no step can avoid."""
    batch, config = setup.packed, setup.model.config
    hidden = torch.randn(len(batch.places), config.hidden_size, device=setup.device,
                         dtype=DTYPES[setup.dtype])
    head = setup.model.lm_head.weight
    attention, seen = attention_products(setup)
    return {"linears and LoRA": (replayed(linear_products(setup), setup.device), 1),
            "attention": (replayed(attention, setup.device), seen * config.num_hidden_layers),
            "head": (rivals.two_products(hidden, head, chunk=min(len(hidden), 2048)), 1)}


def replayed(call, device):
    """On a GPU as a graph: launching hundreds of small products would take longer than they do."""
    if device.type != "cuda":
        return call
    graph = []

    def replay():
        if not graph:
            call()  # cuBLAS takes its workspace outside the capture
            torch.cuda.synchronize()
            graph.append(torch.cuda.CUDAGraph())
            with torch.cuda.graph(graph[0]):
                call()
        graph[0].replay()

    return replay


def linear_products(setup: Setup):
    """Of every linear of the blocks: forward and dX; of LoRA: both forward, dA, dB and dX."""
    T, dtype = setup.packed.ids.numel(), DTYPES[setup.dtype]
    buffers = {}

    def buffer(use: str, *shape):
        key = use, shape
        if key not in buffers:
            buffers[key] = torch.randn(shape, device=setup.device, dtype=dtype)
        return buffers[key]

    products = []  # (a, b, out)
    for name, module in lora_modules(setup.model).items():
        W, A, B = module.base.weight, module.lora_A.to(dtype), module.lora_B.to(dtype)
        wide, narrow = W.shape
        X, dX = buffer("in", T, narrow), buffer("out", T, narrow)
        dY, Y = buffer("in", T, wide), buffer("out", T, wide)
        AX, dAX = buffer("in", T, RANK), buffer("out", T, RANK)
        products += [(X, W.T, Y), (X, A.T, dAX), (AX, B.T, Y), (dY, B, dAX),
                     (dY.T, AX, buffer("out", wide, RANK)), (AX.T, X, buffer("out", RANK, narrow))]
        # The embedding is frozen, so the first block's queries, keys and values end the way back.
        if not (name.startswith("model.layers.0.self_attn.") and "o_proj" not in name):
            products += [(dY, W, dX), (AX, A, dX)]

    def call():
        with torch.no_grad():
            for a, b, out in products:
                torch.mm(a, b, out=out)

    return call


def attention_products(setup: Setup):
    """(a call with a layer's six products in full, the share of them that a causal mask leaves)."""
    config, attend = setup.model.config, setup.packed.attend
    shapes = Counter()
    for i in range(len(attend.keys) // 3):
        shared, *rests = attend.keys[3 * i:3 * i + 3]
        shapes.update((q, shared + rest) for q, rest in
                      zip(attend.queries[2 * i:2 * i + 2], rests, strict=True) if q)
    G, E = config.num_key_value_heads, config.head_dim
    group = config.num_attention_heads // G
    place = {"device": setup.device, "dtype": DTYPES[setup.dtype]}
    products, seen, full = [], 0, 0
    for (q, k), n in shapes.items():
        Q, K = (torch.randn(n * G, size, E, **place) for size in (group * q, k))
        P = torch.randn(n * G, group * q, k, **place)
        score, dQ, dK = map(torch.empty_like, (P, Q, K))
        # Scores and dP; output and dQ; dV and dK.
        products += 2 * [(Q, K.mT, score), (P, K, dQ), (P.mT, Q, dK)]
        full += n * q * k
        seen += n * (q * (k - q) + q * (q + 1) // 2)

    def call():
        for a, b, out in products:
            torch.bmm(a, b, out=out)

    return call, seen / full
