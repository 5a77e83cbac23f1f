"""synth behind a server: the ledger of its calls, and whole runs that a scripted model writes.

A run is compared with one behind a server without a fault. CPU, no model.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import write_model
from scribe import MARK, Scribe
from stub_server import (  # noqa: F401 (fixtures)
    PROBES,
    SAMPLING,
    SECRET,
    after_probes,
    connected,
    impatient,
    serving,
    slowly,
    tokenizer,
)
from test_synth import final, report, rows_of

import ptalign
from support import endpoint
from support.addresses import KEY
from support.endpoint import Endpoint
from synthesis import lists
from synthesis.ledger import Call, ServedLedger
from tokenizer import Tokenizer

# ---- the ledger ----

def calls(n: int) -> list[Call]:
    return [Call(f"answers/{i}", f"prompt {i}") for i in range(n)]


def served(folder, endpoint) -> ServedLedger:
    folder.mkdir(exist_ok=True)
    return ServedLedger(folder, {"model": "served"}, endpoint, seed=0, format="chat")


def complete(folder, tokenizer, *stubs, n=12, **options):
    book = served(folder, connected(tokenizer, *stubs, **options))
    try:
        return book.complete(calls(n), SAMPLING, stage="test")
    finally:
        book.close()


def test_merged_in_order_whatever_order_they_end_in(tokenizer, tmp_path):
    """Lines stand as calls ended; results as they were asked, made or replayed."""
    with serving(slowly(0.1)) as stub:
        done = complete(tmp_path / "a", tokenizer, stub)
    assert list(done) == [call.id for call in calls(12)]
    lines = rows_of(tmp_path / "a", "calls")
    ids = [line["calls"][0]["id"] for line in lines]
    assert sorted(ids) == sorted(done) and ids != list(done)
    assert {len(line["calls"]) for line in lines} == {1}
    with serving() as other:  # elsewhere, and asked nothing
        assert complete(tmp_path / "a", tokenizer, other) == done and not other.asked


def test_killed_and_resumed(tokenizer, tmp_path):
    """What has ended is on record; a new start asks for the rest alone."""
    with serving() as stub:
        wanted = complete(tmp_path / "whole", tokenizer, stub)
        asked = len(stub.asked)
        for k in (1, 5, 11):
            folder = tmp_path / str(k)
            book = served(folder, connected(tokenizer, stub, concurrency=2))
            for n, _ in enumerate(book.completions(calls(12), SAMPLING, stage="test"), 1):
                if n == k:
                    break
            book.close()
            kept = len(rows_of(folder, "calls"))
            with serving() as other:  # calls that were under way still reach the first one
                assert k <= kept <= k + 2 and complete(folder, tokenizer, other) == wanted
            assert len(other.asked) == (asked - kept if kept < 12 else 0)


def test_a_stage_that_ends_early_asks_no_further(tokenizer, tmp_path):
    with serving(slowly(0.02)) as stub:
        book = served(tmp_path / "a", connected(tokenizer, stub, concurrency=2))
        blocks = book.completions(calls(50), SAMPLING, stage="test")
        next(blocks)
        blocks.close()
        time.sleep(0.2)
        book.close()
    assert len(stub.asked) < PROBES + 10


def test_counts(tokenizer, tmp_path):
    with serving() as stub:
        for _ in range(2):
            book = served(tmp_path / "a", connected(tokenizer, stub))
            book.complete(calls(4), SAMPLING, stage="s")
            count = book.stages["s"]
            assert (count["calls"], count["tokens"]) == (4, 12)
            book.close()
    assert count["tokens_now"] == 0



# ---- synth ----

@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model without weights whose context holds the prompts."""
    folder = write_model(tmp_path_factory.mktemp("models") / "long", max_position_embeddings=8192)
    (folder / "model.safetensors").unlink()
    return folder


def scripted(folder, **options):
    """`write` of a stub, as the Scribe writes; it has to read the prompt from its ids."""
    decode, scribe = Tokenizer(folder).backend.decode, Scribe(**options)
    settings = {s.max_new_tokens: s for s in (
        lists.TOPIC_SAMPLING, lists.INSTRUCTION_SAMPLING, lists.CONSTRAINT_SAMPLING)}

    def write(body: dict) -> dict:
        call = Call("", decode(body["prompt"], skip_special_tokens=False))
        [row] = scribe([call], [body["seed"]], settings.get(body["max_tokens"]))
        return row

    return write


def synth(folder, out, *stubs, urls=(), triplets=12, options=()) -> int:
    address = ",".join([*urls, *(stub.url for stub in stubs)])
    return ptalign.main(["synth", "--model", str(folder), "--out", str(out), "--endpoint", address,
                         "--endpoint-model", "scribe", "--triplets", str(triplets), *options])


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    """An unbroken run's files, lines of the ledger in order of their calls."""
    out = tmp_path_factory.mktemp("whole") / "run"
    with serving(scripted(folder)) as stub:
        assert synth(folder, out, stub) == 0
    return in_order(out)


def in_order(out) -> dict[str, bytes]:
    files = final(out)
    for name in ("calls.jsonl", "calls.toxic.jsonl"):
        files[name] = b"\n".join(sorted(files[name].split(b"\n")))
    return files


