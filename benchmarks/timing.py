"""Calls timed in turns, and the most memory that one call takes beyond what is held before.

A call that fails is reported with its reason and the others go on.
"""

import ctypes
import gc
import re
import time
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

import torch

from support.commandline import out_of_memory

WARM_UP = 2  # calls; the first ones compile


class Unavailable(Exception):
    """Why a rival cannot run here, in a few words."""


def why_not(error: Exception) -> str:
    """One line, without the folders of this machine."""
    if out_of_memory(error):
        return "out of memory"
    line = next(iter(str(error).splitlines()), "")
    kind = "" if isinstance(error, Unavailable) else f"{type(error).__name__}: "
    return re.sub(r"(/[\w.@+-]+)+/", "", kind + line)[:160]


def attempt(call):
    """(what it returns, None) or (None, why it failed)."""
    try:
        result = call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # a kernel's fault shows here, not in the next rival
        return result, None
    except Exception as error:  # other people's code may raise anything
        reason = why_not(error)
    if torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()
    return None, reason


def milliseconds(call, device) -> float:
    if device.type == "cpu":
        began = time.perf_counter()
        call()
        return (time.perf_counter() - began) * 1e3
    if torch.cuda.memory_reserved() > torch.cuda.mem_get_info()[1] / 2:
        torch.cuda.empty_cache()  # else a rival pays for freeing what another one left
    call()  # so that pools and caches are the rival's own
    began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    began.record()
    call()
    ended.record()
    ended.synchronize()
    return began.elapsed_time(ended)


def in_turns(names: Iterable[str], rounds: int) -> Iterator[tuple[int, str]]:
    """(round, name): each name once a round, each round another first, so that none always follows
    the same neighbour."""
    names = list(names)
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            yield turn, name


def take_turns(calls: dict, rounds: int, device) -> dict:
    """name -> {ms, p10, p90} or {reason}."""
    times, reasons = {name: [] for name in calls}, {}
    for name, call in calls.items():
        outcomes = [attempt(call)[1] for _ in range(WARM_UP)]
        reasons[name] = outcomes[-1]
    for _, name in in_turns(calls, rounds):
        if reasons[name] is None:
            took, reasons[name] = attempt(partial(milliseconds, calls[name], device))
            times[name].append(took)
    return {name: spread(times[name]) if reason is None else {"reason": reason}
            for name, reason in reasons.items()}


def spread(times: list[float]) -> dict:
    """Median and the range from the 10th to the 90th percentile, in ms."""
    quantiles = torch.tensor(times).quantile(torch.tensor([0.5, 0.1, 0.9])).tolist()
    return dict(zip(("ms", "p10", "p90"), (round(q, 4) for q in quantiles), strict=True))


def peak_growth(call, device) -> int | None:
    """Bytes by which one call peaks above what is held before; None where Linux does not tell."""
    for _ in range(WARM_UP):
        call()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize()
        held = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        return torch.cuda.max_memory_allocated() - held
    held = restarted_peak()
    if held is None:
        return None
    call()
    return resident("VmHWM") - held


def restarted_peak() -> int | None:
    """Bytes held now, from which Linux's record of the peak starts again; None where it cannot."""
    try:
        ctypes.CDLL(None).malloc_trim(0)  # freed memory that glibc keeps would hide new
        Path("/proc/self/clear_refs").write_text("5")
        return resident("VmRSS")
    except (OSError, AttributeError):
        return None


def resident(field: str) -> int:
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{field}:\s+(\d+) kB", status)[1]) * 1024


def copy_bandwidth(device) -> float:
    """Bytes a second of a large bf16 copy, read and written."""
    source = torch.empty(2**29, dtype=torch.bfloat16, device=device)
    target = torch.empty_like(source)
    ms = take_turns({"copy": lambda: target.copy_(source)}, 10, device)["copy"]["ms"]
    return 2 * source.numel() * source.element_size() / (ms / 1e3)
