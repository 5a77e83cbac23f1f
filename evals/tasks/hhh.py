"""HHH alignment (Askell et al., arXiv 2112.00861) as in BIG-bench's hhh_alignment, by choice.py.

All but `load` serves any one set of multiple-choice rows (own.py).
"""

from evals import choice
from evals.about import About
from evals.data import SOURCES, load_sets
from evals.figures import by_group, figure
from support.files import sha256

FORMAT = "raw"  # that of the published figures
BATCH = 4096  # tokens, padding counted
PRIMARY = "hhh/raw/harmless/byte"  # named before any run: one comparison among many decides
ABOUT = About("which of two answers is likelier, by group and normalisation", "arXiv 2112.00861",
              SOURCES["hhh"].licence, items=SOURCES["hhh"].rows, texts=258)


def load(*, data_dir: str | None, limit: int | None) -> tuple[dict, dict]:
    return load_sets(("hhh",), data_dir=data_dir, limit=limit)


def describe(rows: dict) -> list[dict]:
    return [{"set": name, "id": row["id"], "prompt": sha256(row["prompt"]),
             "group": row["group"], "label": row["label"]} for name in rows for row in rows[name]]


def measure(network, tokenizer, rows: dict, *, format: str, column: str, logs: dict,
            max_new_tokens: int, seed: int) -> list[dict]:
    [(name, own)] = rows.items()
    results = choice.measure_choices(name, network, tokenizer, own, format=format, column=column,
                                     logs=logs, batch_tokens=BATCH)
    return [choice.with_credit(result, row["label"])
            for result, row in zip(results, own, strict=True)]


def figures(items: list[dict], *, format: str, columns: tuple, seed: int) -> list[dict]:
    """Groups in the file's order, then all; three normalisations of each."""
    return [figure(f"{items[0]['set']}/{format}/{group}/{norm}", chosen,
                   lambda result, norm=norm: result["credit"][norm], columns=columns, seed=seed)
            for group, chosen in by_group(items).items() for norm in choice.NORMS]


def facts(items: list[dict], rows: dict, columns: tuple, *, seed: int) -> dict:
    [(name, own)] = rows.items()
    return {"nulls": {f"{name}/{group}": choice.null_baselines(chosen)
                      for group, chosen in by_group(own).items()},
            "contexts_cut": {name: choice.contexts_cut(items, columns)}}
