r"""Training on several processes, one a GPU, of one machine or of several:

    torchrun --nproc-per-node 2 ptalign.py train --accumulate 2 ...
    torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29500 \
        ptalign.py train --accumulate 16 ...

The second line is given on each machine; all need the same model and data, and see the same
`--out`. The first process writes. torch's FSDP2 (arXiv 2304.11277) cuts the frozen base among all
and gathers a block's weights when it runs, so all run equally many micro-batches. LoRA and AdamW's
moments are whole and stay equal: all take the same step on the sum of their gradients. The head is
whole, because the loss reads its weight alone, and so is an embedding tied to it. Without torchrun
nothing here has effect."""

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


def world() -> int:  # the number of processes
    return dist.get_world_size() if dist.is_initialized() else 1


def is_first() -> bool:  # the one that writes and speaks for all
    return not dist.is_initialized() or dist.get_rank() == 0


@contextlib.contextmanager
def processes() -> Iterator[None]:
    """The processes that torchrun started work together inside this block, or end together."""
    # torchrun's own sign: a WORLD_SIZE alone may be left over from something else.
    if "TORCHELASTIC_RUN_ID" not in os.environ or os.environ["WORLD_SIZE"] == "1":
        yield
        return
    store, number, size = next(dist.rendezvous("env://"))
    progress.QUIET |= number > 0
    if cuda := torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
    dist.init_process_group(backend, store=store, rank=number, world_size=size)
    try:
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
    """For a process that has failed: the one that fails first tells why for all."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # torchrun repeats the terminal's Ctrl-C
    try:
        earlier = store.add("failed", 1) > 1
        if not torch.cuda.is_available():
            # Else the others would wait. With GPUs torchrun ends them: NCCL's own end may hang.
            dist.destroy_process_group()
        _wait_for_all(store, "failed")
        return earlier
    except dist.DistError:  # torchrun, which holds the store, has ended
        return os.environ["RANK"] != "0"


def _wait_for_all(store, event: str) -> None:
    """Until every process has counted itself, or 5 seconds are over: torchrun ends them all as
    soon as one has ended, also one that is still speaking."""
    end = time.monotonic() + 5
    while store.add(event, 0) < int(os.environ["WORLD_SIZE"]) and time.monotonic() < end:
        time.sleep(0.05)


@contextlib.contextmanager
def on_first(manager: contextlib.AbstractContextManager) -> Iterator:
    """Enter `manager` in the first process alone; every process gets the value it gave there."""
    with manager if is_first() else contextlib.nullcontext() as value:
        yield _of_first(value)


def _of_first(value):
    box = [value]
    if world() > 1:
        dist.broadcast_object_list(box, device=torch.device("cpu"))
    return box[0]


def agree(values: dict) -> None:
    """InputError in a process whose values are not the first one's: two machines may hold two
    files under one name, and the steps of each would pull the adapter another way."""
    first = _of_first(values)
    if unlike := [key for key in values if values[key] != first[key]]:
        raise InputError(f"this machine has another {', '.join(unlike)} than the first",
                         "torchrun --nnodes", "give all the same --model, --data and --out")


def load(load_model: Callable, device: torch.device):
    """load_model(device=...), or this process's share of its weights, cut by rows. A machine's
    processes load in turn and on the CPU: one whole model needs room there, and none on a GPU."""
    if world() == 1:
        return load_model(device=str(device))
    from torch.distributed.fsdp import fully_shard  # takes seconds, for nothing in one process

    here = int(os.environ["LOCAL_WORLD_SIZE"])  # processes of this machine
    if device.type == "cuda" and here > torch.cuda.device_count():
        raise InputError(f"{here} processes but {torch.cuda.device_count()} GPUs", "torchrun",
                         "set --nproc-per-node to the number of GPUs")
    mesh = dist.init_device_mesh(device.type, (world(),))
    largest = torch.tensor(here)  # a machine with fewer processes meets as often as the others
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    for turn in range(int(largest)):
        if turn == int(os.environ["LOCAL_RANK"]):
            model = load_model(device="cpu")
            decoder, head = model.model, model.lm_head.to(device)
            if model.config.tie_word_embeddings:
                decoder.embed_tokens.weight = head.weight
            else:
                fully_shard(decoder.embed_tokens, mesh=mesh)
                decoder.embed_tokens.set_unshard_in_backward(False)  # nothing is learned below it
            for block in decoder.layers:
                fully_shard(block, mesh=mesh)
            fully_shard(decoder, mesh=mesh, ignored_params={head.weight})  # the last norm is left
        _meet()
    return model


def share(batches: list, idle) -> list:
    """This process's part of a step's batches, filled up with `idle` where others have one more."""
    filled = [*batches, *[idle] * (-len(batches) % world())]
    return filled[dist.get_rank()::world()] if world() > 1 else batches


def add_up(parameters, sums: torch.Tensor) -> None:
    """Gradients and sums become those of all processes, in place and in one exchange each."""
    if world() > 1:
        gradients = [p.grad for p in parameters]
        flat = parameters_to_vector(gradients)
        dist.all_reduce(flat)
        vector_to_parameters(flat, gradients)
        dist.all_reduce(sums)
