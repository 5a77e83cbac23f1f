"""A base in bf16 and in nf4: size, error, training, evaluation and speed, side by side.

    python benchmarks/quantised.py --model MODEL --data RUN/triplets.jsonl --data-dir DATA

Writes results/speed/quantised.md. Both are trained and evaluated by the commands as a reader
would give them, below --work; a run that is on file there goes on or is read back, so the command
may be given again. Speeds are of an idle machine, or the page says that it was not.
"""

import json
import math
import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # as in ptalign.py; read when torch is loaded

import torch
import torch.nn.functional as F
from torch import nn

import ptalign
from benchmarks.report import machine
from benchmarks.script import exit_code
from benchmarks.timing import take_turns
from config import read_config
from evals.figures import columns_of
from evals.report import markdown_table
from evals.texts import interval
from forecast import forecast
from generate import Cache, next_logits
from lora import add_lora, block_linears
from losses import POSITIVE, pt_loss_chunked
from model import Transformer, load_model
from support.files import InputError, read_json, read_jsonl, write_atomic
from support.hub import model_folder
from support.pairs import read_triplets
from tokenizer import Tokenizer
from train import micro_step
from triplets import Example, encode, fill, pack

ABOUT = """\
    python benchmarks/quantised.py --model MODEL --data RUN/triplets.jsonl --data-dir DATA \\
        {options}

The linears of the blocks are held in NF4 with double quantisation ([nf4.py](../../support/nf4.py));
head, embedding and norms stay in bf16, and LoRA in fp32. The errors are those of the untrained base
on the data's texts. The forecast is that of `train --dry-run`, for micro-batches of the default
size."""
BASES = {"bf16": None, "nf4": "nf4"}
TEXTS = 32  # pairs whose tokens' logits are compared
SHOWN = ("declined", "byte", "harmless", "right")  # last parts of figures' keys
ANSWER = 64  # tokens of an answer: enough to see whether it declines
STEPS = 8  # of the training curve that the page has, spread over the run
BATCH = 512  # tokens of the micro-batch that is timed
EIGHT_B = {  # the shape of Llama 3 8B
    "model_type": "llama", "vocab_size": 128256, "hidden_size": 4096, "hidden_act": "silu",
    "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 8, "max_position_embeddings": 8192, "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0, "tie_word_embeddings": False}
ROWS, CONTEXT = (1, 32), 128  # of the decoding step that is timed: rows, tokens in the cache


def sizes(folder: Path) -> list[list[str]]:
    """Bytes a parameter, of the blocks' linears alone and of the whole model."""
    rows, whole = [], 0
    for name, base in BASES.items():
        model = load_model(folder, device="cpu", dtype="bfloat16", base_dtype=base)
        linears = [m for m in model.model.modules() if isinstance(m, nn.Linear)]
        weights = sum(m.in_features * m.out_features for m in linears)
        held = sum(p.nbytes for m in linears for p in m.parameters() if p is not m.bias)
        stored = {p.data_ptr(): p.nbytes for p in model.parameters()}  # a tied head once
        whole = whole or sum(stored.values()) / 2  # parameters: bf16 comes first
        rows.append([name, f"{held / weights:.3f}", f"{sum(stored.values()) / whole:.3f}",
                     f"{sum(stored.values()) / 2**20:.1f}"])
    return rows


