"""A synthesised data set on disk and in figures: its files, report.json and report.md.

The shortcut checks ask whether "toxic?" can be read off something that is not the point (length,
first word): if so, training may learn that instead. No report holds toxic text."""

import math
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import jinja2
import numpy as np

from support.files import sha256, write_atomic, write_json, write_jsonl
from support.lexicon import distinct_share, first_words, grams, is_refusal, words
from synthesis.lists import Item
from synthesis.rouge import rouge_l, tokens

SAMPLE = 200  # texts that are compared each with each
HERE = Path(__file__).parent
PAGE = jinja2.Template((HERE / "report.jinja").read_text(encoding="utf-8"), trim_blocks=True,
                       keep_trailing_newline=True, undefined=jinja2.StrictUndefined)


class Dataset(NamedTuple):
    """All that synthesis made, ready to be written."""
    topics: dict[str, list[str]]  # by domain
    items: list[Item]
    constraints: dict[str, list[str]]  # by side
    rows: list[dict]  # triplets first, then positive-only rows, then benign ones
    verdicts: dict[str, Counter]  # on the attempts at answers, by side
    rejects: list[dict]
    short: list[str]  # what fell short of its target, in words
    calls: dict[str, Counter]  # by stage: Ledger.stages


def write(out: Path, data: Dataset) -> str:
    """The files, whatever may be toxic readable by its owner alone; returns report.md."""
    write_atomic(out / "CONTENT-WARNING.txt", (HERE / "content-warning.txt").read_bytes())
    write_jsonl(out / "topics.jsonl", [{"domain": name, "topic": topic}
                                       for name, topics in data.topics.items() for topic in topics])
    write_jsonl(out / "instructions.jsonl", [item._asdict() for item in data.items])
    write_jsonl(out / "constraints.jsonl", [{"side": side, "rule": rule} for side, rules in
                                            data.constraints.items() for rule in rules], mode=0o600)
    write_jsonl(out / "rejects.jsonl", data.rejects)
    write_jsonl(out / "triplets.jsonl", data.rows, mode=0o600)
    card = describe(data)
    page = PAGE.render(card)
    write_json(out / "report.json", card)
    write_atomic(out / "report.md", page)
    return page


def describe(data: Dataset) -> dict:
    """Figures over the final rows, and over everything that was turned down on the way. All but
    `this_start` is the same however often a run was resumed."""
    rows, pairs = data.rows, [row for row in data.rows if row["toxic"] is not None]
    sides = {"positive": [row["positive"] for row in rows],
             "toxic": [row["toxic"] for row in pairs]}
    prompts = sample([row["prompt"] for row in rows])
    forks = [row["first_mismatch"] for row in pairs]
    rows_by_domain = Counter(row["domain"] for row in rows)
    rows_by_topic = Counter((row["domain"], row["topic"]) for row in rows)
    return {
        "triplets": len(pairs), "positive_only": len(rows) - len(pairs), "short": data.short,
        "calls": {stage: {name: n[name] for name in ("calls", "tokens")}
                  for stage, n in data.calls.items()},
        "this_start": {stage: {"tokens": n["tokens_now"], "seconds": round(n["seconds_now"], 1)}
                       for stage, n in data.calls.items()},
        "rows_by_domain": dict(rows_by_domain),
        "domain_entropy_bits": round(entropy(rows_by_domain), 3),
        "topics_below_3_rows": sum(n < 3 for n in rows_by_topic.values()),
        "topics_with_rows": len(rows_by_topic),
        "topics_by_domain": {name: len(topics) for name, topics in data.topics.items()},
        "attempts": {side: dict(count) for side, count in data.verdicts.items()},
        "rejects": {stage: dict(Counter(r["reason"] for r in data.rejects if r["stage"] == stage))
                    for stage in sorted({r["stage"] for r in data.rejects})},
        "words": {side: quantiles([len(words(t)) for t in sides[side]]) for side in sides},
        "distinct_1_2_3": [round(distinct_n(sides["positive"], n), 3) for n in (1, 2, 3)],
        "prompts": {"nearest_rouge_l": quantiles(nearest(prompts)),
                    "self_bleu_4": self_bleu(prompts)},
        "distinct_first_words": {side: len({first_words(t, 1) for t in sides[side]})
                                 for side in sides},
        "refusal_openings": {side: share([is_refusal(t) for t in sides[side]]) for side in sides},
        "top_openings": Counter(first_words(t, 3) for t in sides["positive"]).most_common(3),
        "shared_opening": share([k > 0 for k in forks]), "first_mismatch": quantiles(forks),
        "shortcut_auc": shortcuts(pairs),
    }


