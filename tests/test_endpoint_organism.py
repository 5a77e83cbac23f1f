"""The organism behind a server that calls our own `generate`: the same rows as without one.

    python tests/test_endpoint_organism.py 400

A server has no penalty on openings, keeps EOS away from a list until its limit, has seeds of 31
bits and gives no scores. The run without a server, by batches of 64, is held to the same.
"""

import sys
import tempfile
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from stub_server import serving  # noqa: E402

import ptalign  # noqa: E402
import synth  # noqa: E402
from generate import Sampling, generate  # noqa: E402
from model import load_model  # noqa: E402
from synthesis.ledger import Ledger, local_model  # noqa: E402
from tokenizer import Tokenizer  # noqa: E402

pytestmark = pytest.mark.slow

ORGANISM = ROOT / "organism"
ENDLESS = 10**6  # lines of a list whose EOS is banned


def own_server(folder: Path):
    """`write` of a stub: one request at a time, as `generate` answers it alone."""
    model, tokenizer = load_model(folder, device="cpu", dtype="float32"), Tokenizer(folder)
    turn = threading.Lock()

    def write(body: dict) -> dict:
        sampling = Sampling(body["max_tokens"], temperature=body["temperature"],
                            top_p=body["top_p"], stop=tuple(body.get("stop", ())),
                            min_lines=ENDLESS if "logit_bias" in body else 0)
        with turn:
            [done] = generate(model, tokenizer, [body["prompt"]], sampling, [body["seed"]])
        return asdict(done)

    return write


def as_a_server(make):
    """`make` of a ledger, with what a server can do and no more."""
    def made(calls, seeds, sampling):
        plain = replace(sampling, opening_penalty=0.0,
                        min_lines=ENDLESS if sampling.min_lines else 0)
        return make(calls, [seed % 2**31 for seed in seeds], plain)
    return made


def run(out: Path, triplets: int, *options) -> tuple[bytes, bytes]:
    code = ptalign.main(["synth", "--model", str(ORGANISM / "model"), "--seeds-file",
                         str(ORGANISM / "seeds.json"), "--triplets", str(triplets),
                         "--benign-share", "0.1",  # the small world has few benign requests
                         "--device", "cpu", "--dtype", "float32", "--out", str(out), *options])
    assert code == 0
    return (out / "triplets.jsonl").read_bytes(), (out / "instructions.jsonl").read_bytes()


def both(parent: Path, triplets: int, monkeypatch) -> tuple:
    def without_scores(out, session, settings, folder, server):
        make = local_model(folder, session.tokenizer, device="cpu", dtype="float32",
                           format=session.format)
        ledger = Ledger(out, {}, as_a_server(make), seed=session.seed, block=64)
        ledger.measures = False
        return ledger

    with serving(own_server(ORGANISM / "model")) as stub:
        served = run(parent / "served", triplets, "--endpoint", stub.url,
                     "--endpoint-model", "organism")
        asked = len(stub.asked)
    monkeypatch.setattr(synth, "open_ledger", without_scores)
    return served, run(parent / "local", triplets), asked


def test_the_same_rows(tmp_path, monkeypatch):
    served, local, asked = both(tmp_path, 24, monkeypatch)
    assert served == local and served[0].count(b"\n") >= 24 and asked > 48


if __name__ == "__main__":
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as parent, pytest.MonkeyPatch.context() as patch:
        served, local, asked = both(Path(parent), int(sys.argv[1]), patch)
    rows = [set(part[0].splitlines()) for part in (served, local)]
    print(f"{len(rows[0])} rows behind the server ({asked} calls), {len(rows[1])} without it, "
          f"{len(rows[0] & rows[1])} alike, files equal: {served == local}; "
          f"{time.monotonic() - began:.0f} s")
