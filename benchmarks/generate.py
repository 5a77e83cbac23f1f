"""New tokens a second of generate.py beside its peers, greedy and sampled.

    python benchmarks/generate.py --model FOLDER

Cases: prompts of one line each, the same behind a shared prefix, and a single prompt. Every answer
has its full length. All take turns, so that a disturbance falls on all of them. The floor is what
the machine's measured rates allow: at each step the weights are read once or multiplied with all
rows, whichever takes longer, and each distinct prompt token goes through the blocks once.
"""

import argparse
import os
import sys
from functools import partial
from pathlib import Path
from statistics import median
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # as in ptalign.py; read when torch is loaded

import torch

from benchmarks import report, shares, timing
from benchmarks.llama_cpp import Server
from benchmarks.script import exit_code
from generate import Sampling, generate, shared_prefix
from model import DTYPES, load_model, resolve_device
from support.commandline import Parser, names, number
from support.files import InputError, write_atomic, write_json
from support.progress import say
from tokenizer import Tokenizer

PACKAGES = ("torch", "transformers", "xllamacpp", "tokenizers")
CASES = ("plain", "prefix", "chat")
PREFIX = 800  # tokens
WORDS = 14  # of a prompt
SAMPLINGS = {"greedy": {}, "sampled": {"temperature": 1.0, "top_p": 0.95}}
PROFILED = ("ours", "transformers")
AIMS = {"plain sampled": 3.0, "prefix sampled": 8.0}  # times the rate of transformers


class Work(NamedTuple):
    """One case: what is to be continued, how far and how."""

    prompts: list[list[int]]
    new_tokens: int
    drawing: dict


# ---- the peers: (Work) -> None ----

def load_ours(options):
    """generate.generate, as `synth` and `eval` call it"""
    model, tokenizer = options.loaded, Tokenizer(options.model)
    tokenizer.eos_ids = frozenset()  # every answer has its full length

    def run(work: Work) -> None:
        sampling = Sampling(work.new_tokens, **work.drawing)
        done = generate(model, tokenizer, work.prompts, sampling, list(range(len(work.prompts))))
        assert all(c.n_tokens == work.new_tokens for c in done)

    return run


def load_transformers(options):
    """transformers' generate on one batch, padded on the left"""
    try:
        import transformers
    except ImportError as error:
        raise timing.Unavailable(f"{error.name} is not installed") from None
    model = transformers.AutoModelForCausalLM.from_pretrained(
        options.model, dtype=DTYPES[options.dtype]).to(options.device)

    def run(work: Work) -> None:
        longest = max(map(len, work.prompts))
        pads = [longest - len(prompt) for prompt in work.prompts]
        ids = torch.tensor([[0] * n + p for n, p in zip(pads, work.prompts, strict=True)])
        mask = torch.tensor([[0] * n + [1] * (longest - n) for n in pads])
        drawing = {"do_sample": True, "top_k": 0, **work.drawing} if work.drawing else {
            "do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        out = model.generate(ids.to(options.device), attention_mask=mask.to(options.device),
                             max_new_tokens=work.new_tokens, min_new_tokens=work.new_tokens,
                             pad_token_id=0, **drawing)
        assert out.shape[1] == longest + work.new_tokens

    return run


def load_server(options, kind: str):
    if options.device.type != "cpu":
        raise timing.Unavailable("xllamacpp's wheel on PyPI runs on a CPU only")
    longest = max(map(len, prompts_of("prefix", Tokenizer(options.model), options.rows)))
    server = Server(options.model, kind, slots=options.rows, context=longest + options.new_tokens)

    def run(work: Work) -> None:
        prefix = shared_prefix(work.prompts) if len(work.prompts) > 1 else 0
        done = server.complete(work.prompts, work.new_tokens, work.drawing, prefix)
        assert [len(row["tokens"]) for row in done] == [work.new_tokens] * len(work.prompts)

    return run


def load_llama_cpp(options):
    """llama.cpp's server (the wheel xllamacpp, built for AVX2, without AVX-512), weights in f16"""
    return load_server(options, "F16")


def load_llama_cpp_q8(options):
    """the same with weights in Q8_0: 8.5 bits each, so its answers are another model's"""
    return load_server(options, "Q8_0")


