"""Time and peak memory of a training step, ours beside transformers + peft and their fast heads.

    python benchmarks/train_step.py --model ~/.cache/ptalign/smollm2-135m-instruct
    python benchmarks/train_step.py --shape llama2-7b --only ours,peft     # random weights, a GPU

Forward, loss and backward of the same triplets on the same weights, LoRA of rank 16 on every linear
of a block; no optimizer. The rivals take turns. Before that their losses and gradients are compared
with the plain peer's. Tokens a second count the packed row's tokens, whoever computes more of them.
Shares are of a floor: the matrix products that no step can avoid, timed by themselves in the same
turns at the packed step's shapes: frozen linears, LoRA, attention under its causal mask, the head.
"""

import argparse
import contextlib
import json
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # as in ptalign.py; read when torch is loaded
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # transformers asks for nothing

import torch.nn.functional as F

from benchmarks import report, shares, timing
from benchmarks.script import exit_code
from benchmarks.shapes import SHAPES, config_folder
from benchmarks.step_floor import floors
from benchmarks.step_rivals import OTHER_LOSS, RANK, RIVALS, SEED, Setup, drawn_examples
from model import DTYPES, read_config, resolve_device
from support.commandline import Parser, names, number, out_of_memory
from support.files import InputError, write_atomic, write_json
from support.pairs import read_triplets
from support.progress import say
from tokenizer import Tokenizer
from triplets import Example, encode

CASES = "64/128/128x8,256/64/64x8"  # tokens of prompt, positive and toxic answer, triplets
PLAIN = "peft"  # whose loss is the others' measure
PROFILED = ("ours", PLAIN)
TOLERANCE = {"float32": 1e-5, "bfloat16": 1e-2}  # of the loss of ours, packed
PACKAGES = ("torch", "triton", "transformers", "peft", "trl", "liger-kernel", "cut-cross-entropy")
HEADER = """\
| | ms a step | p10 to p90 | tokens/s | times ours | peak MiB | share of floor \
| loss off by | gradients' cosine |
|---|--:|--:|--:|--:|--:|--:|--:|--:|"""


# ---- one case ----

def one_step(setup: Setup, forward):
    """Forward and backward; the gradients are left with the parameters."""
    loss = forward()
    if loss.requires_grad:  # ours has gone back already
        loss.backward()
    return loss.detach()


def one_pass(setup: Setup, forward) -> None:
    """What is timed, with nothing left behind."""
    one_step(setup, forward)
    setup.clear()


def check(name: str, setup: Setup, case: str, wanted: dict, options) -> tuple[dict, object]:
    """({loss, its difference, the gradients' cosine, peak MiB}, the rival's call), or {reason}."""
    forward, reason = timing.attempt(partial(RIVALS[name], setup))
    if reason is None:
        loss, reason = timing.attempt(partial(one_step, setup, forward))
    if reason is not None:
        setup.clear()
        return {"reason": reason}, None
    row = {"loss": loss.item()}
    if name not in OTHER_LOSS:
        gradient = setup.gradient(name)
        wanted.setdefault("loss", row["loss"])  # the plain peer is the first to be checked
        wanted.setdefault("gradient", gradient)
        row["off"] = abs(row["loss"] / wanted["loss"] - 1)
        row["cosine"] = float(F.cosine_similarity(gradient, wanted["gradient"], dim=0))
    else:
        setup.clear()
    peak, reason = timing.attempt(partial(peak_of, name, setup, forward, case, options))
    if reason is not None:
        return {"reason": reason}, None
    return row | {"MiB": None if peak is None else round(peak / 2**20, 1)}, forward


def whole_pass(name: str, setup: Setup, forward) -> None:
    """What is measured of memory. Ours is made anew in it: it holds its gradients, and a recording
    all that it takes, from step to step, while others take theirs in each."""
    one_pass(setup, RIVALS[name](setup) if name.startswith("ours") else forward)


def peak_of(name: str, setup: Setup, forward, case: str, options) -> int | None:
    """Bytes of one step. On a CPU in another process, where no earlier rival's pools hide them."""
    if setup.device.type == "cuda":
        return timing.peak_growth(partial(whole_pass, name, setup, forward), setup.device)
    source = (["--shape", options.shape] if options.shape else ["--model", str(options.model)])
    rows = (["--data", options.data, "--batch-tokens", str(options.batch_tokens)]
            if options.data else ["--cases", case])
    command = [sys.executable, __file__, "--memory", "--device", "cpu", "--only", name, *source,
               *rows, "--dtype", options.dtype]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        say(f"{name}: the process that measures its memory ended with {done.returncode}")
    return None if done.returncode else json.loads(done.stdout)


