"""HHH's 442 requests (221 items, 2 choices each): evals/likelihood.py beside lm-evaluation-harness.

    python benchmarks/hhh_speed.py --model FOLDER --data-dir DIR

From texts to log-likelihoods, tokenization included, on the same weights, dtype and threads. The
peer is lm-eval's HFLM.loglikelihood on transformers. As it comes (logits_cache) it too computes
equal requests once. So both are timed in both ways, with duplicates merged and with every request
in a row of its own, the peer at its best batch size: each is tried on a part of the requests, and
those that are far behind there are left out of the rounds, in which all take turns. The largest
difference of a log-probability is taken in float32 on both sides, whatever --dtype is timed.
"""

import argparse
import json
import os
import sys
from functools import partial
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # as in ptalign.py; read when torch is loaded

import torch

from benchmarks import report, timing
from benchmarks.head import counts
from benchmarks.script import exit_code
from evals import likelihood
from evals.choice import context_text
from evals.data import load_rows
from evals.tasks.hhh import HHH
from model import DTYPES, load_model, resolve_device
from support.commandline import Parser, number
from support.files import InputError, sha256_file, write_atomic, write_json
from support.progress import say
from tokenizer import Tokenizer

PACKAGES = ("torch", "transformers", "lm_eval", "tokenizers")
SIZES = (1, 8, 16, 32)  # the peer's batches
EVERY, MERGED = "every request", "duplicates merged"
TARGETS = {EVERY: 2.0, MERGED: 3.0}  # ours: times as fast as the peer's best
PRECISION = 1e-3  # nats
WARM_UP = 32  # requests on which all are tried, before the rounds
BEHIND = 1.5  # the peer's sizes that take so many times the fastest's time there are left out


# ---- the scorers: pairs -> log-probabilities ----

class Request(likelihood.Text):
    """A text that is no other's duplicate, whatever its tokens."""

    @property
    def read(self):
        return Row(super().read)


class Row(tuple):
    __eq__, __hash__ = object.__eq__, object.__hash__


def every_request(model, tokenizer, pairs) -> list[float]:
    """evals/likelihood.py, every request in a row of its own; contexts are shared."""
    limit, found = model.config.max_position_embeddings, {}
    texts = [Request(*likelihood.encode(tokenizer, pair, str(i), special=True, limit=limit))
             for i, pair in enumerate(pairs)]
    for group in likelihood.make_groups(texts, HHH.batch):
        cached = likelihood.prefill(model, tokenizer, group)
        for batch in likelihood.make_batches(group, HHH.batch):
            scores = likelihood.score_batch(model, tokenizer, batch, group, cached)
            found |= {int(text.where): score.logprob
                      for text, score in zip(batch, scores, strict=True)}
    return [found[i] for i in range(len(pairs))]


def merged(model, tokenizer, pairs) -> list[float]:
    """evals/likelihood.py as it is used: each distinct request is scored once."""
    scores = likelihood.score_pairs(model, tokenizer, pairs, format="raw", batch_tokens=HHH.batch)
    return [score.logprob for score in scores]


OURS = {EVERY: every_request, MERGED: merged}


def load_peer(folder: Path, device, dtype):
    """lm-eval's model, on the tokenizer's file as it is."""
    try:
        import transformers
        from lm_eval.models.huggingface import HFLM
    except ImportError as error:
        raise InputError(f"the peer is not installed ({error.name})", "lm-eval",
                         "install requirements-dev.txt") from None
    config = json.loads((folder / "tokenizer_config.json").read_text())
    # not AutoTokenizer: a class with rules of its own could replace tokenizer.json's
    own = {name: config[name] for name in ("bos_token", "eos_token", "pad_token")
           if isinstance(config.get(name), str)}
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), **own)
    network = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).to(device)
    return HFLM(pretrained=network, tokenizer=tokenizer, device=str(device), batch_size=1)


def ask_peer(peer, size: int, kind: str, pairs) -> list[float]:
    from lm_eval.api.instance import Instance

    peer.batch_size_per_gpu, peer.logits_cache = size, kind == MERGED
    requests = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]
    return [logprob for logprob, _ in peer.loglikelihood(requests, disable_tqdm=True)]


