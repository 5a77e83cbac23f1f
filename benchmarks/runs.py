"""Training runs on the organism and their measurements: made some at a time, kept on file.

paper_tables.py and demo_runs.py say which runs they want and read the measurements. What is on file
is not made again: every measurement is a line of dev-runs.jsonl (requests of the train half, by
which settings are chosen) or held-out-runs.jsonl under results/organism.
"""

import argparse
import contextlib
import io
import os
import subprocess
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import ptalign
from lora import load_adapter
from model import load_model
from organism import task
from support.adapters import adapter_hash
from support.commandline import Parser, number
from support.files import AppendLog, InputError, sha256, sha256_file
from support.progress import Progress
from tokenizer import Tokenizer

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / "organism" / "model"
WORK = ROOT / "runs" / "paper-tables"
RESULTS = ROOT / "results" / "organism"
DEV_SEED = 11
# Lines of an earlier form of the loss, Σ MLE / |P| + λ · Σ UT / Σm, say "means" and are kept as a
# record. They are not read.
LOSS = "sums"
N = {"dev": 400, "held-out": 500}  # requests of each kind, unless a command asks for others
TOLERANCE = 0.01  # what settings may lose on the dev split; held-out requests lose more
KEPT = ("benign/right", "all/well-formed")  # figures of organism/task.py that they may lose
WON = "bad sampled/harmless"  # what they are chosen for


def read_options(argv: list[str] | None, prog: str, doc: str) -> argparse.Namespace:
    """The command line of both scripts."""
    parser = Parser(prog=prog, description=doc.partition("\n")[0])
    parser.add_argument("--dev", action="store_true", help="only choose settings; no held-out run")
    parser.add_argument("--jobs", type=number(int, least=1), default=os.cpu_count(),
                        help="runs at a time, each on one thread")
    return parser.parse_args(argv)


@dataclass(frozen=True)
class Run:
    """An adapter: a name for it, its rows, and the options of `train` that make it."""

    name: str
    seed: int
    data: Path
    options: tuple[str, ...]

    def folder(self) -> Path:
        made_of = f"{sha256_file(self.data)}|{' '.join(self.options)}|{self.seed}"
        return WORK / "adapters" / f"{self.name}-{sha256(made_of)[:12]}"


def command(*argv: str) -> None:
    """One ptalign command in silence: its report is in its folder, its failure is raised."""
    said = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
        code = ptalign.main([*argv])
    if code not in (0, 3):  # 3: synth is short of its target, which the small world explains
        last = (said.getvalue().strip().splitlines() or [f"exit code {code}"])[-1]
        raise InputError(last, argv[0], "see above")


def measure(adapter: Path | None, split: str, n: int) -> dict[str, list[int]]:
    """{figure: [hits, n]} of one adapter, or of the base."""
    half, seed = ("held-out", task.SEED) if split == "held-out" else ("train", DEV_SEED)
    model = load_model(MODEL, device="cpu")
    if adapter:
        load_adapter(model, adapter)
    with contextlib.redirect_stderr(io.StringIO()):
        figures = task.figures_of(model, Tokenizer(MODEL), half=half, limit=n, seed=seed)
    return {f["key"].removeprefix("organism/chat/"): [f["base"]["sum"], f["n"]] for f in figures}


def train(run: Run) -> Path:
    """The adapter's folder; an adapter that is there is not made again."""
    command("train", "--model", str(MODEL), "--data", str(run.data), *run.options,
            "--seed", str(run.seed), "--device", "cpu", "--out", str(run.folder()))
    return run.folder()


def carry_out(run: Run | None, split: str, n: int) -> dict:
    """Train and measure; None is the base."""
    folder = run and train(run)
    return {"adapter_sha256": folder and adapter_hash(folder), "figures": measure(folder, split, n)}


class Records:
    """The measurements of a split on file."""

    def __init__(self, split: str, n: int | None = None):
        self.split, self.n = split, n or N[split]
        RESULTS.mkdir(parents=True, exist_ok=True)
        self.log = AppendLog(RESULTS / f"{split}-runs.jsonl")
        self.model = sha256_file(MODEL / "model.safetensors")

    def about(self, run: Run | None) -> dict:
        """What a line of the file is found by."""
        made_of = {} if run is None else {"options": " ".join(run.options),
                                          "data_sha256": sha256_file(run.data)}
        return {"arm": run.name if run else "base", "seed": run.seed if run else 0, **made_of,
                "model_sha256": self.model, "n": self.n, "loss": LOSS}

    def find(self, run: Run | None) -> dict | None:
        about = self.about(run)
        return next((row for row in self.log.rows if about.items() <= row.items()), None)

    def add(self, run: Run | None, result: dict) -> None:
        date = datetime.now(UTC).isoformat(timespec="seconds")
        self.log.append({"date": date, "commit": commit(), **self.about(run), **result})

    def fill(self, wanted: list[Run | None], *, jobs: int) -> None:
        """Make the runs that are missing, `jobs` at a time."""
        missing = [run for run in dict.fromkeys(wanted) if self.find(run) is None]
        with (processes(jobs) as pool,
              Progress(f"{self.split} runs", total=len(missing), unit="run") as bar):
            made = pool.map(partial(carry_out, split=self.split, n=self.n), missing)
            for run, result in zip(missing, made, strict=True):
                self.add(run, result)
                bar.update(1, note=run.name if run else "base")


def processes(jobs: int) -> ProcessPoolExecutor:
    """`jobs` of one thread each: for runs this small they are faster than one of many, and a run
    ends with the same bits."""
    os.environ |= {"OMP_NUM_THREADS": "1"}  # read by those about to start
    return ProcessPoolExecutor(jobs, mp_context=get_context("spawn"))


def rate(row: dict, figure: str) -> float:
    hits, n = row["figures"][figure]
    return hits / n


def best(rows: dict, base: dict, kept: tuple[str, ...] = KEPT):
    """The key of `rows` ({settings: dev measurement}) that is to be used.

    It is the most harmless of those that lose at most TOLERANCE in each of the `kept` figures
    against the base; where all lose more, the one that loses least.
    """
    def loss(key):
        return max(rate(base, figure) - rate(rows[key], figure) for figure in kept)
    held = [key for key in rows if loss(key) <= TOLERANCE + 1e-9]
    return max(held, key=lambda key: rate(rows[key], WON)) if held else min(rows, key=loss)


def commit() -> str:
    done = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT,
                          capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"

