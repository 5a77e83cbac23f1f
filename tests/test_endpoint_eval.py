"""eval behind a server: a stub that answers with our own `generate` on the tiny random model.

Its answers are those of the local run where seeds have 31 bits. CPU fp32.
"""

import threading
from dataclasses import asdict
from types import SimpleNamespace

import pytest
from stub_server import serving
from test_evals import PROMPT_ROWS, results_of, rows  # noqa: F401

import evals.answers as answering
import ptalign
from evals.suite import SERVED
from generate import Sampling, generate
from model import load_model
from support.endpoint import Endpoint
from support.files import read_jsonl, read_object
from synthesis import ledger
from tokenizer import Tokenizer


@pytest.fixture
def own_generate(tiny_folder):
    """`write` of a stub: what `generate` makes of one request."""
    model, tokenizer = load_model(tiny_folder, dtype="float32"), Tokenizer(tiny_folder)
    one = threading.Lock()

    def write(body: dict) -> dict:
        sampling = Sampling(body["max_tokens"], body["temperature"], body["top_p"],
                            max(body["top_k"], 0), tuple(body.get("stop", ())),
                            min_lines=10**6 * ("logit_bias" in body))
        with one:
            [done] = generate(model, tokenizer, [body["prompt"]], sampling, [body["seed"]])
        return asdict(done)

    return write


def test_calls_of_synth_are_those_of_the_local_model(tiny_folder, tmp_path, monkeypatch,
                                                     own_generate):
    real, tokenizer = ledger.draw_seed, Tokenizer(tiny_folder)
    monkeypatch.setattr(ledger, "draw_seed", lambda *named: real(*named) % 2**31)
    calls = [ledger.Call(f"answers/{i}", f"Prompt {i}: why") for i in range(9)]
    sampling = Sampling(12, temperature=0.9, top_p=0.95, stop=("\n",))
    make = ledger.local_model(tiny_folder, tokenizer, device="cpu", dtype="float32", format="raw")
    for name in ("local", "served"):
        (tmp_path / name).mkdir()
    with serving(own_generate) as stub:
        place = Endpoint([stub.url], "tiny", tokenizer, context=2048, concurrency=4)
        books = (ledger.Ledger(tmp_path / "local", {}, make, seed=0, block=8),
                 ledger.ServedLedger(tmp_path / "served", {}, place, seed=0, format="raw"))
        local, served = ([(id, done.text) for id, done in book.complete(
            calls, sampling, stage="test").items()] for book in books)
    assert served == local and len({text for _, text in served}) > 4


def evaluate(folder, data, out, *options) -> int:
    return ptalign.main(["eval", "--model", str(folder), "--data-dir", str(data), "--out", str(out),
                         "--max-new-tokens", "8", "--dtype", "float32", *options])


@pytest.mark.parametrize("options", [
    ["--tasks", "refusal,jailbreak"], ["--tasks", "refusal", "--format", "raw", "--samples", "2"]])
def test_answers_are_those_of_the_local_model(tiny_folder, rows, tmp_path, monkeypatch,
                                              own_generate, options):
    real = answering.draw_seed
    monkeypatch.setattr(answering, "draw_seed", lambda *named: real(*named) % 2**31)
    assert evaluate(tiny_folder, rows, tmp_path / "local", *options) == 0
    with serving(own_generate) as stub:
        served = ["--endpoint", stub.url, "--endpoint-model", "tiny"]
        assert evaluate(tiny_folder, rows, tmp_path / "served", *options, *served) == 0
        asked = len(stub.asked)
        assert evaluate(tiny_folder, rows, tmp_path / "served", *options, *served) == 0
        assert len(stub.asked) == asked  # all was on record
    local, served = ([row["base"] for _, row in read_jsonl(tmp_path / name / "items.jsonl")]
                     for name in ("local", "served"))
    assert [row["answer_sha256"] for row in served] == [row["answer_sha256"] for row in local]
    assert {row["nll"] for row in served} == {None}
    results = results_of(tmp_path / "served")
    assert SERVED in results["notes"] and results["device"] == "server"
    lines = read_jsonl(tmp_path / "served" / "answers.jsonl")
    assert {len(line["rows"]) for _, line in lines} == {1}


def test_progress_is_told_while_calls_are_under_way(tiny_folder, own_generate):
    """One step as each answer ends, those on record first; not all of them at the end."""
    steps, log, tokenizer = [], {}, Tokenizer(tiny_folder)
    bar = SimpleNamespace(update=lambda n: steps.append((n, len(stub.asked))))
    with serving(own_generate) as stub:
        def answers(n: int):
            answering.answers(Endpoint([stub.url], "tiny", tokenizer, context=2048, concurrency=1),
                              tokenizer, [{"id": f"p{i}", "prompt": f"Why {i}?"} for i in range(n)],
                              format="raw", max_new_tokens=4, batch=1, log=log, progress=bar)

        answers(3)
        first = [(1, 3 + n) for n in (1, 2, 3)]  # three probes
        assert steps == first
        answers(5)
    assert steps == [*first, (3, 6), (1, 10), (1, 11)]


def test_a_run_behind_a_server_has_no_device(tiny_folder, rows, tmp_path, own_generate, monkeypatch,
                                             capsys):
    """It may go on where "auto" is another one, and nothing is said of this machine's."""
    monkeypatch.setattr("torch.cpu.get_capabilities", dict)
    served = ["--tasks", "refusal", "--dtype", "auto", "--endpoint-model", "tiny", "--endpoint"]
    with serving(own_generate) as stub:
        assert evaluate(tiny_folder, rows, tmp_path / "run", *served, stub.url) == 0
        assert "does not compute in bfloat16" not in capsys.readouterr().err
    settings = read_object(tmp_path / "run" / "config.json")["settings"]
    assert settings["device"] is settings["dtype"] is None


def test_killed_and_resumed(tiny_folder, rows, tmp_path, own_generate):
    """Calls that had ended are not made again."""
    def fault(n, body):
        return 400 if n == 7 else None  # three probes and four answers

    served = ["--tasks", "refusal", "--concurrency", "1", "--endpoint-model", "tiny", "--endpoint"]
    with serving(own_generate, fault) as stub:
        assert evaluate(tiny_folder, rows, tmp_path / "run", *served, stub.url) == 2
    assert len(read_jsonl(tmp_path / "run" / "answers.jsonl")) == 4
    with serving(own_generate) as stub:
        assert evaluate(tiny_folder, rows, tmp_path / "run", *served, stub.url) == 0
    assert len(stub.asked) == 3 + len({row["prompt"] for row in PROMPT_ROWS}) - 4


@pytest.mark.parametrize("options, told", [
    (["--tasks", "hhh"], "hhh needs likelihoods, which a server does not give, --tasks, choose from"
     " refusal, jailbreak, prefill"),
    (["--tasks", "refusal,genetic"], "genetic needs likelihoods"),
    (["--tasks", "refusal", "--adapter", "somewhere"], "an adapter cannot be put on a server's"),
])
def test_what_a_server_cannot(tiny_folder, rows, tmp_path, capsys, options, told):
    assert evaluate(tiny_folder, rows, tmp_path / "run", "--endpoint", "http://127.0.0.1:1/v1",
                    "--endpoint-model", "m", *options) == 2
    assert told in capsys.readouterr().err and not (tmp_path / "run").exists()
