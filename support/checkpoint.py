"""The state of a training run on disk, in one atomic safetensors file, and the logs beside it."""

import contextlib
import time
from pathlib import Path

import torch
from safetensors.torch import save

from support import distributed
from support.files import AppendLog, open_safetensors, refusing, write_atomic, write_jsonl
from support.weights import check_finite


def open_log(path: Path, done: int):
    """The log in the first process, None in the others. Rows past the checkpoint belong to
    steps that will be made again: they are dropped."""
    if not distributed.is_first():
        return contextlib.nullcontext()
    with AppendLog(path) as log:
        kept = [row for row in log.rows if row["step"] <= done] if done else []
    write_jsonl(path, kept)
    return AppendLog(path)


# A checkpoint that took over a second waits until 20 times as long has gone by. An 8B model's
# adapter takes as long as ten steps on a GPU.
SAVING = 20


def is_worth_it(saved: float, seconds: float) -> bool:
    """Is a new checkpoint due, `seconds` being what the last one took, at the time `saved`?"""
    return seconds < 1 or time.monotonic() - saved > SAVING * seconds


def save_checkpoint(path: Path, step: int, parameters, optimizer) -> tuple[float, float]:
    """Adapter, AdamW's moments and the step; returns when it was done and the seconds it took."""
    began = time.monotonic()
    # Everything that a step changes: nothing is drawn, so there is no generator to keep.
    tensors = {f"{name}|{key}": value.detach().cpu() for name, p in parameters.items()
               for key, value in {"value": p.data, **optimizer.state[p]}.items()}
    path.parent.mkdir(exist_ok=True)
    # In one file: a kill leaves the old state or the new one, never a mixture.
    write_atomic(path, save(tensors, metadata={"step": str(step)}))
    saved = time.monotonic()
    return saved, saved - began


def restore(path: Path, parameters, optimizer, steps: int) -> int:
    """How many of the steps are done; parameters and moments are put back. InputError for what
    save_checkpoint cannot have written in a run of so many steps."""
    if not path.exists():
        return 0
    fresh = "start with --fresh"
    # KeyError where the step is missing, TypeError where there is no metadata. A tensor that is
    # missing is an error of open_safetensors.
    with (refusing((KeyError, TypeError, ValueError), "damaged checkpoint", path, fresh),
          open_safetensors(path, kind="checkpoint", remedy=fresh) as file):
        done = int(file.metadata()["step"])
        if not 0 < done <= steps:
            raise ValueError(f"step {done} of {steps}")
        for name, p in parameters.items():
            kept = {key: file.get_tensor(f"{name}|{key}")
                    for key in ("value", "exp_avg", "exp_avg_sq")}  # of A or B, fp32
            for key, tensor in kept.items():
                check_finite(tensor, f"{name}|{key}", path, fresh)
                if tensor.shape != p.shape:  # copy_ would spread it
                    raise ValueError(f"{name}|{key} has another shape")
            p.data.copy_(kept.pop("value"))
            # AdamW keeps its count of steps on the CPU, its moments beside the parameter.
            optimizer.state[p] = {"step": torch.tensor(float(done)),
                                  **{key: moment.to(p.device) for key, moment in kept.items()}}
        return done
