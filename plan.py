"""What a training run will do, before it does it: its steps, and `train --dry-run`.

The memory is counted, not guessed: the model is built on torch's meta device, where tensors have
shapes and no content, the largest micro-batch is run through it, and what autograd would keep for
the backward pass is added up. So every family and every choice of targets is covered.

Letters: N tokens of the largest micro-batch, D hidden size, V vocabulary.
"""

import random
import time
from dataclasses import dataclass

import torch

from config import Config
from lora import add_lora, lora_parameters
from model import DTYPES, Transformer
from triplets import Example, pack

FP32 = 4  # bytes
COPIES = 4  # of the adapter in memory: itself, its gradient, AdamW's two moments
WORK = 6  # buffers of the widest activation that the backward pass has at a time
LOSS_TILES = 6 * 512 * 1024 * FP32  # bytes of losses.pt_loss_chunked, whatever the batch
LOGITS = {"eager": 12, "triton": 6}  # bytes a logit; the chunked form keeps none
KERNEL_BUDGET = 2**30  # bytes of logits that kernels/chunked.py takes at most
EFFICIENCY = 0.6  # of the products' rate that a step has been seen to reach


def plan_steps(examples: list[Example], *, epochs: int, seed: int, batch_tokens: int,
               accumulate: int) -> list[list[list[Example]]]:
    """Steps of micro-batches of examples, in the order of the seed; each epoch shuffles anew."""
    micro_batches = []
    for epoch in range(epochs):
        rng, room = random.Random(f"{seed}|{epoch}"), 0
        for example in rng.sample(examples, len(examples)):
            if example.tokens > room:  # one that is longer than a micro-batch makes one alone
                micro_batches.append([])
                room = batch_tokens
            micro_batches[-1].append(example)
            room -= example.tokens
    return [micro_batches[i:i + accumulate] for i in range(0, len(micro_batches), accumulate)]


@dataclass(frozen=True)
class Forecast:
    """Bytes of each part at the peak of a step."""

    weights: int
    adapter: int  # with gradients and moments
    activations: int  # kept for the backward pass
    work: int  # of the backward pass and the loss

    @property
    def total(self) -> int:
        return self.weights + self.adapter + self.activations + self.work


def forecast(config: Config, micro_batch: list[Example], *, targets: list[str], rank: int,
             dtype: str, loss: str, gradient_checkpointing: bool) -> Forecast:
    """Of the step that computes this micro-batch, the largest of a run."""
    kind = DTYPES.get(dtype, torch.bfloat16)
    with torch.device("meta"):
        model = Transformer(config).to(kind).requires_grad_(False)
        if config.tie_word_embeddings:
            model.lm_head.weight = model.model.embed_tokens.weight
        weights = sum(p.nbytes for p in model.parameters())
        add_lora(model, targets, rank=rank, alpha=rank)
    batch = pack(micro_batch).to("meta")
    N, scored = batch.ids.numel(), len(batch.rows)
    kept = kept_for_backward(model, batch)
    stream = N * config.hidden_size * kind.itemsize  # one block's input
    if gradient_checkpointing:  # the inputs of all blocks, and one block's activations anew
        kept = stream * config.num_hidden_layers + kept // config.num_hidden_layers
    logits = scored * config.vocab_size * LOGITS.get(loss, 0)
    return Forecast(
        weights, COPIES * sum(p.nbytes for p in lora_parameters(model).values()), kept,
        WORK * N * config.intermediate_size * kind.itemsize + LOSS_TILES
        + (logits if loss == "eager" else min(logits, KERNEL_BUDGET)))


def kept_for_backward(model, batch) -> int:
    """Bytes that autograd keeps of a forward pass on the meta device; each storage counts once."""
    mine = {p.untyped_storage()._cdata for p in model.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in mine:
            kept[storage._cdata] = storage  # held, so that no later one takes its address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.model(batch.ids, batch.positions, batch.attend)
    return sum(storage.nbytes() for storage in kept.values())
