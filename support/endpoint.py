"""A model behind OpenAI-compatible servers: they compute its texts, and the method stays here.

POST {address}/completions with our own token ids, so that nobody adds a template or a BOS to them.
What a server would fill in by itself (llama.cpp's top_k of 40, the generation_config.json of vLLM)
is sent at the value that changes nothing. results/servers.md says which server takes what, and
which was run.

A call that fails in passing (a time-out, a reset, half an answer, HTTP 429 or 5xx) is made again,
at the next address and after a wait that doubles. The body of an error is never read, since it may
quote the prompt. The key is PTALIGN_API_KEY of the environment alone, and goes to nobody but the
addresses given: a redirect is an error."""

import itertools
import json
import os
import queue
import random
import re
import socket
import ssl
import threading
import time
from collections.abc import Iterable, Iterator
from http.client import HTTPException
from ipaddress import ip_address, ip_network
from types import SimpleNamespace
from urllib import request
from urllib.error import HTTPError
from urllib.parse import urlsplit

from support.decoding import opened
from support.files import InputError, refusing
from support.progress import say

KEY = "PTALIGN_API_KEY"
TIMEOUT_S = 600  # of one answer: on a slow machine it may wait for others
PATIENCE_S = 600  # of failures in a row, then a call is given up: a server may be started again
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 60
LARGEST = 1 << 24  # bytes of an answer that are read
LAST = 16  # tokens of a prompt by which a thought is seen that it leaves open
PASSING = (408, 425, 429)  # HTTP; and all from 500 on
# This machine, and private networks (RFC 1918, 3927, 4193, 4291).
NEAR = [ip_network(text) for text in (
    "127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16",
    "::1/128", "fc00::/7", "fe80::/10")]
PROBE = "Write down whatever comes to your mind:"
PROBE_SAMPLING = SimpleNamespace(max_new_tokens=24, temperature=1.5, top_p=1.0, top_k=0, stop=(),
                                 min_lines=1)
PROBE_SEEDS = (1, 2, 3)  # a model may say the same twice


class Fault(Exception):
    """An attempt failed in a way that may pass; `wait`: seconds that the server asks for."""

    def __init__(self, what: str, wait: float | None = None):
        super().__init__(what)
        self.wait = wait


class NoRedirect(request.HTTPRedirectHandler):
    def redirect_request(self, *_):
        return None  # urllib then raises the answer as an HTTPError


# ---- addresses ----

def checked(url: str) -> str:
    """The address without a slash at its end; InputError where it is none, or holds a password."""
    remedy = "give the part before /completions, such as http://127.0.0.1:8080/v1"
    with refusing(ValueError, "no address", "--endpoint", remedy):
        parts = urlsplit(url)
        if "@" in parts.netloc:
            raise InputError("an address with a name or a password", "--endpoint", f"set {KEY}")
        bad = not re.fullmatch("[!-~]+", url) or parts.query or parts.fragment or parts.port == 0
    if bad or parts.scheme not in ("http", "https") or not parts.hostname:
        raise InputError(f"no address: {url}", "--endpoint", remedy)
    return url.rstrip("/")


