"""What a training run will take, told before it begins: `train --dry-run`.

The memory is counted, not guessed: the model is built on torch's meta device, where tensors have
shapes and no content, the largest micro-batch is run through it, and what autograd would keep for
the backward pass is added up. So every family and every choice of targets is covered.

Letters: T tokens of the largest micro-batch, D hidden size."""

from dataclasses import dataclass

import torch
from torch.utils.benchmark import Timer

from config import Config
from lora import add_lora, lora_parameters
from model import DTYPES, Transformer
from support import distributed, nf4
from triplets import Example, pack

COPIES = 4  # of the adapter in memory: itself, its gradient, AdamW's two moments
WORK = 4  # buffers as large as the widest activation that the backward pass holds at a time
LOSS_TILES = 6 * 512 * 1024 * 4  # bytes of losses.pt_loss_chunked in fp32, whatever the batch
LOGITS = {"eager": 12, "triton": 6}  # bytes a logit; losses.pt_loss_chunked keeps none
KERNEL_BUDGET = 2**30  # bytes that kernels/chunked.py takes at most for logits and gradient
NO_LOGITS = 640  # the largest D of kernels/flash_head.py, which takes none
# What glibc's heap holds for a byte of activations: blocks of many sizes leave gaps. On SmolLM2
# it was 1.4 to 1.75, by what the process had done before; a GPU's allocator has hardly any.
HEAP = 1.6
EFFICIENCY = 0.6  # share of the matrix products' rate that whole steps were seen to reach


@dataclass(frozen=True)
class Forecast:
    """Bytes of each part at the peak of a step."""
    weights: int
    adapter: int  # with gradients and moments
    activations: int  # kept for the backward pass
    work: int  # of the backward pass and the loss

    def total(self, device: torch.device) -> float:
        heap = HEAP if device.type == "cpu" else 1.0
        return self.weights + self.adapter + heap * (self.activations + self.work)


def forecast(config: Config, micro_batch: list[Example], *, targets: list[str], rank: int,
             dtype: str, base_dtype: str | None = None, loss: str, gradient_checkpointing: bool,
             device: torch.device) -> Forecast:
    """The memory of a step that computes this micro-batch, the largest of a run."""
    kind = DTYPES.get(dtype, torch.bfloat16)
    with torch.device("meta"):
        model = Transformer(config).to(kind).requires_grad_(False)
        if config.tie_word_embeddings:
            model.lm_head.weight = model.model.embed_tokens.weight
        if base_dtype == "nf4":
            nf4.shrink(model)
        weights = sum(p.nbytes for p in model.parameters())
        add_lora(model, targets, rank=rank, alpha=rank)
    batch = pack(micro_batch).to("meta")
    T, scored = batch.ids.numel(), len(batch.places)
    flash = device.type == "cuda" and kind == torch.bfloat16 and not config.attn_logit_softcapping
    kept = kept_for_backward(model, batch, FlashAttention.apply if flash else batch.attend)
    work = WORK * T * config.intermediate_size * kind.itemsize
    if base_dtype == "nf4":  # what a product's backward pass sums up in fp32, and a tile
        work += T * config.intermediate_size * 4 + 12 * nf4.TILE
    if gradient_checkpointing:  # the inputs of all blocks, and one block's activations anew
        work += kept // config.num_hidden_layers
        kept = T * config.hidden_size * kind.itemsize * config.num_hidden_layers
    logits = scored * config.vocab_size * LOGITS.get(loss, 0)
    if loss == "triton":
        logits = min(logits, KERNEL_BUDGET) if config.hidden_size > NO_LOGITS else 0
    return Forecast(weights, COPIES * sum(p.nbytes for p in lora_parameters(model).values()), kept,
                    max(work, LOSS_TILES + logits))  # the loss comes before the backward pass


