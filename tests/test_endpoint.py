"""endpoint.py: calls of a server, against a stub on this machine that goes wrong in every way.

No text of an error may show anywhere. CPU, no model.
"""

import threading
import time

import pytest
from stub_server import (  # noqa: F401 (fixtures)
    PROBES,
    SAMPLING,
    SECRET,
    after_probes,
    answer,
    ask,
    connected,
    impatient,
    letters,
    serving,
    slowly,
    tokenizer,
)

from support import endpoint
from support.addresses import KEY
from support.endpoint import Endpoint
from support.files import InputError
from synthesis import lists

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
    # A server that passes over stop strings: the list's last item is whole all the same.
    ({"text": "one\ntwo", "finish": "length", "n_tokens": 8}, {"text": "one", "finish": "stop"}),
    ({"finish": "end_turn"}, {"finish": "stop"}),
    ({"text": "one", "finish": "content_filter"}, {"finish": "length"}),
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
    b'{"choices": [{"text": "", "finish_reason": "stop"}],'
    b' "usage": {"prompt_tokens": 1e999, "completion_tokens": 1}}',
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
    """Tried again, though one attempt took longer than patience with failures lasts."""
    monkeypatch.setattr(endpoint, "TIMEOUT_S", 0.2)
    monkeypatch.setattr(endpoint, "PATIENCE_S", 0.15)
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


def test_another_address_is_asked_where_one_has_died(tokenizer, monkeypatch):
    """Every call fails there once at most, whatever turns the calls beside it take."""
    real, tried = Endpoint.post, []

    def post(self, url, body):
        tried.append((url, body["seed"]))
        return real(self, url, body)

    monkeypatch.setattr(Endpoint, "post", post)
    with serving() as one, serving() as other:
        rows = connected(tokenizer, one, other, concurrency=3).each(
            ((i, [5, i], i) for i in range(100, 140)), SAMPLING)
        next(rows)
        one.end()
        assert len(list(rows)) == 39
        one.listen()
    tried = tried[2 * PROBES:]
    assert len(tried) == len(set(tried)) > 40


def test_nothing_is_asked_after_the_end(tokenizer, monkeypatch):
    """A call that waits for its next attempt is let go with the others."""
    monkeypatch.setattr(endpoint, "FIRST_WAIT_S", 5)
    monkeypatch.setattr(endpoint, "LONGEST_WAIT_S", 5)
    with serving(fault=after_probes(lambda n, body: 503 if body["seed"] == 1 else None)) as stub:
        rows = connected(tokenizer, stub, concurrency=2).each(
            [(i, [5], i) for i in (1, 2)], SAMPLING)
        next(rows)
        time.sleep(0.2)
        asked = len(stub.asked)
        rows.close()
        time.sleep(0.2)
    assert len(stub.asked) == asked == PROBES + 2


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
    (lambda n, body: 503, r"no answer \(HTTP 503\).*has loaded the model"),
    (lambda n, body: (302, {"Location": "http://127.0.0.1:9/"}), r"it redirects \(HTTP 302\)"),
    (lambda n, body: (308, {"Location": "http://[::1/"}), r"it redirects \(HTTP 308\)"),
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
    monkeypatch.setenv(KEY, SECRET)
    with serving() as other, serving(fault=lambda n, body: (
            307, {"Location": f"{other.url}/completions"})) as stub, \
            pytest.raises(InputError, match="HTTP 307"):
        ask(tokenizer, stub)
    assert not other.asked