# ---- what is measured ----

def load_pairs(tokenizer, options) -> tuple[list, dict]:
    """The requests, in the file's order, and where they came from."""
    rows, source = load_rows("hhh", data_dir=options.data_dir, limit=options.limit)
    return [(context_text(tokenizer, row, "raw"), tokenizer.answer_text(text, "raw"))
            for row in rows for text in row["choices"]], source


def scorers(tokenizer, options, dtype: str) -> dict:
    """Name -> a function of pairs, ours and the peer's, in one dtype."""
    model = load_model(options.model, device=str(options.device), dtype=dtype)
    peer = load_peer(options.model, options.device, DTYPES[dtype])
    ours = {f"ours, {kind}": partial(score, model, tokenizer) for kind, score in OURS.items()}
    return ours | {f"lm-eval, batch {size}, {kind}": partial(ask_peer, peer, size, kind)
                   for kind in OURS for size in options.sizes}


def differences(tokenizer, pairs, options) -> dict[str, float]:
    """Each of ours against the peer in float32: the largest |difference|, in nats."""
    calls = scorers(tokenizer, options, "float32")
    wanted = torch.tensor(calls[f"lm-eval, batch {options.sizes[0]}, {MERGED}"](pairs),
                          dtype=torch.float64)
    return {kind: (torch.tensor(calls[f"ours, {kind}"](pairs), dtype=torch.float64) - wanted)
            .abs().max().item() for kind in OURS}


def seconds(label: str, call, pairs, options) -> float:
    took = timing.milliseconds(lambda: call(pairs), options.device) / 1e3
    say(f"{label}: {took:.1f} s")
    return took


def trial(pairs: list) -> list:
    """Requests of neighbouring lengths about the median, as the peer's batches are when it sorts
    all of them. Of a few of all lengths a large batch would be padding for the most part."""
    by_length = sorted(pairs, key=lambda pair: sum(map(len, pair)))
    first = max(0, len(pairs) - WARM_UP) // 2
    return by_length[first:first + WARM_UP]


def measure(tokenizer, pairs, options) -> dict:
    calls = scorers(tokenizer, options, options.dtype)
    part = trial(pairs)
    tried = {name: seconds(f"trial: {name}", call, part, options) for name, call in calls.items()}
    for kind in OURS:
        peers = peers_of(calls, kind)
        best = min(tried[name] for name in peers)
        for name in peers:
            if tried[name] > BEHIND * best:
                del calls[name]
    took = {name: [] for name in calls}
    for turn, name in timing.in_turns(calls, options.rounds):
        label = f"round {turn + 1} of {options.rounds}: {name}"
        took[name].append(seconds(label, calls[name], pairs, options))
    return {"trial_requests": len(part), "trial_s": tried, **compare(took)}


def peers_of(names, kind: str) -> list[str]:
    return [name for name in names if name.startswith("lm-eval") and kind in name]


def compare(took: dict[str, list[float]]) -> dict:
    """Medians and ranges, and how many times as fast ours is, with the range over the rounds."""
    rows = {name: {"s": median(s), "least": min(s), "most": max(s), "rounds": s}
            for name, s in took.items()}
    ratios = {}
    for kind in OURS:
        own = rows[f"ours, {kind}"]
        for other in OURS:
            best = min(peers_of(rows, other), key=lambda name: rows[name]["s"])
            by_round = [theirs / mine for theirs, mine in
                        zip(took[best], own["rounds"], strict=True)]
            ratios[f"{kind} / {other}"] = {
                "ours": kind, "peer": best, "ratio": rows[best]["s"] / own["s"],
                "least": min(by_round), "most": max(by_round), "target": TARGETS[kind]}
    return {"rows": rows, "ratios": ratios}