PEERS = {"ours": load_ours, "transformers": load_transformers, "llama.cpp": load_llama_cpp,
         "llama.cpp-q8": load_llama_cpp_q8}


# ---- what is measured ----

def prompts_of(case: str, tokenizer, rows: int) -> list[list[int]]:
    """Of README.md's words, token ids."""
    words = Path(__file__).resolve().parents[1].joinpath("README.md").read_text().split() * 3
    encode = partial(tokenizer.encode, special=False)
    plain = [encode(" ".join(words[i * 12: i * 12 + WORDS])) for i in range(rows)]
    prefix = encode(" ".join(words))[:PREFIX] if case == "prefix" else []
    return [prefix + prompt for prompt in plain[:1 if case == "chat" else rows]]


def rates(device, dtype) -> dict[str, float]:
    """Bytes and bf16 or fp32 operations a second that one large copy and product reach."""
    a, b = (torch.randn(1024, 2048, device=device).to(dtype) for _ in range(2))
    ms = timing.take_turns({"product": lambda: a @ b.T}, 10, device)["product"]["p10"]
    return {"bytes": timing.copy_bandwidth(device), "flops": 2 * 1024 * 1024 * 2048 / ms * 1e3}


def floor_seconds(work: Work, model, rate: dict[str, float]) -> float:
    head = model.lm_head.weight
    weights = sum(p.numel() for p in model.model.layers.parameters())
    P = shared_prefix(work.prompts) if len(work.prompts) > 1 else 0
    tokens = P + sum(len(prompt) - P for prompt in work.prompts)
    step = max((weights + head.numel()) * head.itemsize / rate["bytes"],
               2 * (weights + head.numel()) * len(work.prompts) / rate["flops"])
    return 2 * weights * tokens / rate["flops"] + work.new_tokens * step


