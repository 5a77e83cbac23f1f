"""endpoint.py: calls of a server, against a stub on this machine that goes wrong in every way.

No text of an error and no key may show anywhere. CPU, no model: of the tiny folder the tokenizer
alone is read.
"""

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from conftest import write_model
from scribe import MARK, Scribe
from stub_server import answer, letters, serving, slowly
from test_synth import final, report, rows_of

import ptalign
from generate import Sampling
from support import endpoint
from support.endpoint import Endpoint, is_near
from support.files import InputError
from synthesis import lists
from synthesis.ledger import Call, ServedLedger
from tokenizer import Tokenizer

SAMPLING = Sampling(8, temperature=0.7, top_p=0.9, stop=("\n",))
PROBES = len(endpoint.PROBE_SEEDS)
SECRET = "sk-not-to-be-seen"


@pytest.fixture(scope="module")
def tokenizer(tiny_folder):
    return Tokenizer(tiny_folder)


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(endpoint, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(endpoint, "LONGEST_WAIT_S", 0.05)
    monkeypatch.setattr(endpoint, "PATIENCE_S", 5)
    monkeypatch.delenv(endpoint.KEY, raising=False)


def connected(tokenizer, *stubs, concurrency=4, context=2048) -> Endpoint:
    return Endpoint([stub.url for stub in stubs], "served", tokenizer, context=context,
                    concurrency=concurrency)


def ask(tokenizer, *stubs, n=6, sampling=SAMPLING, **options) -> dict[int, dict]:
    """{number: row} of n calls; the probes have been paid for."""
    jobs = [(i, [5, 6, 7 + i], 1000 + i) for i in range(n)]
    return dict(connected(tokenizer, *stubs, **options).each(jobs, sampling))


def after_probes(fault):
    """A fault of the calls behind the probes; the first of them is number 0."""
    return lambda n, body: fault(n - PROBES, body) if n >= PROBES else None


# ---- what is sent ----

def test_what_is_sent(tokenizer):
    with serving() as stub:
        rows = ask(tokenizer, stub)
    assert set(rows) == set(range(6))
    assert rows[3] == {"text": f" {5 + 6 + 10} 1003", "finish": "stop", "n_tokens": 3}
    path, headers, body = stub.asked[-1]
    assert path == "/v1/completions" and "Authorization" not in headers
    assert body["prompt"][:2] == [5, 6] and body["model"] == "served"
    assert (body["max_tokens"], body["temperature"], body["top_p"]) == (8, 0.7, 0.9)
    assert body["stop"] == ["\n"] and "logit_bias" not in body and "ignore_eos" not in body
    neutral = {"top_k": -1, "min_p": 0, "presence_penalty": 0, "frequency_penalty": 0,
               "repetition_penalty": 1, "repeat_penalty": 1}
    assert neutral.items() <= body.items()


def test_lists_ban_the_end_of_text(tokenizer):
    with serving() as stub:
        ask(tokenizer, stub, n=1, sampling=lists.TOPIC_SAMPLING)
    body = stub.asked[-1][-1]
    assert body["logit_bias"] == {str(id): -100 for id in tokenizer.eos_ids}
    assert body["ignore_eos"] and body["stop"] == list(lists.STOP)


def test_seeds_have_31_bits(tokenizer):
    with serving() as stub:
        list(connected(tokenizer, stub).each([("a", [5], 2**60 + 3)], SAMPLING))
    assert stub.asked[-1][-1]["seed"] == 3


def test_prompts_beyond_the_context_are_not_sent(tokenizer):
    with serving() as stub:
        rows = ask(tokenizer, stub, n=2, context=10)
    assert rows[0] == {"text": "", "finish": "context", "n_tokens": 0}
    assert len(stub.asked) == PROBES


@pytest.mark.parametrize("written, told", [
    ({"text": "one\ntwo"}, {"text": "one", "finish": "stop"}),
    ({"n_tokens": 8}, {"finish": "length"}),  # "stop" at the cap
    ({"text": "half \ud83d"}, {"text": "half \N{REPLACEMENT CHARACTER}"}),
])
def test_what_is_made_of_an_answer(tokenizer, written, told):
    with serving(lambda body: letters(body) | (written if body["max_tokens"] == 8 else {})) as stub:
        row = ask(tokenizer, stub, n=1)[0]
    assert told.items() <= row.items()
    row["text"].encode()


def test_a_thought_that_the_prompt_opens_is_marked(tokenizer):
    with serving() as stub:
        [(_, row)] = connected(tokenizer, stub).each([(0, tokenizer.encode("Hm. <think>"), 1)],
                                                     SAMPLING)
    assert row["text"].startswith("<think>")


def test_many_at_once_and_no_more(tokenizer):
    with serving(slowly(0.05)) as stub:
        ask(tokenizer, stub, n=24, concurrency=6)
    assert 1 < stub.most <= 6


def test_addresses_share_the_calls(tokenizer):
    with serving() as one, serving() as other:
        ask(tokenizer, one, other, n=8)
    assert len(one.asked) == len(other.asked) == PROBES + 4


# ---- what goes wrong in passing ----

@pytest.mark.parametrize("fault", [
    500, 503, 429, "reset", "half", b"", b"{}", b"[1]", b"<html>", b'{"choices": [], "usage": {}}',
    b'{"choices": [{"text": 1, "finish_reason": "stop"}],'
    b' "usage": {"prompt_tokens": 3, "completion_tokens": 1}}',
    b'{"choices": [{"text": "", "finish_reason": "abort"}],'
    b' "usage": {"prompt_tokens": 3, "completion_tokens": 1}}'])
def test_faults_that_pass(tokenizer, fault):
    """Every second request fails: the rows are those of a server without a fault."""
    with serving() as stub:
        wanted = ask(tokenizer, stub)
    with serving(fault=after_probes(lambda n, body: fault if n % 2 == 0 else None)) as stub:
        assert ask(tokenizer, stub) == wanted
    assert len(stub.asked) > PROBES + 6


def test_a_storm_of_429(tokenizer):
    """The wait is the one that the server asks for, and no call is lost."""
    ends = time.monotonic() + 0.3
    with serving(fault=after_probes(lambda n, body: (429, {"Retry-After": "1"})
                                    if time.monotonic() < ends else None)) as stub:
        assert len(ask(tokenizer, stub, n=12)) == 12
    assert len(stub.asked) > PROBES + 12


def test_retry_after_is_obeyed(tokenizer, monkeypatch):
    monkeypatch.setattr(endpoint, "LONGEST_WAIT_S", 60)
    with serving(fault=after_probes(lambda n, body: (503, {"Retry-After": "1"})
                                    if n == 0 else None)) as stub:
        began = time.monotonic()
        ask(tokenizer, stub, n=1)
    assert 1 <= time.monotonic() - began < 3


def test_time_out(tokenizer, monkeypatch):
    monkeypatch.setattr(endpoint, "TIMEOUT_S", 0.2)
    first = threading.Event()

    def write(body):
        if body["max_tokens"] == 8 and not first.is_set():
            first.set()
            time.sleep(0.5)
        return letters(body)

    with serving(write) as stub:
        assert len(ask(tokenizer, stub, n=2)) == 2
    assert len(stub.asked) == PROBES + 3


def test_death_and_return(tokenizer):
    rows = {}
    with serving() as stub:
        again = threading.Timer(0.3, stub.listen)
        for i, row in connected(tokenizer, stub).each(((i, [5, i], i) for i in range(40)),
                                                      SAMPLING):
            rows[i] = row
            if len(rows) == 10:  # nobody listens for a while
                stub.end()
                again.start()
        assert len(rows) == 40
        assert not again.is_alive()


def test_patience_ends(tokenizer, monkeypatch):
    monkeypatch.setattr(endpoint, "PATIENCE_S", 0.3)
    with serving(fault=after_probes(lambda n, body: 502)) as stub, \
            pytest.raises(InputError, match=r"no answer \(HTTP 502\), --endpoint http"):
        ask(tokenizer, stub)


# ---- what does not pass ----

def double_bos(n, body):
    return answer(body, letters(body), read=1)


@pytest.mark.parametrize("fault, told", [
    (double_bos, "token ids were sent and [0-9]+ read .a second BOS"),
    (lambda n, body: answer(body, letters(body), read=9), "a template, or another tokenizer"),
    (lambda n, body: answer(body, letters({**body, "seed": 0})), "the same text for every seed"),
    (lambda n, body: 422, r"it refuses [0-9]+ token ids and 24 new tokens \(HTTP 422\).*Ollama"),
    (lambda n, body: 400, "HTTP 400"),
    (lambda n, body: 404, "no such place or model"),
    (lambda n, body: 401, "it wants a key .HTTP 401.*set PTALIGN_API_KEY"),
    (lambda n, body: 503, r"no answer \(HTTP 503\).*until it has loaded"),
    (lambda n, body: (302, {"Location": "http://127.0.0.1:9/"}), r"it redirects \(HTTP 302\)"),
])
def test_probes(tokenizer, fault, told, capsys):
    """Told at once, by name, with a remedy; nothing of an error's body is quoted."""
    with serving(fault=fault) as stub, pytest.raises(InputError, match=told) as caught:
        ask(tokenizer, stub)
    assert len(stub.asked) <= PROBES and "QUOTED" not in str(caught.value)


def test_nobody_listens(tokenizer):
    with serving() as stub:
        pass
    with pytest.raises(InputError, match=r"no answer \(ConnectionRefusedError\)"):
        ask(tokenizer, stub)


def test_a_refusal_in_the_middle_ends_the_run(tokenizer):
    with serving(fault=after_probes(lambda n, body: 400 if n == 3 else None)) as stub, \
            pytest.raises(InputError, match="it refuses 3 token ids and 8 new tokens"):
        ask(tokenizer, stub, n=50)
    assert len(stub.asked) < PROBES + 20


def test_a_redirect_takes_the_key_nowhere(tokenizer, monkeypatch):
    monkeypatch.setenv(endpoint.KEY, SECRET)
    with serving() as other, serving(fault=lambda n, body: (
            307, {"Location": f"{other.url}/completions"})) as stub, \
            pytest.raises(InputError, match="HTTP 307"):
        ask(tokenizer, stub)
    assert not other.asked


# ---- addresses and the key ----

@pytest.mark.parametrize("url", ["localhost:8080/v1", "ftp://127.0.0.1/v1", "http://", "http:///v1",
                                 "http://127.0.0.1:x/v1", "http://127.0.0.1/v1?a=1",
                                 "http://127.0.0.1/a b", "file:///etc/passwd", "http://[::1/v1"])
def test_no_address(tokenizer, url):
    with pytest.raises(InputError, match="no address"):
        Endpoint([url], "m", tokenizer, context=9, concurrency=1)


def test_a_password_in_an_address_is_not_told(tokenizer):
    with pytest.raises(InputError) as caught:
        Endpoint([f"http://me:{SECRET}@127.0.0.1/v1"], "m", tokenizer, context=9, concurrency=1)
    assert SECRET not in str(caught.value) and endpoint.KEY in str(caught.value)


@pytest.mark.parametrize("host, near", [
    ("127.0.0.1", True), ("127.8.8.8", True), ("[::1]", True), ("localhost", True),
    ("10.1.2.3", True), ("172.16.0.1", True), ("172.32.0.1", False), ("192.168.9.9", True),
    ("[fd00::1]", True), ("[::ffff:10.0.0.1]", True), ("[::ffff:8.8.8.8]", False),
    ("8.8.8.8", False), ("[2001:4860:4860::8888]", False), ("0.0.0.0", False),
    ("100.64.0.1", False)])
def test_near(host, near):
    assert is_near(f"http://{host}:8080/v1") == near


def test_unknown_host():
    with pytest.raises(InputError, match="no such host"):
        is_near("http://no-such-host.invalid/v1")


def test_the_key_is_ours_alone(tokenizer, monkeypatch):
    """Not the hub's token, and not without being set."""
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    monkeypatch.setenv("OPENAI_API_KEY", "other")
    for key, wanted in ((None, None), (SECRET, f"Bearer {SECRET}")):
        if key:
            monkeypatch.setenv(endpoint.KEY, key)
        with serving() as stub:
            ask(tokenizer, stub, n=1)
        assert {headers.get("Authorization") for _, headers, _ in stub.asked} == {wanted}
        assert "other" not in str(stub.asked)


@pytest.mark.parametrize("key", [f"{SECRET} x", f"{SECRET}\nX-Evil: 1", f"{SECRET}é"])
def test_a_bad_key_is_not_told(tokenizer, monkeypatch, key):
    monkeypatch.setenv(endpoint.KEY, key)
    with pytest.raises(InputError, match="a key with spaces") as caught:
        Endpoint(["http://127.0.0.1/v1"], "m", tokenizer, context=9, concurrency=1)
    assert SECRET not in str(caught.value)


def test_a_key_does_not_cross_the_network_in_the_clear(tokenizer, monkeypatch):
    monkeypatch.setenv(endpoint.KEY, SECRET)
    with pytest.raises(InputError, match="in the clear"):
        Endpoint(["http://8.8.8.8/v1"], "m", tokenizer, context=9, concurrency=1)
    Endpoint(["https://8.8.8.8/v1", "http://10.0.0.1/v1"], "m", tokenizer, context=9, concurrency=1)


def test_no_proxy_near(tokenizer, monkeypatch):
    """A proxy of the environment would carry toxic text out of the machine."""
    with serving() as proxy, serving() as stub:
        monkeypatch.setenv("http_proxy", proxy.url.removesuffix("/v1"))
        ask(tokenizer, stub, n=1)
    assert not proxy.asked


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
    monkeypatch.setenv(endpoint.KEY, SECRET)
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
    assert done.returncode == 0 and "files equal" in done.stdout, done.stderr


@pytest.mark.parametrize("options", [["--endpoint", "http://127.0.0.1:1/v1"],
                                     ["--endpoint-model", "m"]])
def test_one_of_two_options(folder, tmp_path, capsys, options):
    assert ptalign.main(["synth", "--model", str(folder), "--out", str(tmp_path / "run"),
                         *options]) == 2
    assert "one of the two is missing" in capsys.readouterr().err


def test_dry_run(folder, tmp_path, capsys):
    with serving() as stub:
        assert synth(folder, tmp_path / "run", stub, options=["--dry-run"]) == 0
    assert "new tokens and" in capsys.readouterr().out and not stub.asked