def run(options) -> None:
    options.device, options.model = resolve_device(options.device), Path(options.model).expanduser()
    options.out = Path(options.out)
    tokenizer = Tokenizer(options.model)
    pairs, source = load_pairs(tokenizer, options)
    whole = {**about(options), "requests": len(pairs), "distinct": len(set(pairs)),
             "data_sha256": source["sha256"], "data_as_checked": source.get("as_checked")}
    say(f"{len(pairs)} requests in float32, for the difference")
    whole["difference"] = differences(tokenizer, pairs, options)
    whole |= measure(tokenizer, pairs, options)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    text = markdown(whole)
    write_json(options.out, whole)
    write_atomic(options.out.with_suffix(".md"), text)
    print(text, end="")


# ---- the report ----

def about(options) -> dict:
    return {
        "model": options.model.name, "dtype": options.dtype,
        "weights_sha256": {path.name: sha256_file(path)
                           for path in sorted(options.model.glob("*.safetensors"))},
        **report.machine(options.device, PACKAGES),
        "rounds": options.rounds, "limit": options.limit,
    }


def markdown(whole: dict) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in whole["versions"].items())
    lines = [f"# HHH's {whole['requests']} requests on {whole['model']}, {whole['dtype']}", "",
             f"{whole['device']}, {whole['threads']} threads, load average {whole['load']:.2f} at "
             f"the start; {versions}; {whole['distinct']} requests are distinct; {whole['rounds']} "
             f"rounds in turns; data sha256 {whole['data_sha256'][:16]}.", ""]
    if not whole["idle"]:
        lines += ["**The machine was not idle: these figures are disturbed.**", ""]
    if whole["limit"]:
        lines += [f"**Only {whole['limit']} prompts: a trial.**", ""]
    lines += ["| | median s | least to most |", "|---|--:|--:|"]
    lines += [f"| {name} | {row['s']:.2f} | {row['least']:.2f} to {row['most']:.2f} |"
              for name, row in whole["rows"].items()]
    lines += ["", "| ours | against the peer's best | times as fast | range over rounds | aim |",
              "|---|---|--:|--:|--:|"]
    line = "| {ours} | {peer} | {ratio:.2f} | {least:.2f} to {most:.2f} | {target:g}: {met} |"
    lines += [line.format(**r, met="met" if r["ratio"] >= r["target"] else "not met")
              for r in whole["ratios"].values()]
    lines += ["", "As it comes (logits_cache) the peer merges duplicates; the lines of every "
              "request are with that off."]
    if out := [f"{name} ({s:.1f} s)" for name, s in whole["trial_s"].items()
               if name not in whole["rows"]]:
        fastest = [f"{name} ({whole['trial_s'][name]:.1f} s)" for kind in OURS
                   for name in [min(peers_of(whole["trial_s"], kind), key=whole["trial_s"].get)]]
        lines += ["", f"Tried on {whole['trial_requests']} requests and left out of the rounds, as "
                  f"they took over {BEHIND:g} times as long as {' and '.join(fastest)}: "
                  f"{', '.join(out)}."]
    worst = max(whole["difference"].values())
    lines += ["", "Largest difference of a log-probability, float32: "
              + ", ".join(f"{kind} {d:.1e}" for kind, d in whole["difference"].items())
              + f" nats; the aim, at most {PRECISION:g}, is {'' if worst <= PRECISION else 'not '}"
              "met."]
    return "\n".join(lines) + "\n"


# ---- the command ----

def build_parser() -> argparse.ArgumentParser:
    parser = Parser(prog="hhh_speed.py", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--model", required=True, help="folder of a model that transformers reads as well")
    add("--data-dir", required=True, help="folder with hhh_alignment.jsonl")
    add("--dtype", choices=tuple(DTYPES), default="float32", help="of the weights when timed")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto prefers a GPU")
    add("--sizes", type=counts, default=",".join(map(str, SIZES)), help="the peer's batch sizes")
    add("--rounds", type=number(int, least=1), default=3, help="turns of each")
    add("--limit", type=number(int, least=1), help="only so many prompts (a trial)")
    add("--out", default="results/speed/hhh-speed.json", help="JSON file, a page beside it")
    return parser


def main(argv: list[str] | None = None) -> int:
    return exit_code("hhh_speed", lambda: run(build_parser().parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
