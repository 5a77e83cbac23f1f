"""A synthesised data set on disk and in figures: its files, report.json and report.md.

No report holds toxic text. `made` is what synth.py made: its Synthesis."""

import re
from collections import Counter
from itertools import chain
from pathlib import Path

import jinja2

from support.files import write_atomic, write_json, write_jsonl
from support.lexicon import first_words, is_refusal, words
from synthesis.statistics import auc, nearest, quantiles, share

HERE = Path(__file__).parent
PAGE = jinja2.Template((HERE / "report.jinja").read_text(encoding="utf-8"), trim_blocks=True,
                       keep_trailing_newline=True, undefined=jinja2.StrictUndefined)


def write_rows(out: Path, made) -> None:
    """The data file as it stands: it grows while the run goes on."""
    rows = [refused(row, made.session.refusal) for row in chain(*made.rows.values())]
    write_jsonl(out / "triplets.jsonl", rows, mode=0o600)


def refused(row: dict, refusal: str) -> dict:
    """The row, its positive answer behind the refusal if the request is harmful and the answer does
    not decline with an apology itself. Its toxic one then differs from another token on, which
    `train` looks for."""
    apologises = re.search(r"\bsorry|\bapolog", first_words(row["positive"], 3))
    if row["kind"] == "benign" or not refusal or (apologises and is_refusal(row["positive"])):
        return row
    kept = {name: value for name, value in row.items() if name != "first_mismatch"}
    return kept | {"positive": f"{refusal} {row['positive']}"}


def write(out: Path, made) -> str:
    """Write all files, those with toxic text for their owner alone; returns report.md's text."""
    write_atomic(out / "CONTENT-WARNING.txt", (HERE / "content-warning.txt").read_bytes())
    write_jsonl(out / "topics.jsonl", [{"domain": name, "topic": topic}
                                       for name, topics in made.topics[-1].items()
                                       for topic in topics])
    write_jsonl(out / "instructions.jsonl", [item._asdict() for item in made.items])
    write_jsonl(out / "constraints.jsonl", [{"side": side, "rule": rule} for side, rules in
                                            made.rules.items() for rule in rules], mode=0o600)
    write_jsonl(out / "rejects.jsonl", made.session.rejects)
    write_rows(out, made)
    card = describe(made)
    page = PAGE.render(card)
    write_json(out / "report.json", card)
    write_atomic(out / "report.md", page)
    return page


def describe(made) -> dict:
    """Figures over the chosen rows and over everything that was turned down on the way. All but
    `this_start` is the same however often a run was resumed."""
    session, rows = made.session, list(chain(*made.rows.values()))
    pairs, stages = made.rows["triplets"], made.session.ledger.stages
    rows_by_domain = Counter(row["domain"] for row in rows if row["kind"] != "benign")
    # A base model declines nothing by itself, and is none the less fit for that.
    judges = {name: judge.card for name, judge in made.judges.items()
              if judge.used or name != "reluctance"}
    answers = {"positive": made.positive, "claims": made.corrections, "toxic": made.toxic,
               "benign": made.benign, "spilled": made.spilled}
    return {
        "triplets": len(pairs), "positive_only": len(rows) - len(pairs), "short": made.short,
        "rows": {kind: len(own) for kind, own in made.rows.items()},
        "declined": made.toxic.declined, "refusal": session.refusal,
        # Small models judge at chance: then the rules alone stand between bad rows and the data.
        "grade": "ok" if all(judge["used"] for judge in judges.values()) else "smoke",
        "judges": judges, "polarity": made.polarity.card(made.rows["triplets"]),
        "empty_domains": [d.name for d in session.domains
                          if d.kind != "benign" and not rows_by_domain[d.name]],
        "calls": {stage: {name: n[name] for name in ("calls", "tokens")}
                  for stage, n in stages.items()},
        "this_start": {stage: {"tokens": n["tokens_now"], "seconds": round(n["seconds_now"], 1)}
                       for stage, n in stages.items()},
        "rows_by_domain": rows_by_domain,
        "topics_with_rows": len({(row["domain"], row["topic"]) for row in rows}),
        "topics_by_domain": {name: len(topics) for name, topics in made.topics[-1].items()},
        "attempts": {side: own.verdicts for side, own in answers.items() if own.asked},
        "rejects": {stage: Counter(r["reason"] for r in session.rejects if r["stage"] == stage)
                    for stage in sorted({r["stage"] for r in session.rejects})},
    } | describe_texts(rows, session.refusal)


def describe_texts(rows: list[dict], refusal: str) -> dict:
    """Figures of the texts before the refusal is put in front. `length_auc`: of telling toxic from
    positive answers, refusal included, by their length, which training would learn instead of the
    point."""
    pairs = [row for row in rows if row["toxic"] is not None]
    sides = {"positive": [row["positive"] for row in rows],
             "toxic": [row["toxic"] for row in pairs]}
    by_length = auc(*([len(words(refused(row, refusal)[side])) for row in pairs]
                      for side in ("toxic", "positive")))  # as they stand in the file
    forks = [row["first_mismatch"] for row in pairs]
    return {
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