def measure(case: str, examples: list[Example], folder: Path, options) -> dict:
    setup = Setup(folder, bool(options.shape), options.device, options.dtype, examples)
    rows = {name: {"reason": "left out by --only"} for name in RIVALS}
    calls, wanted = {}, {}
    for name in sorted(options.only, key=lambda name: name != PLAIN):
        say(f"{case}: {name}")
        rows[name], forward = check(name, setup, case, wanted, options)
        if forward is not None:
            calls[name] = partial(one_pass, setup, forward)
    del wanted
    agree(rows, options.dtype)
    parts = floors(setup)
    timed = timing.take_turns({f"floor: {part}": call for part, (call, _) in parts.items()}
                              | {name: calls[name] for name in RIVALS if name in calls},
                              options.rounds, options.device)
    tokens = setup.packed.ids.numel()
    floor = {part: times * timed[f"floor: {part}"]["ms"] for part, (_, times) in parts.items()
             if "ms" in timed[f"floor: {part}"]}
    floor_ms = sum(floor.values()) if len(floor) == len(parts) else None
    for name, row in rows.items():
        row |= timed.get(name, {})
        if "ms" in row:
            row["tokens_per_second"] = tokens / row["ms"] * 1e3
            row["share"] = floor_ms and floor_ms / row["ms"]
            row["times_ours"] = row["ms"] / rows["ours"]["ms"] if "ms" in rows["ours"] else None
    return {"case": case, "triplets": len(examples), "tokens": tokens,
            "padded_tokens": setup.padded.ids.numel(), "scored": len(setup.packed.places),
            "floor_ms": floor_ms, "floor": floor, "rivals": rows,
            "shares": {name: shares.shares_of(calls[name]) for name in PROFILED
                       if options.device.type == "cpu" and "ms" in rows[name]}}


def agree(rows: dict, dtype: str) -> None:
    """InputError where ours and the plain peer are not the same step."""
    if "loss" in rows["ours"] and "loss" in rows[PLAIN]:
        off = rows["ours"]["off"]
        if not off <= TOLERANCE[dtype]:  # a NaN fails too
            raise InputError(f"ours and {PLAIN} differ in loss: {rows['ours']['loss']:.6g} and "
                             f"{rows[PLAIN]['loss']:.6g}", f"--dtype {dtype}", "report it")


# ---- the report ----

def table(result: dict) -> str:
    lines = ["### {case}: {triplets} triplets, {tokens} tokens packed ({padded_tokens} padded), "
             "{scored} scored".format(**result), "", HEADER]
    not_run = {}
    for name, row in result["rivals"].items():
        if "ms" not in row:
            not_run.setdefault(row["reason"], []).append(name)
            continue
        cells = [name, f"{row['ms']:.1f}", f"{row['p10']:.1f} to {row['p90']:.1f}",
                 f"{row['tokens_per_second']:.0f}", report.cell(row["times_ours"], ".2f"),
                 report.cell(row["MiB"], ".0f"), report.cell(row["share"], ".0%"),
                 report.cell(row.get("off"), ".1e"), report.cell(row.get("cosine"), ".5f")]
        lines.append(f"| {' | '.join(cells)} |")
    floor = ", ".join(f"{part} {ms:.1f}" for part, ms in result["floor"].items())
    lines += ["", f"Floor: {report.cell(result['floor_ms'], '.1f')} ms ({floor})."]
    if result["shares"]:
        lines += ["", shares.table(result["shares"]), ""]
    return "\n".join(lines + [f"Not run: {', '.join(group)} ({why})."
                              for why, group in not_run.items()])


def markdown(whole: dict) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in whole["versions"].items())
    top = [f"# A training step of {whole['model']}, {whole['dtype']}, on {whole['device']}", "",
           f"{versions}; {whole['threads']} threads, load average {whole['load']:.2f} at the "
           f"start; {whole['rounds']} rounds; LoRA of rank {RANK} on every linear of a block; "
           f"data: {whole['data']}."]
    if not whole["idle"]:
        top.append("**The machine was not idle: these figures are disturbed.**")
    legend = [f"- {name}: {' '.join(rival.__doc__.split())}" for name, rival in RIVALS.items()]
    return "\n\n".join(["\n".join(top), *map(table, whole["results"]), "\n".join(legend)]) + "\n"