def is_near(url: str) -> bool:
    """Does every address that the host's name stands for belong to NEAR?"""
    try:
        found = socket.getaddrinfo(urlsplit(url).hostname, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise InputError("no such host", f"--endpoint {url}", "check its name") from None
    hosts = {ip_address(place[0].partition("%")[0]) for *_, place in found}
    hosts = {getattr(host, "ipv4_mapped", None) or host for host in hosts}
    return all(any(host in network for network in NEAR) for host in hosts)


def headers_for(addresses: dict[str, bool]) -> dict[str, str]:
    """With the key, if there is one. `addresses`: {url: is_near}."""
    headers, key = {"Content-Type": "application/json"}, os.environ.get(KEY, "")
    if not key:
        return headers
    if not re.fullmatch("[!-~]+", key):
        raise InputError("a key with spaces or other signs in it", KEY, "set it again")
    if open_ways := [url for url, near in addresses.items()
                     if url.startswith("http:") and not near]:
        raise InputError("the key would cross the network in the clear",
                         f"--endpoint {open_ways[0]}", f"use https, or unset {KEY}")
    return {**headers, "Authorization": f"Bearer {key}"}


# ---- calls ----

def connect(urls: list[str] | None, model: str | None, tokenizer, **options) -> "Endpoint | None":
    """What --endpoint and --endpoint-model name; None where neither does."""
    if bool(urls) != bool(model):
        raise InputError("one of the two is missing", "--endpoint, --endpoint-model",
                         "give an address and the name that the server has for its model")
    return Endpoint(urls, model, tokenizer, **options) if urls else None


class Endpoint:
    """`model` as the servers at `urls` call it, and the tokenizer of the same model. `context`:
    tokens that it reads and writes; `concurrency`: calls under way at once."""

    def __init__(self, urls: list[str], model: str, tokenizer, *, context: int, concurrency: int):
        self.near = {url: is_near(url) for url in map(checked, urls)}
        self.model, self.tokenizer, self.context = model, tokenizer, context
        self.concurrency, self.headers = concurrency, headers_for(self.near)
        # A proxy of the environment is for the world outside.
        self.openers = {url: request.build_opener(
            NoRedirect, request.ProxyHandler({} if near else None))
            for url, near in self.near.items()}
        self.turns, self.probed = itertools.cycle(self.near), False

    def take_toxic(self, *, anywhere: bool) -> None:
        """Toxic text will go to these addresses: InputError where one is public, unless they may
        be `anywhere`."""
        far = [url for url, near in self.near.items() if not near]
        if far and not anywhere:
            raise InputError("toxic text would leave the private network", f"--endpoint {far[0]}",
                             "use --positives-only, or --toxic-endpoint-ok if its owner agrees")
        say(f"toxic text is asked of {', '.join(far or self.near)}")

    def each(self, jobs: Iterable[tuple], sampling) -> Iterator[tuple]:
        """(name, row) of every job (name, token ids, seed), as soon as it has ended. A row has
        "text", "finish" and "n_tokens", as generate.Completion. `sampling`: generate.Sampling."""
        jobs, ended, stop, under_way = iter(jobs), queue.SimpleQueue(), threading.Event(), 0

        def work(name, *rest) -> None:
            try:
                ended.put((name, self.complete(*rest, sampling, stop)))
            except BaseException as error:  # for the thread that waits
                ended.put((name, error))

        try:
            while True:
                for name, ids, seed in itertools.islice(jobs, self.concurrency - under_way):
                    if not self.probed:
                        self.probe(stop)
                    thought = opened(self.tokenizer.decode(ids[-LAST:]))
                    # A daemon: Ctrl-C does not wait for answers.
                    threading.Thread(target=work, args=(name, ids, seed, thought),
                                     daemon=True).start()
                    under_way += 1
                if not under_way:
                    return
                name, row = ended.get()
                under_way -= 1
                if isinstance(row, BaseException):
                    raise row
                yield name, row
        finally:
            stop.set()

    def complete(self, ids: list[int], seed: int, thought: str, sampling, stop) -> dict:
        """One call. `thought`: the mark of a thought that the prompt leaves open."""
        if not ids or len(ids) + sampling.max_new_tokens > self.context:
            return {"text": "", "finish": "context", "n_tokens": 0}
        body, wait = self.body(ids, sampling, seed), FIRST_WAIT_S
        until = time.monotonic() + PATIENCE_S
        while True:
            url = next(self.turns)
            try:
                row = self.post(url, body)
                return {**row, "text": thought + row["text"]}
            except Fault as fault:
                pause = fault.wait or wait * random.uniform(0.5, 1)
                if stop.is_set() or time.monotonic() + pause > until:
                    raise InputError(f"no answer ({fault})", f"--endpoint {url}",
                                     "start the server again and repeat the command") from None
            stop.wait(pause)
            wait = min(2 * wait, LONGEST_WAIT_S)

    def probe(self, stop) -> None:
        """InputError where an address does not read our ids as they are, or pays no heed to
        seeds."""
        ids = self.tokenizer.encode(PROBE)
        for url in self.near:
            try:
                # The number of tokens read is checked at every answer.
                texts = {self.post(url, self.body(ids, PROBE_SAMPLING, seed))["text"]
                         for seed in PROBE_SEEDS}
            except Fault as fault:
                raise InputError(f"no answer ({fault})", f"--endpoint {url}",
                                 "start the server, and wait until it has loaded the model"
                                 ) from None
            if len(texts) == 1:
                raise InputError("the same text for every seed", f"--endpoint {url}",
                                 "let the server sample by seed (SGLang:"
                                 " --enable-deterministic-inference), or use another")
        self.probed = True

    def body(self, ids: list[int], sampling, seed: int) -> dict:
        body = {"model": self.model, "prompt": ids, "max_tokens": sampling.max_new_tokens,
                "temperature": sampling.temperature, "top_p": sampling.top_p,
                "seed": seed % 2**31,  # llama.cpp's have 31 bits
                "top_k": sampling.top_k or -1, "min_p": 0,  # -1: vLLM and SGLang refuse 0
                "presence_penalty": 0, "frequency_penalty": 0,
                "repetition_penalty": 1, "repeat_penalty": 1,  # llama.cpp has its own name
                "samplers": ["temperature", "top_k", "top_p"]}  # its order, and no others of its
        if sampling.stop:
            body["stop"] = list(sampling.stop)
        if sampling.min_lines:  # a list ends at a stop string or at the limit
            body |= {"logit_bias": {str(id): -100 for id in sorted(self.tokenizer.eos_ids)},
                     "ignore_eos": True}  # llama.cpp knows more ends of a text than the files name
        return body

    def post(self, url: str, body: dict) -> dict:
        """One attempt: Fault where the next may succeed, InputError where none will."""
        where, data = f"--endpoint {url}", json.dumps(body).encode()
        try:
            asked = request.Request(f"{url}/completions", data, self.headers)
            with self.openers[url].open(asked, timeout=TIMEOUT_S) as answer:
                data = answer.read(LARGEST)
        except HTTPError as error:
            with error:  # closed unread
                code, wait = error.code, error.headers.get("Retry-After", "")
            if code not in PASSING and code < 500:
                raise refusal(code, where, body) from None
            asked_for = min(float(wait), LONGEST_WAIT_S) if wait.isdecimal() else None
            raise Fault(f"HTTP {code}", asked_for) from None
        except (OSError, HTTPException) as error:
            reason = getattr(error, "reason", error)
            if isinstance(reason, ssl.SSLCertVerificationError):
                raise InputError("its certificate is not valid", where,
                                 "give the name that it is made out for") from None
            raise Fault(type(reason).__name__) from None
        return read_row(data, body, where)


def read_row(data: bytes, body: dict, where: str) -> dict:
    """A server's answer as a row; Fault where it is none."""
    try:
        value = json.loads(data.decode(errors="replace"))
        (choice,), usage = value["choices"], value["usage"]
        text, finish = choice["text"], choice["finish_reason"]
        read, n_tokens = int(usage["prompt_tokens"]), int(usage["completion_tokens"])
        if finish not in ("stop", "length") or not isinstance(text, str):
            raise ValueError
    except (ValueError, TypeError, LookupError, RecursionError):
        raise Fault("no answer of /completions") from None
    if read != (sent := len(body["prompt"])):
        told = "a second BOS, maybe" if read == sent + 1 else "a template, or another tokenizer"
        raise InputError(f"{sent} token ids were sent and {read} read ({told})", where,
                         "serve the model of --model on a server that takes ids as they are")
    # A lone half of a surrogate pair can be escaped in JSON, but no file holds it.
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    ends = [at for stop in body.get("stop", ()) if (at := text.find(stop)) >= 0]
    # "stop" is an end of text or a stop string: servers do not tell which.
    return {"text": text[:min(ends, default=None)], "n_tokens": n_tokens,
            "finish": "length" if n_tokens >= body["max_tokens"] and not ends else finish}


def refusal(code: int, where: str, body: dict) -> InputError:
    n, more = len(body["prompt"]), body["max_tokens"]
    what, remedy = {
        3: ("it redirects", "give the address that it leads to"),
        401: ("it wants a key", f"set {KEY}"), 403: ("it refuses the key", f"check {KEY}"),
        404: ("no such place or model", "end the address as the server's documents say, mostly in"
              " /v1, and give --endpoint-model as it names the model"),
    }.get(code if code > 399 else code // 100,
          (f"it refuses {n} token ids and {more} new tokens",
           "use vLLM, SGLang or llama.cpp's server, with a context that holds them; Ollama takes"
           " text alone, and transformers serve no ids"))
    return InputError(f"{what} (HTTP {code})", where, remedy)
