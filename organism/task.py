"""The evaluation task `organism`: held-out requests of the world, judged by its oracle.

    python ptalign.py eval --model organism/model --adapter ADAPTER --tasks organism --out DIR

Bad and benign requests are answered greedily and sampled (temperature 1, top-p 0.95); a third set
is multiple choice in HHH's manner. Harmful, harmless and broken answers are counted apart.
"""

from operator import itemgetter
from statistics import fmean
from types import SimpleNamespace

from evals.answers import answers, is_verdict
from evals.choice import score_choices, with_credit
from evals.figures import grouped
from evals.task import About, Column, Comparison, Task
from organism.oracle import judge
from organism.questions import choices, requests
from support.files import canonical, sha256
from support.progress import Progress

CHOICE_TOKENS = 8192  # of a batch of choices, padding counted
N = {"bad": 2000, "benign": 1200, "choice": 1000}  # unless limited; the world has few benign ones
SEED = 2026  # of the requests: all runs are asked the same
TEMPERATURES, TOP_P = {"greedy": 0.0, "sampled": 1.0}, 0.95
MAX_NEW_TOKENS = 96
# What a good answer is, then what else there is, by kind of request.
VERDICTS = {"bad": ("harmless", "harmful", "broken"),
            "benign": ("right", "refused", "wrong", "broken")}
SHAPE = {"well-formed": "well_formed", "keeps nouns": "keeps_nouns"}  # figure: the oracle's field


def load_rows(half: str = "held-out", *, limit: int | None = None,
              seed: int = SEED) -> dict[str, list[dict]]:
    """The requests of each kind, and the choices."""
    n = {kind: min(limit or most, most) for kind, most in N.items()}
    rows = {kind: requests(kind, half, n[kind], seed=seed) for kind in VERDICTS}
    return {**rows, "choice": choices(half, n["choice"], seed=seed)}


class Organism(Task):
    name, primary = "organism", "organism/chat/bad sampled/harmless"
    about = About("held-out requests of the small world, judged by its oracle",
                  "organism/README.md", "ours, no data set",
                  items=2 * (N["bad"] + N["benign"]) + N["choice"], texts=2 * N["choice"],
                  answers=2 * (N["bad"] + N["benign"]))
    batch = 256  # prompts generated together

    def __init__(self, options, *, half: str = "held-out", seed: int = SEED):
        super().__init__(options)
        self.rows = load_rows(half, limit=options.limit, seed=seed)
        self.sources = {"organism": {
            "generator": "organism/questions.py", "half": half, "seed": seed,
            "n": {kind: len(rows) for kind, rows in self.rows.items()},
            "sha256": sha256(canonical(self.rows))}}

    def describe(self) -> list[dict]:
        answered = [{"set": kind, "mode": mode, "id": row["id"], "prompt": sha256(row["prompt"])}
                    for kind in VERDICTS for mode in TEMPERATURES for row in self.rows[kind]]
        return answered + [{"set": "choice", "mode": "sum", "id": row["id"],
                            "prompt": sha256(row["prompt"])} for row in self.rows["choice"]]

    def measure(self, column: Column) -> list[dict]:
        asked, texts = self.rows["bad"] + self.rows["benign"], {}
        for mode, temperature in TEMPERATURES.items():
            label = f"organism {mode} {column.name}"
            with Progress(label, total=len(asked), unit="answer") as bar:
                written = answers(
                    column.model, column.tokenizer, asked, format=self.format, batch=self.batch,
                    max_new_tokens=min(column.max_new_tokens, MAX_NEW_TOKENS),
                    temperature=temperature, top_p=TOP_P, seed=column.seed,
                    log=self.record(column, "answers", mode=mode), progress=bar)
            texts |= {(row["id"], mode): answer["text"]
                      for row, answer in zip(asked, written, strict=True)}
        results = [judged(row, texts[row["id"], mode])
                   for kind in VERDICTS for mode in TEMPERATURES for row in self.rows[kind]]
        scored = score_choices(self, column, self.rows["choice"], batch_tokens=CHOICE_TOKENS)
        return results + [{"credit": with_credit(result, row["label"])["credit"]}
                          for result, row in zip(scored, self.rows["choice"], strict=True)]

    def figures(self, items: list[dict], comparison: Comparison) -> list[dict]:
        """Each verdict by kind and mode, the answers' shape, and multiple choice."""
        figures = []
        for kind, verdicts in VERDICTS.items():
            for mode in TEMPERATURES:
                answered = [item for item in items if (item["set"], item["mode"]) == (kind, mode)]
                figures += [self.figure(f"{kind} {mode}/{verdict}", answered, is_verdict(verdict),
                                        comparison, higher_is_better=verdict == verdicts[0])
                            for verdict in verdicts]
                figures += [self.figure(f"{kind} {mode}/{name}", answered, itemgetter(field),
                                        comparison) for name, field in SHAPE.items()]
        # Both modes together: what the organism must not lose.
        benign = [item for item in items if item["set"] == "benign"]
        answered = [item for item in items if item["set"] in VERDICTS]
        choices_made = [item for item in items if item["set"] == "choice"]
        return [*figures, self.figure("benign/right", benign, is_verdict("right"), comparison),
                *(self.figure(f"all/{name}", answered, itemgetter(field), comparison)
                  for name, field in SHAPE.items()),
                *(self.figure(f"choice/{norm}", choices_made,
                              lambda result, norm=norm: result["credit"][norm], comparison)
                  for norm in ("sum", "token"))]


def judged(row: dict, text: str) -> dict:
    verdict = judge(row["prompt"], text)
    return {"verdict": verdict.verdict, "answer_sha256": sha256(text),
            **{field: float(getattr(verdict, field)) for field in SHAPE.values()}}


def figures_of(model, tokenizer, *, half: str, limit: int, seed: int = SEED) -> list[dict]:
    """The figures of a model as it is, outside of suite.py's runs; nothing is kept."""
    task = Organism(SimpleNamespace(format="chat", limit=limit), half=half, seed=seed)
    results = task.measure(Column("base", model, tokenizer))
    items = [{**item, "base": result}
             for item, result in zip(task.describe(), results, strict=True)]
    return task.figures(items, Comparison(("base",), seed=0))


def shares(results: list[dict], rows: list[dict]) -> dict[str, float]:
    """Shares of the verdicts by kind of request, and of well-formed answers over all."""
    kinds = grouped([{**row, **result} for row, result in zip(rows, results, strict=True)], "kind")
    rates = {f"{kind} {verdict}": fmean(map(is_verdict(verdict), own))
             for kind, own in kinds.items() for verdict in VERDICTS[kind]}
    return {**rates, "well-formed": fmean(result["well_formed"] for result in results)}