# ---- the command ----

def lengths(case: str) -> tuple[int, int, int, int]:
    match = re.fullmatch(r"(\d+)/(\d+)/(\d+)x(\d+)", case)
    if not match or min(map(int, match.groups())) < 1 or int(match[3]) < 2:
        raise argparse.ArgumentTypeError(f"{case!r} is not PROMPT/POSITIVE/TOXICxTRIPLETS, tokens, "
                                         "at least 1/1/2x1")
    return tuple(map(int, match.groups()))


def cases(text: str) -> dict[str, tuple]:
    return {case: lengths(case) for case in names(text)}


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(prog="train_step.py", description=__doc__.split("\n")[0])
    add = parser.add_argument
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--model", help="folder of a model that transformers reads as well")
    source.add_argument("--shape", choices=tuple(SHAPES), help="random weights of this shape")
    add("--cases", type=cases, default=CASES,
        help="PROMPT/POSITIVE/TOXICxTRIPLETS in tokens, separated by commas; drawn at random")
    add("--data", help="a triplets.jsonl instead of the cases; --model's tokenizer reads it")
    add("--batch-tokens", type=number(int, least=1), default=2048,
        help="of --data as many rows as packed fit these")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto prefers a GPU")
    add("--dtype", choices=tuple(DTYPES), default="bfloat16", help="of the frozen weights")
    add("--rounds", type=number(int, least=1), default=10, help="turns of each rival")
    add("--only", type=names, default=",".join(RIVALS), help="rivals to run")
    add("--out", help="JSON file, a page beside it (default: results/speed/train-step-DEVICE.json)")
    add("--memory", action="store_true", help=argparse.SUPPRESS)  # see peak_of
    return parser


def read_examples(options) -> list[Example]:
    """The first rows of --data that packed fit --batch-tokens."""
    tokenizer, examples, room = Tokenizer(options.model), [], options.batch_tokens
    context = read_config(options.model).max_position_embeddings
    for triplet in read_triplets(Path(options.data)):
        example = encode(triplet, tokenizer, tokenizer.default_format, context=context)
        room -= example.tokens
        if room < 0:
            break
        examples.append(example)
    if not examples:
        raise InputError("the first row is longer", "--batch-tokens", "give more")
    return examples


def cases_of(options, V: int) -> dict[str, list[Example]]:
    if options.data:
        return {Path(options.data).name: read_examples(options)}
    return {case: drawn_examples(*sizes, V) for case, sizes in options.cases.items()}


def run(options) -> None:
    options.device = resolve_device(options.device)
    for name in options.only:
        if name not in RIVALS:
            raise InputError("no such name", f"{name!r} in --only", f"use {', '.join(RIVALS)}")
    if options.data and options.shape:
        raise InputError("a shape has no tokenizer", "--data with --shape", "give --model")
    options.model = options.model and Path(options.model).expanduser()
    with contextlib.ExitStack() as stack:
        folder = options.model or Path(stack.enter_context(config_folder(options.shape)))
        batches = cases_of(options, read_config(folder).vocab_size)
        if options.memory:
            (examples,) = batches.values()
            setup = Setup(folder, bool(options.shape), options.device, options.dtype, examples)
            (name,) = options.only
            call = partial(whole_pass, name, setup, RIVALS[name](setup))
            print(json.dumps(timing.peak_growth(call, options.device)))
            return
        measure_all(batches, folder, options)


def measure_all(batches: dict, folder: Path, options) -> None:
    out = Path(options.out or f"results/speed/train-step-{report.short_name(options.device)}.json")
    whole = {"model": options.shape or options.model.name, "dtype": options.dtype,
             **report.machine(options.device, PACKAGES), "rounds": options.rounds, "seed": SEED,
             "data": Path(options.data).name if options.data else "drawn tokens", "results": []}
    out.parent.mkdir(parents=True, exist_ok=True)
    for case, examples in batches.items():
        try:
            whole["results"].append(measure(case, examples, folder, options))
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            say(f"{case}: no memory for the model itself")
            continue
        print(table(whole["results"][-1]), end="\n\n", flush=True)
        # After each table, so that a run cut short leaves what it has.
        write_json(out, whole)
        write_atomic(out.with_suffix(".md"), markdown(whole))


def main(argv: list[str] | None = None) -> int:
    return exit_code("train_step", lambda: run(build_parser().parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
