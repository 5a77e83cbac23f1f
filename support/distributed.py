"""Training on several processes of one machine, one a GPU:

    torchrun --nproc-per-node 2 ptalign.py train --accumulate 2 ...

The frozen base is cut among them by torch's FSDP2 (arXiv 2304.11277): a block's weights are
gathered when it runs, forward and again backward, and dropped after it. LoRA's parameters and
AdamW's moments are whole everywhere and stay equal, since every process takes the same step on the
same gradient, the sum over all of them. The head is whole too, because the loss reads its weight
alone; so is an embedding tied to it. Only the first process writes. Gathering needs all of them, so
all run equally many micro-batches.

Without torchrun there is one process, and every function here changes nothing.
"""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator

import torch
import torch.distributed as dist
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from support import progress
from support.files import InputError

GRACE = 5.0  # seconds that a process waits for the others before it ends


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """The number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_first() -> bool:
    """The first process writes and speaks for all."""
    return rank() == 0


@contextlib.contextmanager
def processes() -> Iterator[None]:
    """The processes that torchrun started work together inside this block, or end together."""
    # torchrun's own sign: a WORLD_SIZE alone may be left over from something else.
    if "TORCHELASTIC_RUN_ID" not in os.environ or os.environ["WORLD_SIZE"] == "1":
        yield
        return
    store, number, size = next(dist.rendezvous("env://"))
    progress.QUIET |= number > 0
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", store=store, rank=number,
                            world_size=size)
    try:
        if os.environ["LOCAL_WORLD_SIZE"] != os.environ["WORLD_SIZE"]:
            raise InputError("several machines are not supported", "torchrun --nnodes", "use one")
        yield
        _meet()  # what the first process writes at the end may still fail
    except BaseException as error:
        if _another_failed_first(store):
            raise SystemExit(130 if isinstance(error, KeyboardInterrupt) else 2) from None
        raise
    store.add("done", 1)
    _wait_for_all(store, "done")  # a connection closed too early loses what was sent through it
    dist.destroy_process_group()


def _meet() -> None:
    dist.all_reduce(torch.zeros(1))  # on the CPU, by gloo; dist.barrier would take a GPU


def _another_failed_first(store) -> bool:
    """Called where this process has failed. The process that fails first tells why for all."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # torchrun repeats the terminal's Ctrl-C
    first_process = is_first()
    try:
        earlier = store.add("failed", 1) > 1
        if not torch.cuda.is_available():
            # This closes the connections, so that the others fail now and do not wait for us.
            # NCCL's own end may hang; with GPUs torchrun ends the others once we have ended.
            dist.destroy_process_group()
        _wait_for_all(store, "failed")
        return earlier
    except dist.DistError:  # torchrun, which holds the store, has ended
        return not first_process


def _wait_for_all(store, event: str) -> None:
    """Until every process has counted itself, or GRACE is over.

    torchrun ends all processes as soon as one has ended, also one that is still speaking.
    """
    end = time.monotonic() + GRACE
    while store.add(event, 0) < int(os.environ["WORLD_SIZE"]) and time.monotonic() < end:
        time.sleep(0.05)


@contextlib.contextmanager
def on_first(manager: contextlib.AbstractContextManager) -> Iterator:
    """Enter `manager` in the first process alone; every process gets the value it gave there."""
    with manager if is_first() else contextlib.nullcontext() as value:
        if world() > 1:
            box = [value]
            dist.broadcast_object_list(box, device=torch.device("cpu"))
            (value,) = box
        yield value


def load(load_model: Callable, device: torch.device):
    """load_model(device=...), or this process's share of its weights, on this process's device.

    The processes load in turn, and on the CPU: a GPU may be too small for the whole model. So the
    machine holds one whole model at a time besides the shares; not even that where --dtype is the
    file's own, since safetensors then maps the file and only the pages in use are read.
    """
    if world() == 1:
        return load_model(device=str(device))
    if device.type == "cuda" and world() > torch.cuda.device_count():
        raise InputError(f"{world()} processes but {torch.cuda.device_count()} GPUs", "torchrun",
                         "set --nproc-per-node to the number of GPUs")
    mesh = dist.init_device_mesh(device.type, (world(),))
    for turn in range(world()):
        if turn == rank():
            model = load_model(device="cpu")
            shard(model, mesh, device)
        _meet()
    return model


def shard(model, mesh, device: torch.device) -> None:
    """Cut the blocks' weights by rows, in place; LoRA is added after it and stays whole."""
    from torch.distributed.fsdp import fully_shard  # takes seconds, and one process needs it not

    decoder = model.model
    model.lm_head.to(device)
    if model.config.tie_word_embeddings:
        decoder.embed_tokens.weight = model.lm_head.weight
    else:
        fully_shard(decoder.embed_tokens, mesh=mesh)
        decoder.embed_tokens.set_unshard_in_backward(False)  # nothing is learned below it
    for block in decoder.layers:
        fully_shard(block, mesh=mesh)
    fully_shard(decoder, mesh=mesh, ignored_params={model.lm_head.weight})  # the last norm is left


def share(batches: list, idle) -> list:
    """This process's part of a step's batches, filled up with `idle` where others have one more."""
    mine = batches[rank()::world()]
    return mine + [idle] * (-(-len(batches) // world()) - len(mine))


def add_up(parameters, sums: torch.Tensor) -> None:
    """Gradients and sums become those of all processes, in place and in one exchange each."""
    if world() == 1:
        return
    gradients = [p.grad for p in parameters]
    flat = parameters_to_vector(gradients)
    dist.all_reduce(flat)
    vector_to_parameters(flat, gradients)
    dist.all_reduce(sums)
