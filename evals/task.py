"""What a task of evaluation is: the base class, what it measures under, what it keeps on record."""

from collections.abc import Callable, Iterable, MutableMapping
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

from evals.figures import figure
from evals.texts import written
from model import Transformer
from support.endpoint import Endpoint
from support.files import AppendLog, canonical, read_toml, sha256
from support.progress import Progress
from tokenizer import Tokenizer


class About(NamedTuple):
    """What `eval --list` says of a task at its defaults (tasks.toml); None: a file decides."""
    measures: str  # in a few words
    source: str
    licence: str  # of the data
    items: int | None = None
    texts: int | None = None  # read by the model under one column, one forward pass each
    answers: int = 0  # written by the model under one column


ABOUT = read_toml(Path(__file__).with_name("tasks.toml"))


def list_text(tasks: Iterable[type["Task"]]) -> str:
    """What `eval --list` prints."""
    (rows,), notes = written("list", tasks=[(task.name, task.about) for task in tasks]).values()
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    return "\n".join([*lines, "", *notes])


class Blocks(dict):
    """Batches on record, by key: a new one is on disk as soon as it is in the dict. `about` (task,
    column, format, ...) says which lines of the log these are."""

    def __init__(self, log: AppendLog, **about):
        super().__init__((row["block"], row["rows"]) for row in log.rows
                         if all(row.get(name) == value for name, value in about.items()))
        self.log, self.about = log, about

    def __setitem__(self, key: str, rows: list[dict]) -> None:
        self.log.append({"block": key, **self.about, "rows": rows})
        super().__setitem__(key, rows)


def in_batches(items: list, size: int) -> list[list]:
    return [items[start : start + size] for start in range(0, len(items), size)]


def recorded(log: MutableMapping, batches: Iterable[list], compute: Callable,
             progress: Progress | None = None) -> list:
    """The results of all batches, one an item. `log` has those computed before, and takes the new
    ones: an interrupted run goes on with the same batches, and so with the same rounding."""
    results = []
    for batch in batches:
        if (key := sha256(canonical(batch))) not in log:
            log[key] = compute(batch)
        results += log[key]
        if progress is not None:
            progress.update(len(batch))
    return results


class Column(NamedTuple):
    """What a measurement runs under: the model with one adapter on it, or as it is."""
    name: str  # "base", "tuned", "tuned 1", ...
    model: Transformer | Endpoint
    tokenizer: Tokenizer
    seed: int = 0
    max_new_tokens: int = 128
    logs: dict[str, AppendLog] | None = None  # "scores" and "answers"; None keeps nothing


class Comparison(NamedTuple):
    """What all figures of a run have in common."""
    columns: tuple[str, ...]  # "base" first
    seed: int  # of the bootstrap


class Task:
    """One task of a run. Making the object reads and checks its data: `rows` and `sources`."""
    name: str
    about: About
    batch: int  # part of a run's identity, since it decides rounding in bf16
    prompt_format: str | None = None  # unless --format says otherwise; None: the model's own
    primary: str | None = None  # the figure that is named before any run
    options: tuple[str, ...] = ()  # flags of `eval` that it alone reads
    served = False  # can its model be behind a server, which gives answers and no likelihoods?
    rows: dict[str, list[dict]]  # by set
    sources: dict[str, dict]  # where each set came from; their sha256 are part of a run's identity

    def __init_subclass__(cls):
        """Its line of `eval --list` is looked up by its name."""
        if (name := vars(cls).get("name")) in ABOUT:
            cls.about = About(**ABOUT[name])

    def __init__(self, options: SimpleNamespace):
        """`options`: format, data_dir, limit, and its own."""
        self.format = options.format

    def item_rows(self) -> list[tuple[str, dict]]:
        """(set, row) of each item."""
        return [(name, row) for name, rows in self.rows.items() for row in rows]

    def describe(self) -> list[dict]:
        """Its items without results, in order. An item has its text's sha256 alone."""
        return [{"set": name, **{key: row[key] for key in ("id", "sample") if key in row},
                 "prompt": sha256(row["prompt"]), **self.item_fields(row)}
                for name, row in self.item_rows()]

    def item_fields(self, row: dict) -> dict:
        """What else an item has of its row: its group, or which side it is on."""
        return {"group": row["group"] if "group" in row else
                "harmful" if row["harmful"] else "benign"}

    def refuse_long(self, tokenizer, max_new_tokens: int, context: int) -> None:
        """InputError where a prompt leaves no room for the answer, told before hours of other
        tasks. Prompts that are made later are not known yet."""

    def search(self, column: Column) -> None:
        """What must be done under every column before anything is measured."""

    def measure(self, column: Column) -> list[dict]:
        """One result for each item, in order."""
        raise NotImplementedError

    def figures(self, items: list[dict], comparison: Comparison) -> list[dict]:
        """Lines of the table, from items with a result under each column."""
        return []

    def facts(self, items: list[dict], comparison: Comparison) -> dict:
        """What else the report tells: "tables" (rows of text, the header first) and "notes", which
        are printed as they are, and dicts of numbers by name."""
        return {}

    def record(self, column: Column, kind: str, /, **more) -> MutableMapping:
        """The batches on record in a log of the run. `more` may name another task or column."""
        about = {"task": self.name, "column": column.name, "format": self.format, **more}
        return {} if column.logs is None else Blocks(column.logs[kind], **about)

    def figure(self, name: str, items: list[dict], value, comparison: Comparison, **more) -> dict:
        key = f"{self.name}/{self.format}/{name}"
        return figure(key, items, value, **comparison._asdict(), **more)