def forecasts() -> dict[str, dict[bool, float]]:
    """{base: {activations recomputed?: GB}} that training an 8B model would take of a GPU, by the
    forecast of `train --dry-run`: LoRA of rank 16, the loss in Triton."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(EIGHT_B))
        config = read_config(Path(folder))
    with torch.device("meta"):
        targets = block_linears(Transformer(config))
    batch = [Example([5] * 64, [6] * 128, [7] * 128, [1] * 128)] * 12  # 3,816 tokens
    return {name: {recomputed: forecast(
        config, batch, targets=targets, rank=16, dtype="bfloat16", base_dtype=base, loss="triton",
        device=torch.device("cuda"), gradient_checkpointing=recomputed
        ).total(torch.device("cuda")) / 1e9 for recomputed in (True, False)}
        for name, base in BASES.items()}


def examples_of(folder: Path, data: Path) -> list[Example]:
    """Of the first pairs, as they are trained on."""
    tokenizer = Tokenizer(folder)
    return [encode(t, tokenizer, tokenizer.default_format, context=2**20)
            for t in read_triplets(data)[:TEXTS]]


@torch.no_grad()
def errors(folder: Path, examples: list[Example]) -> list[list[str]]:
    """Against the model in fp32, at the scored tokens of the first pairs: what rounding does to the
    logits and to the distribution over the next token."""
    models = {name: load_model(folder, device="cpu", base_dtype=base,
                               dtype="float32" if name == "fp32" else "bfloat16")
              for name, base in {"fp32": None, **BASES}.items()}
    sums = {name: torch.zeros(3, dtype=torch.float64) for name in BASES}
    squares = tokens = 0
    for example in examples:  # one at a time: the logits of all would take gigabytes
        batch = pack([example])
        logits = {}
        for name, model in models.items():
            hidden = model.model(batch.ids, batch.positions, batch.attend).flatten(0, 1)
            z = model.lm_head(hidden[batch.places]).float()
            logits[name] = z - z.mean(-1, keepdim=True)  # a shift of all logits changes nothing
        exact = logits.pop("fp32")
        squares, tokens = squares + float(exact.norm() ** 2), tokens + len(exact)
        for name, found in logits.items():
            kl = F.kl_div(found.log_softmax(-1), exact.log_softmax(-1), log_target=True,
                          reduction="sum")
            same = (found.argmax(-1) == exact.argmax(-1)).sum()
            sums[name] += torch.tensor([(found - exact).norm() ** 2, kl, same])
    return [[name, f"{math.sqrt(off / squares):.4f}", f"{kl / tokens:.4f}", f"{same / tokens:.1%}"]
            for name, (off, kl, same) in ((name, row.tolist()) for name, row in sums.items())]


def run_commands(options, name: str) -> tuple[list[dict], dict]:
    """(train's log, eval's results) of one base, made by the commands or read back."""
    common = ["--model", options.model, "--device", "cpu", "--dtype", "bfloat16", "--seed", "0"]
    common += ["--base-dtype", BASES[name]] if BASES[name] else []
    adapter, out = options.work / f"adapter-{name}", options.work / f"eval-{name}"
    train = ["train", *common, "--data", options.data, "--lr", options.lr, "--epochs",
             options.epochs, "--out", adapter]
    evaluate = ["eval", *common, "--adapter", adapter, "--tasks", options.tasks, "--out", out]
    evaluate += ["--sets", options.sets, "--max-new-tokens", ANSWER] * ("refusal" in options.tasks)
    evaluate += ["--data-dir", options.data_dir] if options.data_dir else []
    evaluate += ["--limit", options.limit] if options.limit else []
    for argv in (train, evaluate):
        if code := ptalign.main([str(word) for word in argv]):
            raise InputError(f"{argv[0]} ended with exit code {code}", f"--work {options.work}",
                             "see its message")
    return [row for _, row in read_jsonl(adapter / "metrics.jsonl")], read_json(
        out / "results.json")


def curves(logs: dict[str, list[dict]]) -> list[list[str]]:
    """Steps spread over the run; both bases see the same micro-batches."""
    steps = len(logs["bf16"])
    shown = sorted({round(i * (steps - 1) / (STEPS - 1)) for i in range(STEPS)})
    return [[str(i + 1), *(f"{logs[name][i][kind]:.3f}" for kind in ("mle", "ut")
                           for name in BASES)] for i in shown]


def figures(results: dict[str, dict]) -> list[list[str]]:
    """Of the base and of the tuned model, in either dtype, with 95 % intervals by Wilson."""
    columns = columns_of("one adapter")
    by_key = {name: {f["key"]: f for f in found["figures"]} for name, found in results.items()}
    return [[key, str(by_key["bf16"][key]["n"]), *(
        interval(figure["rate"], figure["wilson_95"]) for column in columns for name in BASES
        for figure in [by_key[name][key][column]])]
        for key in by_key["bf16"] if key.rsplit("/")[-1] in SHOWN]


@torch.inference_mode()
def reading(folder: Path, rounds: int) -> list[list[str]]:
    """Milliseconds of a decoding step, all rows at once, and of reading a prompt."""
    calls, prompt = {}, [[i % 200 + 5 for i in range(CONTEXT)]]
    for name, base in BASES.items():
        model = load_model(folder, device="cpu", dtype="bfloat16", base_dtype=base)
        calls[f"{name}, prompt"] = lambda model=model: next_logits(model, prompt, 0)
        for n in ROWS:
            cache = Cache(model.config, n, CONTEXT + 1, device="cpu", dtype=torch.bfloat16)
            ids = torch.full((n, 1), 7)
            places = torch.full((n, 1), CONTEXT)
            calls[f"{name}, {n}"] = lambda model=model, ids=ids, places=places, cache=cache: (
                model.lm_head(model.model(ids, places, cache)))
    ms = take_turns(calls, rounds, torch.device("cpu"))
    kinds = [f"prompt of {CONTEXT} tokens", *(f"step of {n} rows" for n in ROWS)]
    return [[kind, *(f"{ms[f'{name}, {key}']['ms']:.1f}" for name in BASES)]
            for kind, key in zip(kinds, ("prompt", *ROWS), strict=True)]


def training(folder: Path, examples: list[Example], rounds: int) -> list[list[str]]:
    """Milliseconds of one packed micro-batch of LoRA training, forward and backward."""
    batch, calls = pack(fill(examples, BATCH)[0]), {}
    for name, base in BASES.items():
        model = load_model(folder, device="cpu", dtype="bfloat16", base_dtype=base)
        add_lora(model, None, rank=8, alpha=16)
        take = micro_step(model, pt_loss_chunked, 0.4)
        calls[name] = lambda take=take: take(batch, int((batch.kind == POSITIVE).sum()))
    ms = take_turns(calls, rounds, torch.device("cpu"))
    return [[f"training, {batch.ids.numel()} tokens", *(f"{ms[name]['ms']:.1f}" for name in BASES)]]


def about(options) -> str:
    """The command of the page, with what decides its figures."""
    given = {"epochs": options.epochs, "lr": f"{options.lr:g}", "limit": options.limit}
    return ABOUT.format(options=" ".join(f"--{name} {value}" for name, value in given.items()
                                         if value is not None))


def page(options, folder: Path) -> str:
    here = machine(torch.device("cpu"), ("torch",))
    bases = list(BASES)
    examples = examples_of(folder, Path(options.data))
    timed = (reading(folder, options.rounds)
             + training(folder, examples, options.rounds))  # before the runs warm the machine
    runs = {name: run_commands(options, name) for name in BASES}
    logs, results = ({name: run[i] for name, run in runs.items()} for i in (0, 1))
    columns = [f"{column}, {name}" for column in ("base", "tuned") for name in BASES]
    versions = ", ".join(f"{name} {version}" for name, version in here["versions"].items())
    tables = {
        "Size": (["", "bytes a parameter of the blocks", "of the whole model", "MiB"],
                 sizes(folder)),
        "Error of the logits, against fp32": (
            ["", "relative error", "KL, nats", "same likeliest token"],
            errors(folder, examples)),
        "Training, nats a token": (["step", *(f"{kind}, {name}" for kind in ("mle", "ut")
                                              for name in BASES)], curves(logs)),
        "Evaluation, %": (["figure", "n", *columns], figures(results)),
        "Speed, ms": (["", *bases], timed)}
    tables["Memory that an 8B model would take of a GPU in training, forecast, GB"] = (
        ["", "activations recomputed", "kept"],
        [[name, *(f"{own[recomputed]:.1f}" for recomputed in (True, False))]
         for name, own in forecasts().items()])
    top = [f"# {options.name or Path(options.model).name} in bf16 and in nf4", "",
           about(options), "", f"{here['device']}, {here['threads']} threads; {versions}. Data: "
           f"{len(read_triplets(Path(options.data)))} rows, {options.epochs} epochs, lr "
           f"{options.lr}, seed 0. Answers have at most {ANSWER} tokens; their figures stand with "
           "Wilson's 95 % intervals.", ""]
    if not here["idle"]:
        top += [f"**The machine was not idle (load average {here['load']}): the speeds are "
                "disturbed.**", ""]
    for title, (head, rows) in tables.items():
        top += [f"## {title}", "", markdown_table([head, *rows]), ""]
    return "\n".join(top)


def build_parser() -> ptalign.Parser:
    parser = ptalign.Parser(prog="quantised.py", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--model", required=True, help="folder or hub id")
    add("--name", help="of the model on the page (default: its folder's)")
    add("--data", required=True, help="triplets to train on, and whose logits are compared")
    add("--data-dir", help="folder of benchmark .jsonl files")
    add("--tasks", default="hhh,refusal", help="of eval")
    add("--sets", default="strongreject,self_instruct",
        help="of the task refusal; the default ones are for development")
    add("--limit", type=ptalign.count, help="prompts of a benchmark")
    add("--epochs", type=ptalign.count, default=3, help="passes over the data")
    add("--lr", type=ptalign.rate, default=3e-4, help="peak")
    add("--rounds", type=ptalign.count, default=5, help="of the timing")
    add("--work", type=Path, default=Path("runs/quantised"), help="folder of the runs")
    add("--out", type=Path, default=Path("results/speed/quantised.md"), help="page to write")
    return parser


def run(argv: list[str] | None) -> None:
    options = build_parser().parse_args(argv)
    text = page(options, model_folder(options.model))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(options.out, text)
    print(text)


if __name__ == "__main__":
    sys.exit(exit_code("quantised", lambda: run(None)))