def quantiles(values: list[float]) -> list[float]:
    """Least, quartiles and greatest; empty for no values."""
    return np.quantile(values, [0, 0.25, 0.5, 0.75, 1]).tolist() if values else []


def share(flags: list[bool]) -> float | None:
    return round(sum(flags) / len(flags), 3) if flags else None


def entropy(counts: Counter) -> float:
    """Bits; log2 of the number of kinds if they are equally common."""
    total = counts.total()
    return -sum(n / total * math.log2(n / total) for n in counts.values())


def distinct_n(texts: list[str], n: int) -> float:
    """Share of distinct n-grams, none of which reaches across two texts."""
    return distinct_share([gram for text in texts for gram in grams(tokens(text), n)])


def sample(texts: list[str]) -> list[str]:
    """At most SAMPLE texts, evenly spread: figures below compare each with each."""
    return texts[:: max(1, math.ceil(len(texts) / SAMPLE))]


def nearest(texts: list[str]) -> list[float]:
    """For each text the highest ROUGE-L F1 with another one."""
    return [max(rouge_l(a, b) for j, b in enumerate(texts) if j != i)
            for i, a in enumerate(texts) if len(texts) > 1]


def self_bleu(texts: list[str]) -> float | None:
    """Mean BLEU-4 of each text against all others (Zhu et al., arXiv 1802.01886); 1: all alike.
    Without a brevity penalty, which against 200 references is nearly always 1."""
    if len(texts) < 2:
        return None
    logs = np.zeros(len(texts))
    for n in range(1, 5):
        counts = [Counter(grams(tokens(text), n)) for text in texts]
        for i, count in enumerate(counts):
            others = counts[:i] + counts[i + 1:]
            matched = sum(min(times, max(other[gram] for other in others))
                          for gram, times in count.items())
            logs[i] += math.log((matched + 1) / (count.total() + 1))  # +1: no logarithm of 0
    return round(float(np.exp(logs / 4).mean()), 3)


def auc(scores_a: list[float], scores_b: list[float]) -> float:
    """P(a > b) + P(a = b) / 2; 1/2 where a side is empty."""
    a, b = np.asarray(scores_a, float), np.sort(np.asarray(scores_b, float))
    # Places left and right of the ties: their sum is twice the wins, a tie counting half.
    wins = np.searchsorted(b, a, "left") + np.searchsorted(b, a, "right")
    return float(wins.sum() / (2 * len(a) * len(b))) if len(a) and len(b) else 0.5


def shortcuts(pairs: list[dict]) -> dict[str, float]:
    """AUC of telling toxic from positive by length (0.5 to 1) and by first word (chance 0.5). The
    first word's score comes from the other half of the rows: on its own half a rare word would
    always tell. A hash halves them, since their order goes round the domains."""
    sides = ("toxic", "positive")
    by_length = auc(*([len(words(pair[side])) for pair in pairs] for side in sides))
    half = [int(sha256(pair["prompt"]), 16) % 2 for pair in pairs]
    first = {side: [first_words(pair[side], 1) for pair in pairs] for side in sides}
    counts = {side: Counter(zip(half, first[side], strict=True)) for side in sides}

    def score(h: int, word: str) -> float:
        toxic, positive = (counts[side][1 - h, word] for side in sides)
        return (toxic + 0.5) / (toxic + positive + 1)

    by_word = auc(*(list(map(score, half, first[side])) for side in sides))
    return {"length": round(max(by_length, 1 - by_length), 3), "first_word": round(by_word, 3)}
