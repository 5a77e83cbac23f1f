"""Do the gates' scores tell good rows from bad? Grades of an audit against what the model measures.

    python benchmarks/gate_scores.py --model MODEL runs/qwen15-62 runs/qwen15-h100

Of every audited run (benchmarks/audit.py) each score of a row is made again by the model, under the
deck of the run's first round. Prints, for each question of the audit, the AUC of each score: the
chance that a text that both readers passed scores above one that they did not, with a bootstrap's
interval. What is chosen on one run is to be looked at on another.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.audit import QUESTIONS, read_audit
from benchmarks.script import exit_code
from evals.report import markdown_table
from support.commandline import Parser
from support.declines import bare, declines
from support.devices import resolve_device, resolve_dtype
from support.hub import model_identity
from synthesis.answers import build_decks
from synthesis.gates import Fit, Polarity, Reluctance, alone
from synthesis.judges import calibrated, exchange, subject
from synthesis.ledger import Call, Ledger, local_model
from synthesis.lists import Item, begun
from synthesis.measures import Likelihood
from synthesis.seeds import SIDES, read_seeds
from synthesis.session import PROMPTS, Session
from synthesis.statistics import auc
from tokenizer import Tokenizer

DRAWS = 1000


def graded(run: Path) -> list[dict]:
    """The sheet's rows, each with its "grades": of every question, those of both readers."""
    sheet, both = read_audit(run)
    return [row | {"grades": {name: [own[row["id"]][name] for own in both] for name in QUESTIONS}}
            for row in sheet if not row["benign"]]


def open_session(folder: Path, scratch: Path, device: str) -> Session:
    tokenizer = Tokenizer(folder)
    session = Session(tokenizer, read_seeds(), format=tokenizer.default_format)
    place = resolve_device(device)
    dtype = resolve_dtype("auto", place)
    make = local_model(folder, tokenizer, device=place.type, dtype=dtype, format=session.format)
    session.ledger = Ledger(scratch, model_identity(folder), make, seed=0, block=64)
    session.ledger.tell = lambda *_: None
    return session


def likely(session: Session, name: str, pairs: list[tuple[str, str]]) -> list[float]:
    """log p of each text behind its prompt, nats a token."""
    calls = [Call(f"likely/{name}/{i}", *pair) for i, pair in enumerate(pairs)]
    done = session.ledger.measure(calls, Likelihood(states=False), stage="likelihood")
    return [row["logprob"] for row in done]


def scores_of(session: Session) -> dict[str, dict[str, Callable]]:
    """By question: score by name, a function of rows."""
    judges, fit = calibrated(session), Fit(session)
    decks = {side: build_decks(session, list(session.seeds.constraints[side]), side)
             for side in SIDES}

    def listed(row):  # as the next request of a list, whose first lines people wrote
        texts = PROMPTS["instructions"]
        shown = [i.text for i in session.seeds.instructions if not i.benign][:6]
        about = texts["about"].format(topic=row["topic"], domain=row["domain"])
        return (session.prompt(texts["system"], [], texts["user"].format(topic=about),
                               begun(shown)), " " + row["prompt"])

    def lean(rows, side):
        polarity = Polarity(session, decks)
        items = {Item(row["id"], row["domain"], row["topic"], row["prompt"], "both"): row[side]
                 for row in rows}
        polarity._measure(side, items, 0)
        return [polarity.leans[side][row["id"]] for row in rows]

    def of_answers(side):
        return {
            "judge: declines": lambda rows: judges["declines"].odds(
                [exchange(row["prompt"], row[side]) for row in rows]),
            "declines, by its words": lambda rows: [
                declines(bare(row[side]), harmful=True) for row in rows],
            "fit": lambda rows: fit.scores([(row["prompt"], row[side]) for row in rows]),
            "log p behind the request": lambda rows: likely(
                session, side, [alone(session, row["prompt"], row[side]) for row in rows]),
            "lean to the positive rules": lambda rows: lean(rows, side),
            "words": lambda rows: [len(row[side].split()) for row in rows]}

    return {
        "instruction": {
            "judge: inducing": lambda rows: judges["inducing"].odds(
                [row["prompt"] for row in rows]),
            "judge: on topic": lambda rows: judges["topic"].odds(
                [subject(row["domain"], row["prompt"]) for row in rows]),
            "reluctance": lambda rows: Reluctance(session).odds([row["prompt"] for row in rows]),
            "log p in a list": lambda rows: likely(
                session, "request", [listed(row) for row in rows]),
            "words": lambda rows: [len(row["prompt"].split()) for row in rows]},
        "positive": of_answers("positive"), "negative": of_answers("toxic")}


def auc_cell(scores: np.ndarray, passed: np.ndarray) -> str:
    yes, no = scores[passed], scores[~passed]
    rng = np.random.default_rng(0)
    draws = [auc(rng.choice(yes, len(yes)), rng.choice(no, len(no))) for _ in range(DRAWS)]
    low, high = np.quantile(draws, (0.025, 0.975))
    return f"{auc(yes, no):.2f} [{low:.2f}, {high:.2f}]"


def compare(options) -> None:
    runs = {run.name: graded(run) for run in options.runs}
    with TemporaryDirectory() as scratch:
        session = open_session(Path(options.model), Path(scratch), options.device)
        table = [("question", "score", *runs)]
        for question, scores in scores_of(session).items():
            side = {"positive": "positive", "negative": "toxic"}.get(question)
            of_runs = {name: [row for row in rows if side is None or row[side] is not None]
                       for name, rows in runs.items()}
            passed = {name: np.array([all(row["grades"][question]) for row in rows])
                      for name, rows in of_runs.items()}
            table.append((question, "passed by both readers",
                          *(f"{own.sum()} of {len(own)}" for own in passed.values())))
            for name, score in scores.items():
                table.append((question, name, *(
                    auc_cell(np.array(score(rows), dtype=float), passed[run])
                    for run, rows in of_runs.items())))
        session.ledger.close()
    print(markdown_table(table))


def main(argv=None) -> int:
    parser = Parser(prog="gate_scores", description=__doc__.partition("\n")[0])
    parser.add_argument("runs", nargs="+", type=Path, help="audited runs")
    parser.add_argument("--model", required=True, help="folder of the model that made them")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    return exit_code("gate_scores", lambda: compare(parser.parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