def timed(call, device) -> tuple[float, float | None]:
    """(seconds, MiB by which the call peaked above what was held); of one run."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        held = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        seconds = timing.milliseconds(call, device) / 1e3
        return seconds, (torch.cuda.max_memory_allocated() - held) / 2**20
    held = timing.restarted_peak()  # without what the peer before it freed
    seconds = timing.milliseconds(call, device) / 1e3
    return seconds, None if held is None else (timing.resident("VmHWM") - held) / 2**20


def measure(case: str, kind: str, runs: dict, tokenizer, options) -> dict:
    work = Work(prompts_of(case, tokenizer, options.rows), options.new_tokens, SAMPLINGS[kind])
    short, taken = work._replace(new_tokens=2), {name: [] for name in runs}
    for run in runs.values():
        run(short)  # compiles and packs
    for turn, name in timing.in_turns(runs, options.rounds):
        taken[name].append(timed(partial(runs[name], work), options.device))
        say(f"{case} {kind}, round {turn + 1}: {name} {taken[name][-1][0]:.1f} s")
    tokens, rows = len(work.prompts) * work.new_tokens, {}
    floor = floor_seconds(work, options.loaded, options.rates)
    for name, results in taken.items():
        seconds = [s for s, _ in results]
        peaks = [mib for _, mib in results if mib is not None]
        rows[name] = {"s": median(seconds), "least": min(seconds), "most": max(seconds),
                      "tokens_a_second": tokens / median(seconds),
                      "MiB": max(peaks, default=None), "share": floor / median(seconds)}
    for name, row in rows.items():
        row["ours"] = row["s"] / rows["ours"]["s"] if "ours" in rows and name != "ours" else None
    return {"case": case, "sampling": kind, "rows": len(work.prompts),
            "new_tokens": work.new_tokens,
            "prompt_tokens": sum(map(len, work.prompts)), "floor_s": floor, "peers": rows,
            # Not of a prefix: the profiler's record of transformers outgrew 24 GiB of memory there.
            "shares": {name: shares.shares_of(partial(runs[name], work)) for name in PROFILED
                       if name in runs and options.device.type == "cpu" and case != "prefix"}}


def run(options) -> None:
    options.device, options.model = resolve_device(options.device), Path(options.model).expanduser()
    options.out = Path(options.out or f"results/speed/generate-{options.model.name}.json")
    for option, known in (("cases", CASES), ("only", PEERS)):
        if unknown := set(getattr(options, option)) - set(known):
            raise InputError("no such name", f"{min(unknown)!r} in --{option}",
                             f"use {', '.join(known)}")
    whole = {"model": options.model.name, "dtype": options.dtype,
             **report.machine(options.device, PACKAGES), "rounds": options.rounds}
    tokenizer, runs, whole["missing"] = Tokenizer(options.model), {}, {}
    options.loaded = load_model(options.model, device=str(options.device),
                                     dtype=options.dtype)
    options.rates = whole["rates"] = rates(options.device, DTYPES[options.dtype])
    for name in options.only:
        loaded, reason = timing.attempt(partial(PEERS[name], options))
        (whole["missing"] if reason else runs)[name] = reason or loaded
    whole["results"] = []
    options.out.parent.mkdir(parents=True, exist_ok=True)
    for case in options.cases:
        for kind in SAMPLINGS:
            whole["results"].append(measure(case, kind, runs, tokenizer, options))
            write_json(options.out, whole)  # a run cut short leaves what it has
            write_atomic(options.out.with_suffix(".md"), markdown(whole))
    print(markdown(whole), end="")


# ---- the report ----

def markdown(whole: dict) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in whole["versions"].items())
    rate = whole["rates"]
    lines = [f"# Generation on {whole['model']}, {whole['dtype']}", "",
             f"{whole['device']}, {whole['threads']} threads, load average {whole['load']:.2f} at "
             f"the start; {versions}; {whole['rounds']} rounds in turns; a copy runs at "
             f"{rate['bytes'] / 1e9:.1f} GB/s, a product at {rate['flops'] / 1e9:.0f} GFLOP/s."]
    if not whole["idle"]:
        lines += ["", "**The machine was not idle: these figures are disturbed.**"]
    lines += ["", "| case | | median s | least to most | new tokens/s | ours is | MiB | of floor |",
              "|---|---|--:|--:|--:|--:|--:|--:|"]
    for result in whole["results"]:
        name = f"{result['case']} {result['sampling']}"
        shape = f"{name}: {result['rows']} x {result['new_tokens']}"
        lines += [line(shape, name, *item) for item in result["peers"].items()]
    by_kind = {f"{name}, {result['case']} {result['sampling']}": own
               for result in whole["results"] for name, own in result["shares"].items()}
    if by_kind:
        lines += ["", shares.table(by_kind)]
    if whole["missing"]:
        lines += ["", "Not run: " + ", ".join(f"{n} ({why})" for n, why in
                                              whole["missing"].items()) + "."]
    lines += ["", *(f"- {name}: {' '.join(load.__doc__.split())}" for name, load in PEERS.items())]
    return "\n".join(lines) + "\n"


def line(shape: str, case: str, name: str, row: dict) -> str:
    ratio = "" if row["ours"] is None else f"{row['ours']:.2f}x"
    if name == "transformers" and ratio and case in AIMS:
        ratio += f" (aim {AIMS[case]:g}x)"
    cells = [shape, name, f"{row['s']:.2f}", f"{row['least']:.2f} to {row['most']:.2f}",
             f"{row['tokens_a_second']:.1f}", ratio, report.cell(row["MiB"], ".0f"),
             f"{row['share']:.0%}"]
    return f"| {' | '.join(cells)} |"


# ---- the command ----

def build_parser() -> argparse.ArgumentParser:
    parser = Parser(prog="generate.py", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--model", required=True, help="folder of a model that transformers reads as well")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto prefers a GPU")
    add("--dtype", choices=tuple(DTYPES), default="bfloat16", help="of the weights")
    add("--cases", type=names, default=",".join(CASES), help="of plain, prefix and chat")
    add("--rows", type=number(int, least=2), default=64, help="prompts of plain and prefix")
    add("--new-tokens", type=number(int, least=2), default=64, help="of each answer")
    add("--rounds", type=number(int, least=1), default=3, help="turns of each")
    add("--only", type=names, default=",".join(PEERS), help="peers to run")
    add("--out", help="JSON file, a table beside it (default: results/speed/generate-MODEL.json)")
    return parser


def main(argv: list[str] | None = None) -> int:
    return exit_code("generate", lambda: run(build_parser().parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
