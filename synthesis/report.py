"""A synthesised data set on disk and in figures: its files, report.json, report.md, the dry run.

The shortcut checks ask whether "toxic?" can be read off something that is not the point (length,
first word): if so, training may learn that instead. No report holds toxic text.
"""

import math
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import numpy as np

from support.files import sha256, write_atomic, write_jsonl
from support.lexicon import is_refusal, words
from synthesis.filters import auc, first_words
from synthesis.rouge import distinct_n, grams, rouge_l

SAMPLE = 200  # texts that are compared each with each
SHORTCUT = 0.8  # AUC above which a shortcut is warned about
MECHANICAL = 0.1  # share of positives that open with a refusal, warned about above it
DOUBTFUL = 0.5  # share of toxic attempts turned down, above which the model's fitness is doubted


WARNING = """Some files here hold text that a model wrote under rules to be careless, scornful or
dishonest. It is the negative side of unlikelihood training and nothing else: do not train a
model to produce it, do not show it unasked, and do not judge people by it. It was filtered for
instructions and excluded subjects, but no filter is complete.
"""


def write_files(out: Path, *, topics: dict[str, list[str]], items: list, rows: list[dict],
                constraints: dict[str, list[str]], rejects: list[dict]) -> None:
    """The stage files, all derived; whatever may be toxic is readable by its owner alone."""
    write_atomic(out / "CONTENT-WARNING.txt", WARNING)
    write_jsonl(out / "topics.jsonl", [{"domain": name, "topic": topic}
                                       for name, own in topics.items() for topic in own])
    write_jsonl(out / "instructions.jsonl", map(asdict, items))
    write_jsonl(out / "constraints.jsonl", [{"side": side, "rule": rule}
                                            for side, own in constraints.items() for rule in own],
                mode=0o600)
    write_jsonl(out / "rejects.jsonl", rejects)
    write_jsonl(out / "triplets.jsonl", rows, mode=0o600)


def describe(rows: list[dict], *, topics: dict[str, list[str]], verdicts: dict[str, Counter],
             rejects: list[dict], short: list[str], calls: dict[str, Counter]) -> dict:
    """Figures over the final rows, and over everything that was turned down on the way.

    `calls` counts model calls and new tokens by stage; what ends in _now is of this start alone and
    is told apart, in `this_start`, so that all else is the same however often a run was resumed.
    """
    pairs = [row for row in rows if row["toxic"] is not None]
    sides = {"positive": [row["positive"] for row in rows],
             "toxic": [row["toxic"] for row in pairs]}
    forks = [row["first_mismatch"] for row in pairs]
    rows_by_topic = Counter((row["domain"], row["topic"]) for row in rows)
    return {
        "triplets": len(pairs), "positive_only": len(rows) - len(pairs), "short": short,
        "calls": {stage: {name: count[name] for name in ("calls", "tokens")}
                  for stage, count in calls.items()},
        "this_start": {stage: {"tokens": count["tokens_now"],
                               "seconds": round(count["seconds_now"], 1)}
                       for stage, count in calls.items()},
        "rows_by_domain": dict(Counter(row["domain"] for row in rows)),
        "domain_entropy_bits": round(entropy(row["domain"] for row in rows), 3),
        "topics_below_3_rows": sum(n < 3 for n in rows_by_topic.values()),
        "topics_with_rows": len(rows_by_topic),
        "topics_by_domain": {name: len(own) for name, own in topics.items()},
        "attempts": {side: dict(count) for side, count in verdicts.items()},
        "rejects": {stage: dict(Counter(r["reason"] for r in rejects if r["stage"] == stage))
                    for stage in sorted({r["stage"] for r in rejects})},
        "words": {side: quantiles([len(words(text)) for text in texts])
                  for side, texts in sides.items()},
        "distinct_1_2_3": [round(distinct_n(sides["positive"], n), 3) for n in (1, 2, 3)],
        "prompts": {"nearest_rouge_l": quantiles(nearest([row["prompt"] for row in rows])),
                    "self_bleu_4": self_bleu([row["prompt"] for row in rows])},
        "distinct_first_words": {side: len({first_words(t, 1) for t in texts})
                                 for side, texts in sides.items()},
        "refusal_openings": {side: share(map(is_refusal, texts)) for side, texts in sides.items()},
        "top_openings": Counter(first_words(t, 3) for t in sides["positive"]).most_common(3),
        "shared_opening": share(k > 0 for k in forks), "first_mismatch": quantiles(forks),
        "shortcut_auc": shortcuts(pairs),
    }


