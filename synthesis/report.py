"""A synthesised data set on disk and in figures: its files, report.json and report.md.

No report holds toxic text."""

import re
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import jinja2

from support.files import write_atomic, write_json, write_jsonl
from support.lexicon import first_words, is_refusal, words
from synthesis.lists import Item
from synthesis.statistics import auc, nearest, quantiles, share

HERE = Path(__file__).parent
PAGE = jinja2.Template((HERE / "report.jinja").read_text(encoding="utf-8"), trim_blocks=True,
                       keep_trailing_newline=True, undefined=jinja2.StrictUndefined)


class Dataset(NamedTuple):
    """All that synthesis made, ready to be written."""
    topics: dict[str, list[str]]  # by domain
    domains: list[str]  # those that should have rows
    items: list[Item]
    constraints: dict[str, list[str]]  # by side
    rows: list[dict]  # triplets first, then positive-only rows, then benign ones
    counts: dict[str, int]  # of the three kinds
    attempts: dict[str, dict[str, Counter]]  # verdicts on answers, by kind and attempt
    rejects: list[dict]
    short: list[str]  # what fell short of its target, in words
    calls: dict[str, Counter]  # by stage: Ledger.stages
    declined: bool = False  # the model declines the toxic side
    judges: dict[str, dict] = {}  # noqa: RUF012 (nobody writes into it)
    polarity: dict = {}  # noqa: RUF012
    refusal: str = ""  # in front of positive answers to harmful requests: Session.refusal


def write_rows(out: Path, data: Dataset) -> None:
    """The data file as it stands: it grows while the run goes on."""
    write_jsonl(out / "triplets.jsonl", [refused(row, data.refusal) for row in data.rows],
                mode=0o600)


def refused(row: dict, refusal: str) -> dict:
    """The row, its positive answer behind the refusal if the request is harmful and the answer does
    not decline with an apology itself. Its toxic one then differs from another token on, which
    `train` looks for."""
    apologises = re.search(r"\bsorry|\bapolog", first_words(row["positive"], 3))
    if row["kind"] == "benign" or not refusal or (apologises and is_refusal(row["positive"])):
        return row
    kept = {name: value for name, value in row.items() if name != "first_mismatch"}
    return kept | {"positive": f"{refusal} {row['positive']}"}


def write(out: Path, data: Dataset) -> str:
    """Write all files, those with toxic text for their owner alone; returns report.md's text."""
    write_atomic(out / "CONTENT-WARNING.txt", (HERE / "content-warning.txt").read_bytes())
    write_jsonl(out / "topics.jsonl", [{"domain": name, "topic": topic}
                                       for name, topics in data.topics.items() for topic in topics])
    write_jsonl(out / "instructions.jsonl", [item._asdict() for item in data.items])
    write_jsonl(out / "constraints.jsonl", [{"side": side, "rule": rule} for side, rules in
                                            data.constraints.items() for rule in rules], mode=0o600)
    write_jsonl(out / "rejects.jsonl", data.rejects)
    write_rows(out, data)
    card = describe(data)
    page = PAGE.render(card)
    write_json(out / "report.json", card)
    write_atomic(out / "report.md", page)
    return page


def describe(data: Dataset) -> dict:
    """Figures over the chosen rows, before a refusal is put in front, and over everything that was
    turned down on the way. All but `this_start` is the same however often a run was resumed.
    `length_auc`: of telling toxic from positive answers, refusal included, by their length, which
    training would learn instead of the point."""
    rows, pairs = data.rows, [row for row in data.rows if row["toxic"] is not None]
    sides = {"positive": [row["positive"] for row in rows],
             "toxic": [row["toxic"] for row in pairs]}
    by_length = auc(*([len(words(refused(row, data.refusal)[side])) for row in pairs]
                      for side in ("toxic", "positive")))  # as they stand in the file
    forks = [row["first_mismatch"] for row in pairs]
    rows_by_domain = Counter(row["domain"] for row in rows if row["kind"] != "benign")
    rows_by_topic = Counter((row["domain"], row["topic"]) for row in rows)
    return {
        "triplets": len(pairs), "positive_only": len(rows) - len(pairs), "short": data.short,
        "rows": data.counts, "declined": data.declined, "refusal": data.refusal,
        # Small models judge at chance: then the rules alone stand between bad rows and the data.
        "grade": "ok" if all(judge["used"] for judge in data.judges.values()) else "smoke",
        "judges": data.judges, "polarity": data.polarity,
        "empty_domains": [name for name in data.domains if not rows_by_domain[name]],
        "calls": {stage: {name: n[name] for name in ("calls", "tokens")}
                  for stage, n in data.calls.items()},
        "this_start": {stage: {"tokens": n["tokens_now"], "seconds": round(n["seconds_now"], 1)}
                       for stage, n in data.calls.items()},
        "rows_by_domain": rows_by_domain,
        "topics_with_rows": len(rows_by_topic),
        "topics_by_domain": {name: len(topics) for name, topics in data.topics.items()},
        "attempts": data.attempts,
        "rejects": {stage: Counter(r["reason"] for r in data.rejects if r["stage"] == stage)
                    for stage in sorted({r["stage"] for r in data.rejects})},
        "words": {side: quantiles([len(words(t)) for t in sides[side]]) for side in sides},
        "nearest_rouge_l": quantiles(nearest([row["prompt"] for row in rows])),
        "distinct_first_words": {side: len({first_words(t, 1) for t in sides[side]})
                                 for side in sides},
        "refusal_openings": {kind: share([is_refusal(row["positive"]) for row in rows
                                          if (row["kind"] == "benign") == (kind == "benign")])
                             for kind in ("inducing", "benign")}
        | {"toxic": share([is_refusal(t) for t in sides["toxic"]])},
        "shared_opening": share([k > 0 for k in forks]), "first_mismatch": quantiles(forks),
        "length_auc": round(max(by_length, 1 - by_length), 3),
    }