class FlashAttention(torch.autograd.Function):
    """A stand-in on the meta device that keeps what FlashAttention keeps: no scores."""

    @staticmethod
    def forward(ctx, layer, q, k, v, positions, rule):
        y = torch.empty_like(q)
        ctx.save_for_backward(q, k, v, y)
        return y


def kept_for_backward(model, batch, attend) -> int:
    """Bytes that autograd keeps of a forward pass on the meta device; each storage counts once."""
    mine = {p.untyped_storage()._cdata for p in model.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in mine:
            kept[storage._cdata] = storage  # held, so that no later one takes its address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.model(batch.ids, batch.positions, attend)
    return sum(storage.nbytes() for storage in kept.values())


def product_rate(config: Config, T: int, dtype: str, device: torch.device) -> float:
    """FLOP a second of the largest product of a block, timed here for a moment."""
    kind = DTYPES.get(dtype, torch.bfloat16)
    x = torch.randn(T, config.hidden_size, device=device).to(kind)
    W = torch.randn(config.intermediate_size, config.hidden_size, device=device).to(kind)
    timer = Timer("x @ W.T", globals={"x": x, "W": W}, num_threads=torch.get_num_threads())
    return 2 * x.numel() * len(W) / timer.blocked_autorange(min_run_time=0.3).median


def describe(plan: list[list[list[Example]]], config: Config, *, held_out: list[Example],
             objective: str, dtype: str, device: torch.device, gradient_checkpointing: bool,
             **settings) -> str:
    """What `train --dry-run` prints: steps, memory, time and disk. `held_out`: the pairs held out,
    once for each time that they are measured; `settings` are `forecast`'s."""
    micro_batches = [batch for step in plan for batch in step]
    tokens = [sum(e.tokens for e in batch) for batch in micro_batches]
    largest = micro_batches[tokens.index(max(tokens))]
    memory = forecast(config, largest, dtype=dtype, device=device,
                      gradient_checkpointing=gradient_checkpointing, **settings)
    # A product takes 2 FLOP a weight and token; the head's is for scored tokens only.
    head = config.vocab_size * config.hidden_size
    with torch.device("meta"):
        linears = sum(p.numel() for p in Transformer(config).model.layers.parameters())
    scored = sum(e.scored for batch in micro_batches for e in batch)
    # Forward and dX; checkpointing: the forward products once more. NPO and DPO go through the head
    # twice, and once over all examples for the base's log p.
    twice = objective in ("npo", "dpo")
    flop = (4 + 2 * gradient_checkpointing) * (linears * sum(tokens) + head * scored)
    flop += 4 * twice * head * scored
    once = {id(e): e for batch in micro_batches for e in batch}.values() if twice else ()
    flop += 2 * sum(linears * e.tokens + head * e.scored for e in (*held_out, *once))
    seconds = flop / product_rate(config, max(tokens), dtype, device) / EFFICIENCY
    # Of the adapter's size each: the adapter, and the checkpoint's copy of it with two moments,
    # which is there twice while a newer one is written. In memory there are four.
    disk = memory.adapter * 7 / 4
    gib = {name: f"{value / 2**30:.2f}" for name, value in vars(memory).items()}
    return "\n".join([
        f"{len(plan)} steps, {len(micro_batches)} micro-batches of {min(tokens)} to {max(tokens)} "
        f"tokens, {sum(tokens)} tokens in all",
        f"memory about {memory.total(device) / 2**30:.1f} GiB at the peak of a step: weights "
        f"{gib['weights']}, adapter with gradients and moments {gib['adapter']}, activations "
        f"{gib['activations']}, work {gib['work']} GiB"
        + ("; a CPU's heap adds to the last two" if device.type == "cpu" else ""),
        f"time about {seconds / 60:.0f} minutes on this {device.type}, at {EFFICIENCY:.0%} of the "
        "rate that its matrix products have now",
        f"disk {disk / 2**20:.0f} MiB for the adapter and a checkpoint",
        *["all for one process: each of several takes a share"] * (distributed.world() > 1)])