def quantiles(values: list[float]) -> list[float]:
    """Least, quartiles and greatest; empty for no values."""
    return np.quantile(values, [0, 0.25, 0.5, 0.75, 1]).tolist() if values else []


def entropy(values) -> float:
    """Bits; log2 of the number of kinds if they are equally common."""
    counts = list(Counter(values).values())
    return -sum(n / sum(counts) * math.log2(n / sum(counts)) for n in counts)


def sample(texts: list[str]) -> list[str]:
    """At most SAMPLE texts, evenly spread: the figures below compare each with each."""
    return texts[:: max(1, math.ceil(len(texts) / SAMPLE))]


def nearest(texts: list[str]) -> list[float]:
    """For each sampled text the highest ROUGE-L F1 with another one of the sample."""
    own = sample(texts)
    return [max(rouge_l(a, b) for j, b in enumerate(own) if j != i)
            for i, a in enumerate(own) if len(own) > 1]


def self_bleu(texts: list[str]) -> float | None:
    """Mean BLEU-4 of each sampled text against all others (Zhu et al., arXiv 1802.01886).

    Without a brevity penalty, which against 200 references is nearly always 1. 1 is all alike.
    """
    own = sample(texts)
    if len(own) < 2:
        return None
    scores = []
    for n in range(1, 5):
        counts = [Counter(grams(text, n)) for text in own]
        # Each n-gram's two highest counts: what the *others* hold of it is the lower one for the
        # text that has the higher.
        second_first: dict[tuple, list[int]] = {}
        for count in counts:
            for gram, times in count.items():
                second_first[gram] = sorted([*second_first.get(gram, [0, 0]), times])[-2:]
        precisions = []
        for count in counts:
            matched = 0
            for gram, times in count.items():
                second, first = second_first[gram]
                matched += min(times, second if times == first else first)
            precisions.append((matched + 1) / (count.total() + 1))  # +1: no logarithm of 0
        scores.append(precisions)
    return round(float(np.exp(np.log(scores).mean(0)).mean()), 3)  # over n, then over texts


def share(flags) -> float | None:
    flags = list(flags)
    return round(sum(flags) / len(flags), 3) if flags else None


def shortcuts(pairs: list[dict]) -> dict[str, float]:
    """AUC of telling toxic from positive by length (0.5 to 1) and by first word (chance 0.5).

    The first word's score comes from the other half of the rows: on its own half a rare word
    would always tell. A hash halves them, since their order goes round the domains.
    """
    sizes = {side: [len(words(p[side])) for p in pairs] for side in ("toxic", "positive")}
    lengths = auc(sizes["toxic"], sizes["positive"])
    halves = [], []
    for pair in pairs:
        halves[int(sha256(pair["prompt"]), 16) % 2].append(pair)
    scores: dict[str, list[float]] = {"toxic": [], "positive": []}
    for here, there in (halves, halves[::-1]):
        counts = {side: Counter(first_words(p[side], 1) for p in there) for side in scores}
        for side in scores:
            for pair in here:
                word = first_words(pair[side], 1)
                seen = counts["toxic"][word] + counts["positive"][word]
                scores[side].append((counts["toxic"][word] + 0.5) / (seen + 1))
    first = auc(scores["toxic"], scores["positive"])
    return {"length": round(max(lengths, 1 - lengths), 3), "first_word": round(first, 3)}


