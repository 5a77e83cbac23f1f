"""The loss divided by |P| of each step, as in train.py, or by its mean over the run, a constant.

    python benchmarks/divisor.py                                          # the organism
    python benchmarks/divisor.py --model FOLDER --data RUN/triplets.jsonl  # a real model

Prints the tables of results/divisor.md. A run on file (results/divisor.jsonl) is not made again;
the organism's data are the demo's, the real model's every fourth row is held out.
"""

import contextlib
import statistics
import sys
from pathlib import Path
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import itertools

import train
from benchmarks.demo_runs import DEMOS, N_DEV
from benchmarks.runs import MODEL, ROOT, command, commit, measure
from benchmarks.script import exit_code
from demo import TRAIN, commands, flags
from evals.report import markdown_table
from evals.texts import percent
from lora import load_adapter
from losses import POSITIVE, TOXIC, pt_loss_chunked
from model import load_model
from ptalign import Parser, names
from support.files import AppendLog, read_json, read_jsonl, sha256_file, write_jsonl
from support.progress import say
from tokenizer import Tokenizer
from triplets import encode, pack, read_triplets

WORK = ROOT / "runs" / "divisor"
LOG = ROOT / "results" / "divisor.jsonl"
DIVISORS = ("step", "run")  # |P| of the step, its mean over the run
SETTINGS = {"organism": [{**TRAIN, "batch-tokens": n} for n in ("640", "160")],
            "real": [{"epochs": "2", "batch-tokens": "512", "lr": "2e-4", "dtype": "bfloat16"},
                     {"epochs": "1", "batch-tokens": "128", "lr": "2e-4", "dtype": "bfloat16"}]}
SHOWN = ("bad sampled/harmless", "benign/right", "all/well-formed", "choice/sum")
HELD_OUT = 4  # every fourth row


@contextlib.contextmanager
def constant_divisor():
    """Inside it train.py divides the sums of every step by the mean |P| of the run's steps."""
    optimise, batch_loss = train.optimise, train.batch_loss

    def with_mean(model, plan, out, **options):
        mean = statistics.mean(positive_tokens(step) for step in plan)
        with patch.object(train, "batch_loss", lambda *args: batch_loss(*args[:-1], mean)):
            optimise(model, plan, out, **options)

    with patch.object(train, "optimise", with_mean):
        yield


def positive_tokens(step) -> int:
    return sum(len(example.positive) for batch in step for example in batch)


def steadiness(folder: Path, divisor: str) -> dict:
    """Of an adapter's log: what the tokens weighed in each step, and how its figures swing."""
    rows = [row for _, row in read_jsonl(folder / "metrics.jsonl")]
    settings = read_json(folder / "train_config.json")["settings"]
    mean = statistics.mean(row["positive_tokens"] for row in rows)
    by = [row["positive_tokens"] if divisor == "step" else mean for row in rows]
    rows = list(zip(rows, by, strict=True))
    weight = [settings["penalty"] * row["toxic_tokens"] / d for row, d in rows]
    # The log's loss is by the step's own |P|.
    loss = [row["loss"] * row["positive_tokens"] / d for row, d in rows]
    norms = [row["grad_norm"] for row, _ in rows]
    return {"steps": len(rows), "token": [mean / max(by), mean / min(by)],
            "ut_weight": [min(weight), max(weight)], "ut_weight_cv": spread(weight),
            "norm_cv": spread(norms), "loss_jitter": jitter(loss),
            "mle_jitter": jitter([row["mle"] for row, _ in rows]),
            "clipped": statistics.mean(norm > settings["clip"] for norm in norms)}


def spread(values: list[float]) -> float:
    """Coefficient of variation."""
    return statistics.stdev(values) / statistics.mean(values)


def jitter(values: list[float]) -> float:
    """The same of the noise about a falling curve: a difference of neighbours has it twice."""
    steps = [b - a for a, b in itertools.pairwise(values)]
    return (statistics.mean(s * s for s in steps) / 2) ** 0.5 / statistics.mean(values)


def held_out_losses(folder: str, adapter: Path, data: Path) -> dict[str, float]:
    """Nats a token of the positive and of the penalised toxic tokens."""
    model, tokenizer = load_model(folder, device="cpu", dtype="bfloat16"), Tokenizer(folder)
    load_adapter(model, adapter)
    sums, counts = {POSITIVE: 0.0, TOXIC: 0.0}, {POSITIVE: 0, TOXIC: 0}
    for triplet in read_triplets(data):
        batch = pack([encode(triplet, tokenizer, tokenizer.default_format, fine_grained=True,
                             with_toxic=True, context=model.config.max_position_embeddings)])
        _, rows = train.batch_loss(model, batch, pt_loss_chunked, 1.0, 1)
        for kind in sums:
            sums[kind] += float(rows[batch.kind == kind].sum())
            counts[kind] += int((batch.kind == kind).sum())
    return {"held-out mle": sums[POSITIVE] / counts[POSITIVE],
            "held-out ut": sums[TOXIC] / counts[TOXIC]}


