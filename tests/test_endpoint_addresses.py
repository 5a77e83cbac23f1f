"""addresses.py: which addresses are asked, and who gets the key. No key may show anywhere."""

import pytest
from stub_server import SECRET, ask, impatient, serving, tokenizer  # noqa: F401 (fixtures)

from support.addresses import KEY, is_near
from support.endpoint import Endpoint
from support.files import InputError


@pytest.mark.parametrize("url", ["localhost:8080/v1", "ftp://127.0.0.1/v1", "http://", "http:///v1",
                                 "http://127.0.0.1:x/v1", "http://127.0.0.1/v1?a=1",
                                 "http://127.0.0.1/a b", "file:///etc/passwd", "http://[::1/v1"])
def test_no_address(tokenizer, url):
    with pytest.raises(InputError, match="no address"):
        Endpoint([url], "m", tokenizer, context=9, concurrency=1)


@pytest.mark.parametrize("url", [
    f"http://me:{SECRET}@127.0.0.1/v1", f"http://me:8#{SECRET}@127.0.0.1/v1",
    f"http://127.0.0.1/v1?key={SECRET}", f"http://127.0.0.1/v1#{SECRET}"])
def test_a_password_in_an_address_is_not_told(tokenizer, url):
    with pytest.raises(InputError) as caught:
        Endpoint([url], "m", tokenizer, context=9, concurrency=1)
    assert SECRET not in str(caught.value)
    assert "@" not in url or KEY in str(caught.value)


@pytest.mark.parametrize("host, near", [
    ("127.0.0.1", True), ("127.8.8.8", True), ("[::1]", True), ("localhost", True),
    ("10.1.2.3", True), ("172.16.0.1", True), ("172.32.0.1", False), ("192.168.9.9", True),
    ("[fd00::1]", True), ("[::ffff:10.0.0.1]", True), ("[::ffff:8.8.8.8]", False),
    ("8.8.8.8", False), ("[2001:4860:4860::8888]", False), ("0.0.0.0", True), ("[::]", True),
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
            monkeypatch.setenv(KEY, key)
        with serving() as stub:
            ask(tokenizer, stub, n=1)
        assert {headers.get("Authorization") for _, headers, _ in stub.asked} == {wanted}
        assert "other" not in str(stub.asked)


@pytest.mark.parametrize("key", [f"{SECRET} x", f"{SECRET}\nX-Evil: 1", f"{SECRET}é"])
def test_a_bad_key_is_not_told(tokenizer, monkeypatch, key):
    monkeypatch.setenv(KEY, key)
    with pytest.raises(InputError, match="a key with spaces") as caught:
        Endpoint(["http://127.0.0.1/v1"], "m", tokenizer, context=9, concurrency=1)
    assert SECRET not in str(caught.value)


def test_a_key_does_not_cross_the_network_in_the_clear(tokenizer, monkeypatch):
    monkeypatch.setenv(KEY, SECRET)
    for url in ("http://8.8.8.8/v1", "HTTP://8.8.8.8/v1"):
        with pytest.raises(InputError, match="in the clear"):
            Endpoint([url], "m", tokenizer, context=9, concurrency=1)
    Endpoint(["https://8.8.8.8/v1", "http://10.0.0.1/v1"], "m", tokenizer, context=9, concurrency=1)


def test_no_proxy_near(tokenizer, monkeypatch):
    """A proxy of the environment would carry toxic text out of the machine."""
    with serving() as proxy, serving() as stub:
        monkeypatch.setenv("http_proxy", proxy.url.removesuffix("/v1"))
        ask(tokenizer, stub, n=1)
    assert not proxy.asked
