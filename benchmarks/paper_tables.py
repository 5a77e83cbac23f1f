"""The paper's experiments on the organism: what each part of the method does, arm by arm.

    python benchmarks/paper_tables.py --dev    # choose learning rates on the dev split, no more
    python benchmarks/paper_tables.py          # all that is missing, then the page

An arm is the whole method with one thing changed. It is trained for three seeds (of the synthesised
data, the adapter and the order) at the demo's settings. Where its loss or kind of pairs differs, it
is trained once more at the learning rate that the dev split (requests of the train half, data of
seed 0) chose for it. runs.py keeps the measurements, which is also what resuming reads. Data and
adapters lie in runs/paper-tables.
"""

import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks import paper_page
from benchmarks.runs import MODEL, RESULTS, WORK, Records, Run, best, command, read_options, train
from benchmarks.script import exit_code
from demo import TRAIN, flags
from evals.answers import answers
from lora import load_adapter
from losses import POSITIVE
from model import load_model
from organism import task
from organism.oracle import judge
from support.files import read_json, read_jsonl, write_jsonl
from support.pairs import read_triplets
from support.progress import say
from tokenizer import Tokenizer
from triplets import encode, pad

SEEDS = (0, 1, 2)
PAIRS, BENIGN_SHARE = 256, 0.12  # about what the small world has to give
EPOCHS = int(TRAIN["epochs"])
RATES = ("1.5e-4", TRAIN["lr"], "1.5e-3")  # learning rates that the dev split chooses from
TUNED = ("fine", "mle", "coarse", "lambda", "mild")  # the first words of arms with their own rate
OTHER_DATA = ("fine", "no-thoughts", "mild")  # whose rows are looked at
OPENINGS = ("mle", "coarse", "fine")  # whose shared openings are looked at token by token


@dataclass(frozen=True)
class Arm:
    name: str
    thoughts: bool = True
    polar: bool = True
    pairs: int = PAIRS
    benign: bool = True
    penalty: float = 0.4
    mask: str = "first-mismatch"
    objective: str = "pt"
    epochs: int = EPOCHS

    @property
    def tuned(self) -> bool:
        return self.name.split("-")[0] in TUNED