def make(about: dict, settings: dict, folder: str, data: Path, held_out: Path | None) -> dict:
    """Train one adapter and measure it."""
    out = WORK / "-".join(map(str, about.values()))
    divided = constant_divisor() if about["divisor"] == "run" else contextlib.nullcontext()
    with divided:
        command("train", "--model", folder, "--data", str(data), *flags(settings), "--seed",
                str(about["seed"]), "--device", "cpu", "--out", str(out))
    if held_out:
        figures = held_out_losses(folder, out, held_out)
    else:
        hits = measure(out, "dev", N_DEV)
        figures = {figure: hits[figure][0] / hits[figure][1] for figure in SHOWN}
    return {"commit": commit(), "data_sha256": sha256_file(data),
            **steadiness(out, about["divisor"]), "figures": figures}


def split(data: Path) -> tuple[Path, Path]:
    """(rows to train on, held-out rows), under the ignored folder of runs."""
    WORK.mkdir(parents=True, exist_ok=True)
    rows = [row for _, row in read_jsonl(data)]
    parts = [row for n, row in enumerate(rows) if n % HELD_OUT], rows[::HELD_OUT]
    files = WORK / "rest" / "triplets.jsonl", WORK / "held-out" / "triplets.jsonl"
    for file, part in zip(files, parts, strict=True):
        file.parent.mkdir(exist_ok=True)
        write_jsonl(file, part, mode=0o600)
    return files


def table(rows: list[dict]) -> str:
    """A line for each model, batch and divisor: means over the seeds, with the range."""
    def cell(values, form):
        return f"{form(statistics.mean(values))} [{form(min(values))}, {form(max(values))}]"
    lines = []
    for key in dict.fromkeys((row["model"], row["batch_tokens"], row["divisor"]) for row in rows):
        of = [row for row in rows if key == (row["model"], row["batch_tokens"], row["divisor"])]
        form = percent if key[0] == "organism" else "{:.3f}".format
        ends = [f"{min(row[name][0] for row in of):.2f} to {max(row[name][1] for row in of):.2f}"
                for name in ("token", "ut_weight")]
        lines.append((str(key[1]), key[2], str(len(of)), *ends, *(
            cell([row[name] for row in of], "{:.2f}".format) for name in
            ("ut_weight_cv", "norm_cv", "loss_jitter", "mle_jitter")), *(
            cell([row["figures"][name] for row in of], form) for name in of[0]["figures"])))
    return markdown_table([
        ("tokens", "divisor", "seeds", "token weight", "UT weight", "its CV", "norm CV", "loss",
         "MLE", *rows[0]["figures"]), *lines])


def run(options) -> None:
    held_out = None
    if real := options.model is not None:
        data, held_out = split(Path(options.data))
    name = Path(options.model).name if real else "organism"
    with AppendLog(LOG) as log:
        for seed in map(int, options.seeds):
            if not real:
                data = DEMOS / str(seed) / "data" / "triplets.jsonl"
                command(*commands(DEMOS / str(seed), device="cpu", seed=seed)[0])
            for settings in SETTINGS["real" if real else "organism"]:
                for divisor in DIVISORS:
                    about = {"model": name, "batch_tokens": int(settings["batch-tokens"]),
                             "divisor": divisor, "seed": seed}
                    if not any(about.items() <= row.items() for row in log.rows):
                        log.append({**about, **make(about, settings, options.model or str(MODEL),
                                                    data, held_out)})
                        say(f"made {about}")
        rows = [row for row in log.rows if row["model"] == name]
    print(table(sorted(rows, key=lambda row: (-row["batch_tokens"], row["divisor"] == "run"))))


def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="divisor.py", description=__doc__.partition("\n")[0])
    parser.add_argument("--model", metavar="FOLDER", help="a real model (default: the organism)")
    parser.add_argument("--data", metavar="FILE", help="its triplets.jsonl")
    parser.add_argument("--seeds", type=names, default=["0", "1", "2", "3"])
    return exit_code("divisor", lambda: run(parser.parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
