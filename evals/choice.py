"""Multiple choice by log-likelihood: the likeliest choice is the answer.

The three values of a choice (its sum of log-probabilities, per token, per UTF-8 byte) come from one
pass (likelihood.py).

Departures from BIG-bench and lm-evaluation-harness:
1. Equal best choices share the credit, 1/k each. In the sources the right choice stands first, and
   taking the first of equals gives a model that knows nothing full marks.
2. In the raw format the bytes of a choice count the space in front of it, whose log-probability is
   in the sum as well. lm-evaluation-harness divides by the bytes of the choice alone (acc_bytes).
"""

from statistics import fmean

from evals.data import load_sets
from evals.figures import by_group
from evals.likelihood import score_pairs
from evals.task import Column, Comparison, Task
from support.files import InputError
from support.pairs import dialogue
from support.progress import Progress

NORMS = ("sum", "token", "byte")


def credit(values: list[float], label: int) -> float:
    """1 if the right choice alone is best, 1/k if it is one of k equals at the top, else 0."""
    best = max(values)
    return (values[label] == best) / values.count(best)


def with_credit(result: dict, label: int) -> dict:
    """A row's result with its credit under each normalisation."""
    return {**result, "credit": {norm: credit(result["values"][norm], label) for norm in NORMS}}


def context_text(tokenizer, row: dict, format: str) -> str:
    """All that stands before the choices. A row with a "prefix" has a raw form of its own. In chat
    a prompt that holds earlier turns, as some of HHH's do, becomes these turns; messages stay."""
    if "prefix" not in row:
        asked = row["prompt"]
        if format == "chat" and isinstance(asked, str) and "\n\nAssistant:" in asked:
            human = "" if asked.lstrip().startswith("Human:") else "Human: "  # HH-RLHF's has it,
            asked = asked.rstrip().removesuffix("\n\nAssistant:")  # and often this at its end
            asked = dialogue(f"{human}{asked}\n\nAssistant:")
        return tokenizer.prompt_text(asked, format)
    text = row["prefix"] + row["prompt"]
    return text if format == "raw" else tokenizer.prompt_text(text, format)


def choice_pair(tokenizer, row: dict, text: str, format: str) -> tuple[str, str]:
    """What stands before a choice, and the choice. A space between the two is the choice's; the end
    of an empty thought is not."""
    context, answer = context_text(tokenizer, row, format), tokenizer.answer_text(text, format)
    lead = tokenizer.answer_text("", format)
    if lead.strip() and answer.startswith(lead):
        return context + lead, answer[len(lead):]
    return context, answer


def score_choices(task: Task, column: Column, rows: list[dict], *, batch_tokens: int) -> list[dict]:
    """One result a row, in order: the values of its choices under each normalisation, and how many
    contexts had to be cut."""
    asked = [(row, text) for row in rows for text in row["choices"]]
    pairs = [choice_pair(column.tokenizer, row, text, task.format) for row, text in asked]
    with Progress(f"{task.name} {task.format} {column.name}", total=len(set(pairs)),
                  unit="text") as bar:
        scores = iter(score_pairs(
            column.model, column.tokenizer, pairs, format=task.format, batch_tokens=batch_tokens,
            ids=[f"{row['id']} of {task.name}" for row, _ in asked],
            log=task.record(column, "scores"), progress=bar,
            prefixes=[row.get("prefix", "") for row, _ in asked]))
    by_row = [[next(scores) for _ in row["choices"]] for row in rows]
    return [{"values": {"sum": [s.logprob for s in own],
                        "token": [s.logprob / s.tokens for s in own],
                        "byte": [s.logprob / s.bytes for s in own]},
             "cut": sum(s.cut for s in own)} for own in by_row]


def null_baselines(rows: list[dict]) -> dict[str, float]:
    """What a scorer gets that reads nothing: chance, and always the longest choice (characters).
    Sums of log-probabilities favour the short: neither is a floor, each tells what is near it."""
    chance, longest = [], []
    for row in rows:
        sizes, right = list(map(len, row["choices"])), labels(row)
        chance.append(fmean(right))
        longest.append(fmean(r for size, r in zip(sizes, right, strict=True) if size == max(sizes)))
    return {"chance": fmean(chance), "longest": fmean(longest)}


def labels(row: dict) -> list[int]:
    """0 or 1 for each choice, whether one is right ("label") or several ("labels")."""
    return row.get("labels") or [int(i == row["label"]) for i in range(len(row["choices"]))]


class MultipleChoice(Task):
    """A benchmark of multiple choice. Each task has its own questions, results and figures."""
    batch = 8192  # tokens, padding counted, and examples that the texts share
    prompt_format = "raw"  # that of the published figures
    sets: tuple[str, ...]  # of data.py

    def __init__(self, options):
        super().__init__(options)
        self.rows, self.sources = self.load(options)
        for rows in self.rows.values():
            if "all" in (groups := {row.get("group") for row in rows}) and len(groups) > 1:
                raise InputError("a group is named 'all'", self.name,
                                 "rename it: all groups together are shown under that name")

    def load(self, options) -> tuple[dict, dict]:
        return load_sets(self.sets, data_dir=options.data_dir, limit=options.limit)

    def item_fields(self, row: dict) -> dict:
        return {"group": row["group"], "label": row["label"]}

    def questions(self, row: dict) -> list[dict]:
        """What a row is scored by: {"id", "prompt", "choices"} and, if need be, "prefix"."""
        return [row]

    def result(self, row: dict, *scored: dict) -> dict:
        """What is kept of a row, from the scored choices of its questions."""
        return with_credit(scored[0], row["label"])

    def measure(self, column: Column) -> list[dict]:
        asked = [(row, self.questions(row)) for rows in self.rows.values() for row in rows]
        scored = iter(score_choices(self, column, [q for _, questions in asked for q in questions],
                                    batch_tokens=self.batch))
        return [self.result(row, *(next(scored) for _ in questions)) for row, questions in asked]

    def figures(self, items: list[dict], comparison: Comparison) -> list[dict]:
        """Groups in the file's order, then all; three normalisations of each."""
        return [line for group, own in by_group(items).items()
                for line in self.credits(group, own, comparison)]

    def credits(self, name: str, items: list[dict], comparison: Comparison) -> list[dict]:
        return [self.figure(f"{name}/{norm}", items, lambda result, norm=norm:
                            result["credit"][norm], comparison) for norm in NORMS]

    def baseline_rows(self) -> dict[str, list[dict]]:
        """The rows whose null baselines are shown, by the name they are shown under."""
        [rows] = self.rows.values()
        return {f"{self.name}/{group}": part for group, part in by_group(rows).items()}

    def facts(self, items: list[dict], comparison: Comparison) -> dict:
        cut = {column: sum(item[column]["cut"] for item in items) for column in comparison.columns}
        nulls = {name: null_baselines(rows) for name, rows in self.baseline_rows().items()}
        return {"nulls": nulls, "contexts_cut": {self.name: cut}}
