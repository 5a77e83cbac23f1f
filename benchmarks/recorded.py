"""What a recording saves on a GPU: a training micro-batch and decoding, launched and replayed.

    python benchmarks/recorded.py --shapes smollm2,1.5b,llama2-7b

From random weights; no peer and no other package. Means over RUNS calls after three.
"""

import sys
import time
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks.script import exit_code
from benchmarks.shapes import SHAPES, config_folder, random_model
from benchmarks.step_rivals import Setup, drawn_examples, our_step
from generate import Batch, Row, Sampling
from model import read_config, resolve_device
from ptalign import Parser, names, number
from support.files import InputError

RUNS = 10
CASE = (64, 128, 128, 8)  # tokens of prompt, positive and toxic answer, triplets
PROMPT, NEW_TOKENS = 20, 64


def milliseconds(call) -> float:
    for _ in range(3):
        call()
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(RUNS):
        call()
    torch.cuda.synchronize()
    return (time.perf_counter() - began) / RUNS * 1e3


def steps(folder: Path, device) -> dict[str, float]:
    examples = drawn_examples(*CASE, read_config(folder).vocab_size)
    setup = Setup(folder, True, device, "bfloat16", examples)
    return {"training launched": milliseconds(our_step(setup, setup.packed, recorded=False)),
            "training replayed": milliseconds(our_step(setup, setup.packed))}


@torch.inference_mode()
def decoding(folder: Path, device, rows: int) -> dict[str, float]:
    model = random_model(folder, device=str(device), dtype="bfloat16")
    prompts = [[i % 1000] * PROMPT for i in range(rows)]
    batch = Batch(model, prompts, NEW_TOKENS, 0)
    tokenizer, sampling = SimpleNamespace(decode=str, eos_ids=()), Sampling(NEW_TOKENS)
    batch.admit([Row(prompt, 0, tokenizer, sampling) for prompt in prompts])
    for row in batch.rows:
        row.tokens.append(7)
    last = torch.tensor([[7, PROMPT]] * len(batch.rows), device=device)
    return {"decoding launched": milliseconds(lambda: batch.decode(last, batch.cache.slots)),
            "decoding replayed": milliseconds(batch.step)}


def run(argv) -> None:
    parser = Parser(prog="recorded.py", description=__doc__.split("\n")[0])
    parser.add_argument("--shapes", type=names, default="smollm2,1.5b,llama2-7b",
                        help=f"of {', '.join(SHAPES)}")
    parser.add_argument("--rows", type=number(int, least=1), default=64, help="decoded together")
    options = parser.parse_args(argv)
    device = resolve_device("auto")
    if device.type != "cuda":
        raise InputError("a CPU records nothing", "this machine", "run it where there is a GPU")
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, bf16, "
          f"{'/'.join(map(str, CASE[:3]))}x{CASE[3]} tokens a step, {options.rows} rows decoding\n")
    print("| shape | | ms launched | ms replayed | times |\n|---|---|--:|--:|--:|")
    for shape in options.shapes:
        if shape not in SHAPES:
            raise InputError("no such shape", f"--shapes {shape}", f"use {', '.join(SHAPES)}")
        with config_folder(shape) as name:
            times = steps(Path(name), device) | decoding(Path(name), device, options.rows)
        for what in ("training", "decoding"):
            slow, fast = times[f"{what} launched"], times[f"{what} replayed"]
            print(f"| {shape} | {what} | {slow:.1f} | {fast:.1f} | {slow / fast:.1f} |", flush=True)
        torch.cuda.empty_cache()


if __name__ == "__main__":
    sys.exit(exit_code("recorded", lambda: run(None)))