def warnings(card: dict) -> list[str]:
    """What a reader should know before training on it."""
    told = list(card["short"])
    for name, value in card["shortcut_auc"].items():
        if value > SHORTCUT:
            told.append(f"toxic can be told by {name.replace('_', ' ')} alone (AUC {value:.2f})")
    toxic = card["attempts"].get("toxic", {})
    turned_down = 1 - toxic.get("accepted", 0) / max(1, sum(toxic.values()))
    if toxic and turned_down > DOUBTFUL:
        told.append(f"{turned_down:.0%} of the toxic attempts were turned down")
    mechanical = card["refusal_openings"]["positive"] or 0
    if mechanical > MECHANICAL:
        told.append(f"{mechanical:.0%} of the positive answers open with a refusal")
    return told


def verdict(card: dict) -> str:
    """One line on whether to train on it."""
    told = warnings(card)
    return f"look before you train on it: {'; '.join(told)}" if told else "nothing stands out"


def as_markdown(card: dict) -> str:
    lines = ["# Synthesised data", "",
             f"{card['triplets']} triplets and {card['positive_only']} rows with a positive answer"
             " only.", "", f"Verdict: {verdict(card)}.", "", "| domain | topics | rows |",
             "|---|---:|---:|"]
    for name in sorted(card["rows_by_domain"].keys() | card["topics_by_domain"].keys()):
        topics = card["topics_by_domain"].get(name, "-")
        lines.append(f"| {name} | {topics} | {card['rows_by_domain'].get(name, 0)} |")
    lines += ["", "| stage | calls | new tokens |", "|---|---:|---:|"]
    lines += [f"| {stage} | {count['calls']} | {count['tokens']} |"
              for stage, count in card["calls"].items()]
    lines += ["", "| answers | attempts | accepted | why the others were not |",
              "|---|---:|---:|---|"]
    for side, count in card["attempts"].items():
        lines.append(f"| {side} | {sum(count.values())} | {count.get('accepted', 0)} |"
                     f" {listed(count)} |")
    lines += ["", "| stage | turned down |", "|---|---|"]
    lines += [f"| {stage} | {listed(count)} |" for stage, count in card["rejects"].items()]
    return "\n".join([*lines, "", *figures(card)]) + "\n"


def listed(count: dict[str, int]) -> str:
    """Reasons, the commonest first."""
    ranked = sorted(count.items(), key=lambda entry: (-entry[1], entry[0]))
    return ", ".join(f"{reason} {n}" for reason, n in ranked if reason != "accepted")


def figures(card: dict) -> list[str]:
    openings, prompts = card["refusal_openings"], card["prompts"]
    return [
        f"- words (least, quartiles, greatest): positive {card['words']['positive']}, toxic"
        f" {card['words']['toxic']}",
        f"- refusal openings: positive {openings['positive']}, toxic {openings['toxic']}",
        f"- distinct first words: {card['distinct_first_words']}; commonest openings of positives:"
        f" {card['top_openings']}",
        f"- pairs that share an opening: {card['shared_opening']}; first mismatch at token"
        f" {card['first_mismatch']}",
        f"- shortcut AUC: {card['shortcut_auc']}",
        f"- entropy over domains: {card['domain_entropy_bits']} bits; topics with fewer than 3"
        f" rows: {card['topics_below_3_rows']} of {card['topics_with_rows']}",
        f"- prompts: nearest ROUGE-L {[round(x, 2) for x in prompts['nearest_rouge_l']]},"
        f" self-BLEU-4 {prompts['self_bleu_4']}",
        f"- distinct 1-, 2-, 3-grams of the positives: {card['distinct_1_2_3']}",
    ]


def preview(prompts: dict[str, str], *, triplets: int, n_benign: int, positives_only: bool,
            limit: int | None) -> int:
    """--dry-run: what would be generated, and one whole prompt of each stage but the toxic one."""
    instructions = sum(min(math.ceil(1.5 * n), limit or math.inf) for n in (triplets, n_benign))
    toxic = 0 if positives_only else min(1.5 * triplets, limit or math.inf)
    answers = math.ceil(1.3 * (instructions + toxic))
    new = instructions // 3 * 160 + answers * 120
    print(f"{triplets} triplets and {n_benign} benign rows take about {instructions} instructions,"
          f" {answers} answers and {new:,} new tokens (one attempt in four fails).\n")
    for stage, prompt in prompts.items():
        print(f"--- {stage} ---\n{prompt}\n")
    return 0