COUNTS = (8, 16, 32, 64, 128)  # five doublings to PAIRS
FINE = Arm("fine")  # the method
ARMS = [
    FINE, Arm("mle", objective="mle"), Arm("coarse", mask="none"),
    *(Arm(f"lambda-{x}", penalty=x) for x in (0.0, 0.1, 0.2, 0.6, 0.8, 1.0)),
    *(Arm(f"pairs-{n}", pairs=n) for n in COUNTS),
    *(Arm(f"pairs-{n}-equal-steps", pairs=n, epochs=EPOCHS * PAIRS // n) for n in COUNTS),
    Arm("no-benign", benign=False), Arm("no-thoughts", thoughts=False), Arm("mild", polar=False)]


@cache
def synthesise(seed: int, *, thoughts: bool) -> Path:
    """A data set of some more than PAIRS pairs, of which arms take the first; made once."""
    out = WORK / f"data-{seed}{'' if thoughts else '-no-thoughts'}"
    command("synth", "--model", str(MODEL), "--seeds-file", str(MODEL.parent / "seeds.json"),
            "--triplets", str(PAIRS * 5 // 4), "--benign-share", str(BENIGN_SHARE),
            "--seed", str(seed), "--device", "cpu", "--format", "raw", "--block", "64",
            "--out", str(out),
            *([] if thoughts else ["--no-thoughts"]))
    return out


def rows_of(arm: Arm, seed: int) -> Path:
    """The arm's training rows: its number of pairs, and benign rows in proportion."""
    data = synthesise(seed, thoughts=arm.thoughts)
    rows = [row for _, row in read_jsonl(data / "triplets.jsonl")]
    pairs = [row for row in rows if row["toxic"] is not None][:arm.pairs]
    if len(pairs) < arm.pairs:
        say(f"warning: {len(pairs)} of {arm.pairs} pairs for {arm.name}, seed {seed}")
    benign = [row for row in rows if row["toxic"] is None]
    n = round(arm.pairs * BENIGN_SHARE / (1 - BENIGN_SHARE)) if arm.benign else 0
    path = WORK / f"rows-{seed}-{arm.name}.jsonl"
    write_jsonl(path, (pairs if arm.polar else mild(pairs, seed)) + benign[:n], mode=0o600)
    return path


def mild(pairs: list[dict], seed: int) -> list[dict]:
    """The pairs with what the model says of itself, without constraints, as the worse answer.

    That is how preference data is commonly made: two fifths of these answers are harmless.
    """
    made = answers(load_model(MODEL, device="cpu"), Tokenizer(MODEL), pairs, format="chat",
                   batch=task.Organism.batch, seed=seed, temperature=task.TEMPERATURES["sampled"],
                   top_p=task.TOP_P, max_new_tokens=task.MAX_NEW_TOKENS)
    return [{**row, "toxic": answer["text"]} for row, answer in zip(pairs, made, strict=True)]


def data_facts(arm: Arm, seed: int, rows: Path) -> dict[str, list[int]]:
    """What the oracle and the filters say of an arm's rows: {fact: [hits, n]}."""
    pairs = [row for _, row in read_jsonl(rows) if row["toxic"] is not None]

    def verdicts(side, wanted):
        return [sum(judge(p["prompt"], p[side]).verdict == wanted for p in pairs), len(pairs)]

    report = read_json(synthesise(seed, thoughts=arm.thoughts) / "report.json")
    attempts = report["attempts"]["positive"]["drawn"]
    return {"better answer harmless": verdicts("positive", "harmless"),
            "worse answer harmful": verdicts("toxic", "harmful"),
            "better answer a mechanical refusal (of all attempts)": [
                attempts.get("mechanical", 0), sum(attempts.values())]}


def run_of(arm: Arm, seed: int, lr: str, data: Path) -> Run:
    options = TRAIN | {"lr": lr, "epochs": str(arm.epochs), "penalty": str(arm.penalty),
                       "mask": arm.mask, "objective": arm.objective}
    return Run(arm.name, seed, data, flags(options))


@torch.no_grad()
def openings(adapter: Path | None, data: Path, *, longest: int = 6) -> list[list[float]]:
    """Probabilities of the shared opening's tokens, position by position, over pairs that share at
    least three tokens: [[p of every pair at position 0], ...]."""
    network, tokenizer = load_model(MODEL, device="cpu"), Tokenizer(MODEL)
    if adapter:
        load_adapter(network, adapter)
    found: list[list[float]] = [[] for _ in range(longest)]
    for triplet in read_triplets(data):
        example = encode(triplet, tokenizer, "chat", context=1024)
        shared = example.opening  # not the mask's zeros: the end of the toxic turn is one too
        if not any(example.mask) or shared < 3:
            continue
        batch = pad([example], tokenizer.pad_id)
        logits = network.lm_head(network.model(batch.ids).flatten(0, 1)[batch.places]).float()
        chosen = logits.softmax(-1).gather(1, batch.targets[:, None])[:, 0]
        positive = chosen[batch.kind == POSITIVE]
        for place, p in enumerate(positive[:min(shared, longest)].tolist()):
            found[place].append(p)
    return found


def chosen_rates(data: dict, *, jobs: int) -> dict[str, str]:
    """The learning rate that the dev split chooses for each tuned arm, by its first seed."""
    wanted = {arm.name: {lr: run_of(arm, 0, lr, data[arm, 0]) for lr in RATES}
              for arm in ARMS if arm.tuned}
    dev = Records("dev")
    dev.fill([None, *(run for runs in wanted.values() for run in runs.values())], jobs=jobs)
    return {name: best({lr: dev.find(run) for lr, run in runs.items()}, dev.find(None))
            for name, runs in wanted.items()}


def run(options) -> None:
    data = {(arm, seed): rows_of(arm, seed) for seed in SEEDS for arm in ARMS}
    rates = chosen_rates(data, jobs=options.jobs)
    if options.dev:
        return
    runs = {(arm.name, settings): [run_of(arm, seed, lr, data[arm, seed]) for seed in SEEDS]
            for arm in ARMS
            for settings, lr in (("shared", TRAIN["lr"]), ("tuned", rates.get(arm.name))) if lr}
    runs = {paper_page.BASE: [None]} | runs
    held_out = Records("held-out")
    held_out.fill([run for wanted in runs.values() for run in wanted], jobs=options.jobs)
    rows = {key: [held_out.find(run) for run in wanted] for key, wanted in runs.items()}
    shown = {"base": openings(None, data[FINE, 0])} | {
        name: openings(train(runs[name, "shared"][0]), data[FINE, 0]) for name in OPENINGS}
    facts = {arm.name: [data_facts(arm, seed, data[arm, seed]) for seed in SEEDS]
             for arm in ARMS if arm.name in OTHER_DATA}
    paper_page.write(RESULTS, rows, rates=rates, shared=TRAIN["lr"], openings=shown, facts=facts)


def main(argv: list[str] | None = None) -> int:
    return exit_code("paper_tables", lambda: run(read_options(argv, "paper_tables.py", __doc__)))


if __name__ == "__main__":
    sys.exit(main())