def test_synth(folder, tmp_path, capsys, monkeypatch, whole):
    """A run behind a server that fails now and then; the key and toxic text show nowhere."""
    monkeypatch.setenv(KEY, SECRET)
    with serving(scripted(folder), after_probes(
            lambda n, body: ("reset", 429, "half", 500)[n % 7] if n % 7 < 4 else None)) as stub:
        assert synth(folder, tmp_path / "run", stub) == 0
    assert in_order(tmp_path / "run") == whole
    told = report(tmp_path / "run")
    assert told["triplets"] == 12 and told["grade"] == "smoke" and told["polarity"] == {}
    assert {judge["auc"] for judge in told["judges"].values()} == {None}
    assert "a server gives no scores" in (tmp_path / "run" / "report.md").read_text()
    shown = "".join(capsys.readouterr())
    assert "a server gives no scores" in shown and "toxic text is asked of http://127" in shown
    assert MARK not in shown and SECRET not in shown
    assert not [p for p in (tmp_path / "run").iterdir() if SECRET in p.read_text()]
    record = json.loads((tmp_path / "run" / "config.json").read_text())["settings"]
    assert record["endpoint_model"] == "scribe" and record["weights_sha256"] is None


def test_synth_killed_and_resumed(folder, tmp_path, whole, monkeypatch):
    """Killed after so many lines, at another address each time: the end is the same."""
    record, left = ServedLedger._record, None

    def until(*arguments):
        nonlocal left
        if left == 0:
            raise KeyboardInterrupt
        left -= 1
        return record(*arguments)

    monkeypatch.setattr(ServedLedger, "_record", until)
    for left in (3, 40, 30):  # noqa: B007
        with serving(scripted(folder)) as stub:
            assert synth(folder, tmp_path / "run", stub) == 130
    monkeypatch.setattr(ServedLedger, "_record", record)
    with serving(scripted(folder)) as stub:
        assert synth(folder, tmp_path / "run", stub, options=["--concurrency", "3"]) == 0
    assert in_order(tmp_path / "run") == whole
    assert synth(folder, tmp_path / "run", stub) == 0  # a replay needs no server


def test_another_model_is_refused(folder, tmp_path, capsys):
    with serving(scripted(folder)) as stub:
        assert synth(folder, tmp_path / "run", stub, triplets=1) == 0
        assert synth(folder, tmp_path / "run", stub, triplets=1,
                     options=["--endpoint-model", "other"]) == 2
    assert "endpoint_model ('scribe' -> 'other')" in capsys.readouterr().err


def test_toxic_text_stays_in_private_networks(folder, tmp_path, capsys, monkeypatch):
    """Refused before anything is sent; with the option, or without a toxic side, it is not."""
    monkeypatch.setattr(endpoint, "PATIENCE_S", 0)
    monkeypatch.setattr(Endpoint, "post", lambda *_: pytest.fail("something was sent"))
    assert synth(folder, tmp_path / "run", urls=["https://8.8.8.8/v1"]) == 2
    assert "toxic text would leave the private network" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()

    def refused(self, url, body):
        raise endpoint.Fault("test")

    monkeypatch.setattr(Endpoint, "post", refused)
    for options in (["--toxic-endpoint-ok"], ["--positives-only"]):
        assert synth(folder, tmp_path / "run", urls=["https://8.8.8.8/v1"], options=options) == 2
        assert "no answer (test)" in capsys.readouterr().err


def test_declines(folder, tmp_path):
    """A model that declines is not asked on and on."""
    with serving(scripted(folder, declines=True)) as stub:
        assert synth(folder, tmp_path / "run", stub) == 3
    asked = report(tmp_path / "run")["attempts"]["toxic"]
    assert set(asked["drawn"]) == {"refused"} and asked["drawn"]["refused"] < 40
    assert asked["refined"] == {}


@pytest.mark.slow
def test_many(folder, tmp_path):
    """tests/many.py, with fewer."""
    script = Path(__file__).with_name("many.py")
    done = subprocess.run([sys.executable, script, "--model", folder, "--triplets", "64", "--kills",
                           "2", "--out", tmp_path], capture_output=True, text=True)
    assert done.returncode == 0 and "files equal" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize("options", [["--endpoint", "http://127.0.0.1:1/v1"],
                                     ["--endpoint-model", "m"]])
def test_one_of_two_options(folder, tmp_path, capsys, options):
    assert ptalign.main(["synth", "--model", str(folder), "--out", str(tmp_path / "run"),
                         *options]) == 2
    assert "one of the two is missing" in capsys.readouterr().err


def test_a_server_holds_its_weights_as_it_likes(folder, tmp_path, capsys):
    assert ptalign.main(["synth", "--model", str(folder), "--out", str(tmp_path / "run"),
                         "--endpoint", "http://127.0.0.1:1/v1", "--endpoint-model", "m",
                         "--base-dtype", "nf4"]) == 2
    assert "the server decides how it holds its weights, --base-dtype" in capsys.readouterr().err


def test_dry_run(folder, tmp_path, capsys):
    with serving() as stub:
        assert synth(folder, tmp_path / "run", stub, options=["--dry-run"]) == 0
    assert "new tokens and" in capsys.readouterr().out and not stub.asked
