"""Time, peak memory and error of the loss head, forward and backward, ours beside its rivals.

    python benchmarks/head.py                               # all sizes, on a GPU if there is one
    python benchmarks/head.py --sizes smollm2 --rows 1024 --only naive,ours

From hidden (N, D), a frozen head (V, D), targets, kind and weight to the loss and d loss/d hidden.
The rivals take turns, so that a disturbance falls on all of them; shares are of a floor, the two
matrix products alone, timed in the same turns.

Letters: N scored rows, D hidden size, V vocabulary.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # as in ptalign.py; read when torch is loaded

import torch

from benchmarks import cases, report, rivals, timing
from benchmarks.script import exit_code
from model import DTYPES, read_config, resolve_device
from support.commandline import Parser, names, number, out_of_memory
from support.files import InputError, write_atomic, write_json
from support.progress import say

RIVALS = {  # in the table's order; their docstrings say what each is and whether it clamps
    "naive-all": rivals.naive_every_row,
    "naive": rivals.naive,
    "compile": rivals.compiled,
    "torch-ce": rivals.torch_linear_ce,
    "trl": rivals.trl_chunks,
    "cce-compile": rivals.cce_compiled,
    "cce": rivals.cce,
    "cce-exact": rivals.cce_exact,
    "liger": rivals.liger,
    "liger-16": rivals.liger_16,
    "liger-torch": rivals.liger_and_torch,
    "quack": rivals.quack,
    "ours": rivals.ours,
    "ours-triton": rivals.ours_triton,
    "ours-flash": rivals.ours_flash,
}
SIZES = {  # D, V
    "smollm2": (576, 49152),  # SmolLM2-135M
    "llama2": (4096, 32000),  # Llama-2-7B
    "llama3": (4096, 128256),  # Llama-3-8B
    "qwen3-8b": (4096, 151936),  # Qwen3-8B; TRL's issue 7244 has figures of it on an H100
    "toy": (64, 1000),  # to try the script itself
}
REAL_SIZES = [name for name in SIZES if name != "toy"]
GPU_ROWS = [1024, 2048, 4096, 8192, 16384, 32768]
SWEEP_ROWS = [8192]
FLOOR_CHUNK = 2048  # rows of the GPU's second floor
SWEPT = {"MAX_ROWS": (512, 1024, 2048, 4096), "BLOCK": (4096, 8192, 16384, 32768),
         "WARPS": (8, 16, 32)}
SWEPT_FLASH = {"BLOCK_M": (64, 128), "BLOCK_N": (32, 64, 128), "WARPS": (4, 8), "STAGES": (2, 3)}


# ---- one size and N ----

def step(loss_of, case):
    """Forward and backward; the gradient is left in case.hidden.grad."""
    loss = loss_of(*case)
    loss.backward()
    return loss


def one_pass(loss_of, case) -> None:
    """What is timed and whose peak is measured, with nothing left behind."""
    step(loss_of, case)
    case.hidden.grad = None


def draw(size: str, N: int, options) -> cases.Case:
    dtype = DTYPES[options.dtype]
    if options.model:
        return cases.of_model(options.model, N, options.device, dtype)
    return cases.synthetic(*SIZES[size], N, options.device, dtype)


def rows_for(name: str, every: cases.Case, scored: cases.Case) -> cases.Case:
    return every if name == "naive-all" else scored


def check(name: str, case, exact, size: str, options) -> dict:
    """{dX error, peak MiB} of a rival, or {reason}."""
    loss, reason = timing.attempt(partial(step, RIVALS[name], case))
    row = {"error": None}
    if reason is None and RIVALS[name] not in rivals.MLE_ONLY:
        error = cases.error_of(case.hidden.grad, case.kind, exact)
        finite = bool(torch.isfinite(loss)) and error < float("inf")
        row["error"] = float(f"{error:.3g}") if finite else "not finite"
    case.hidden.grad = None
    if reason is None:
        peak, reason = timing.attempt(partial(peak_of, name, case, size, options))
        row["MiB"] = None if peak is None else round(peak / 2**20, 1)
    return row if reason is None else {"reason": reason}


def peak_of(name: str, case, size: str, options) -> int | None:
    """Bytes of one pass. On a CPU another process, where no earlier rival's pools hide them."""
    if options.device.type == "cuda":
        return timing.peak_growth(partial(one_pass, RIVALS[name], case), options.device)
    source = ["--model", str(options.model)] if options.model else ["--sizes", size]
    command = [sys.executable, __file__, "--memory", "--device", "cpu", "--only", name, *source,
               "--rows", str(len(case.hidden) // (1 + (name == "naive-all"))),
               "--dtype", options.dtype]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        say(f"{name}: the process that measures its memory ended with {done.returncode}")
    return None if done.returncode else json.loads(done.stdout)


def measure(size: str, N: int, options) -> dict:
    every = draw(size, N, options)
    case = cases.scored(every)
    exact, p = cases.truth(case)
    torch.compiler.reset()  # a second shape would be compiled for all shapes, which is slower
    rows = {name: {"reason": "left out by --only"} for name in RIVALS}
    for name in options.only:
        say(f"{size} N={N}: {name}")
        rows[name] = check(name, rows_for(name, every, case), exact, size, options)
    chunks = {"all rows": N}
    if options.device.type == "cuda" and N > FLOOR_CHUNK:
        chunks[f"{FLOOR_CHUNK} rows at a time"] = FLOOR_CHUNK
    floors = {f"two products, {text}": rivals.two_products(case.hidden, case.head, chunk=chunk)
              for text, chunk in chunks.items()}
    calls = {name: partial(one_pass, RIVALS[name], rows_for(name, every, case))
             for name in RIVALS if "reason" not in rows[name]}
    timed = timing.take_turns(floors | calls, options.rounds, options.device)
    floor = min((timed[name]["ms"] for name in floors if "ms" in timed[name]), default=None)
    for name, row in rows.items():
        row |= timed.get(name, {})
        if floor and "ms" in row:
            row["share"] = round(floor / row["ms"], 4)
    V, D = case.head.shape
    return {"size": size, "N": N, "D": D, "V": V, "dtype": options.dtype,
            "p": {"least": p.min().item(), "most": p.max().item(),
                  "above_99": (p > 0.99).double().mean().item(),
                  "below_1": (p < 0.01).double().mean().item()},
            "floor_ms": floor, "floors": {name: timed[name] for name in floors}, "rivals": rows}


# ---- block sizes of our kernels ----

def with_constants(changes: dict, call):
    """A call with other module constants, {module: {name: value}}, which are put back."""
    before = {module: {name: getattr(module, name) for name in changes[module]}
              for module in changes}
    try:
        for module, constants in changes.items():
            vars(module).update(constants)
        return call()
    finally:
        for module, constants in before.items():
            vars(module).update(constants)


def grid(choices: dict) -> list[dict]:
    return [dict(zip(choices, values, strict=True))
            for values in itertools.product(*choices.values())]


def sweep(size: str, N: int, options) -> dict:
    from kernels import chunked, flash_head, rows
    case, calls = cases.scored(draw(size, N, options)), {}

    def add(form: str, loss_of, settings: dict, changes: dict):
        label = ", ".join(f"{name} {value}" for name, value in settings.items())
        call = partial(one_pass, lambda *given: loss_of(*given)[0], case)
        calls[f"{form}: {label}"] = partial(with_constants, changes, call)

    unbounded = partial(chunked.pt_loss_chunked, budget=2**60)  # MAX_ROWS alone sets the chunk
    for settings in grid(SWEPT):
        of_rows = {name: settings[name] for name in ("BLOCK", "WARPS")}
        add("chunked", unbounded, settings,
            {chunked: {"MAX_ROWS": settings["MAX_ROWS"]}, rows: of_rows})
    if flash_head.fits(case.hidden):
        for settings in grid(SWEPT_FLASH):
            add("flash", flash_head.pt_loss_flash, settings, {flash_head: settings})
    V, D = case.head.shape
    timed = timing.take_turns(calls, options.rounds, options.device)
    fastest_first = sorted(timed, key=lambda name: timed[name].get("ms", float("inf")))
    return {"size": size, "N": N, "D": D, "V": V, "dtype": options.dtype, "floors": {},
            "rivals": {name: timed[name] for name in fastest_first}}


# ---- the command ----

def counts(text: str) -> list[int]:
    return [number(int, least=1)(count) for count in names(text)]


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(prog="head.py", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto prefers a GPU")
    add("--sizes", type=names, help=f"of {', '.join(SIZES)} (default: all but toy)")
    add("--rows", type=counts, help="scored rows N, separated by commas (default: by device)")
    add("--dtype", choices=tuple(DTYPES), default="bfloat16", help="of hidden and head")
    add("--rounds", type=number(int, least=1), default=10, help="turns of each rival")
    add("--only", type=names, default=",".join(RIVALS), help="rivals to run")
    add("--sweep", action="store_true", help="time our kernels' block sizes instead (GPU)")
    add("--model", help="folder: its hidden states on README.md, not synthetic ones")
    add("--out", help="JSON file, a table beside it (default: head- or sweep-DEVICE.json in "
                      "results/speed)")
    add("--memory", action="store_true", help=argparse.SUPPRESS)  # see peak_of
    return parser


def resolve(options) -> None:
    """Defaults that depend on other options; refuses what cannot be."""
    options.device = resolve_device(options.device)
    for option, known in (("sizes", SIZES), ("only", RIVALS)):
        for name in getattr(options, option) or []:
            if name not in known:
                raise InputError("no such name", f"{name!r} in --{option}",
                                 f"use {', '.join(known)}")
    if options.sweep and options.device.type == "cpu":
        raise InputError("our kernels' blocks are a GPU's", "--sweep", "run it where there is one")
    if options.model:
        config = read_config(Path(options.model))
        shape = config.hidden_size, config.vocab_size
        for name in options.sizes or []:
            if SIZES[name] != shape:
                raise InputError(f"the model is {shape}", f"--sizes {name}", "leave --sizes out")
        options.sizes = [Path(options.model).name]
    options.sizes = options.sizes or REAL_SIZES
    stem = "sweep" if options.sweep else "head"
    device = report.short_name(options.device)
    options.out = Path(options.out or f"results/speed/{stem}-{device}.json")


def default_rows(size: str, options) -> list[int]:
    if options.device.type == "cuda":
        return SWEEP_ROWS if options.sweep else GPU_ROWS
    large = {"llama2": [512, 1024], "llama3": [512], "qwen3-8b": [512]}
    return large.get(size, [512, 1024, 2048])


def run(options) -> None:
    resolve(options)
    if options.memory:
        name, size = options.only[0], options.sizes[0]
        every = draw(size, options.rows[0], options)
        case = rows_for(name, every, cases.scored(every))
        print(json.dumps(timing.peak_growth(partial(one_pass, RIVALS[name], case), options.device)))
        return
    whole = report.about(options)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    legend = {name: RIVALS[name].__doc__ for name in options.only if not options.sweep}
    for size in options.sizes:
        for N in options.rows or default_rows(size, options):
            try:
                whole["results"].append((sweep if options.sweep else measure)(size, N, options))
            except (MemoryError, RuntimeError) as error:
                if not out_of_memory(error):
                    raise
                say(f"{size} N={N}: no memory for the rows themselves")
                continue
            print(report.table(whole["results"][-1], whole["bandwidth"]), end="\n\n", flush=True)
            # After each table, so that a run cut short leaves what it has.
            write_json(options.out, whole)
            write_atomic(options.out.with_suffix(".md"), report.markdown(whole, legend))


def main(argv: list[str] | None = None) -> int:
    return exit_code("head", lambda: run(build_parser().parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
