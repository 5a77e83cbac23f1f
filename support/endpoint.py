"""A model behind OpenAI-compatible servers: they compute its texts, and the method stays here.

POST {address}/completions with our own token ids, so that nobody adds a template or a BOS to them.
What a server would fill in by itself (llama.cpp's top_k of 40, the generation_config.json of vLLM)
is sent at the value that changes nothing. results/speed/servers.md says which server takes what,
and which was run.

A call that fails in passing (a time-out, a reset, half an answer, HTTP 429 or 5xx) is made again,
at the next address and after a wait that doubles. The body of an error is never read, since it may
quote the prompt. support/addresses.py says who may be asked."""

import itertools
import json
import queue
import random
import ssl
import threading
import time
from collections.abc import Iterable, Iterator
from http.client import HTTPException
from types import SimpleNamespace
from urllib import request
from urllib.error import HTTPError

from support.addresses import KEY, checked, headers_for, is_near, opener
from support.decoding import LAST, opened
from support.files import InputError
from support.progress import say

TIMEOUT_S = 600  # of silence: on a slow machine a call may wait for others
PATIENCE_S = 600  # from a call's first failure on: a server may be started again
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 60
LARGEST = 1 << 24  # bytes of an answer that are read
PASSING = (408, 425, 429)  # HTTP; and all from 500 on
STOPPED = ("stop", "eos", "eos_token", "stop_sequence", "end_turn")  # the text is whole
PROBE = "Write down whatever comes to your mind:"
PROBE_SAMPLING = SimpleNamespace(max_new_tokens=24, temperature=1.5, top_p=1.0, top_k=0, stop=(),
                                 min_lines=1)
PROBE_SEEDS = (1, 2, 3)  # a model may say the same twice


class Fault(Exception):
    """An attempt failed in a way that may pass."""
    wait: float | None = None  # seconds that the server asks for


def connect(urls: list[str] | None, model: str | None, tokenizer, *, base_dtype: str | None = None,
            **options) -> "Endpoint | None":
    """What --endpoint and --endpoint-model name; None where neither does."""
    if urls and base_dtype:
        raise InputError("the server decides how it holds its weights", "--base-dtype",
                         "leave it out")
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
        self.openers = {url: opener(near=near) for url, near in self.near.items()}
        self.numbers, self.probed = itertools.count(), False  # of calls

    def take_toxic(self, *, anywhere: bool) -> None:
        """Toxic text will go to these addresses: InputError where one is public, unless they may
        be `anywhere`."""
        far = [url for url, near in self.near.items() if not near]
        if far and not anywhere:
            raise InputError("toxic text would leave the private network", f"--endpoint {far[0]}",
                             "use --positives-only, or --toxic-endpoint-ok if its owner agrees")
        say(f"toxic text is asked of {', '.join(self.near)}")

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
                        self.probe()
                    # In this thread: decoding closes standard error for a moment (limits.py).
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
        body, wait, until = self.body(ids, sampling, seed), FIRST_WAIT_S, None
        urls = list(self.near)
        for turn in itertools.count(next(self.numbers)):
            url = urls[turn % len(urls)]
            try:
                row = self.post(url, body)
                return {**row, "text": thought + row["text"]}
            except Fault as fault:
                pause, now = fault.wait or wait * random.uniform(0.5, 1), time.monotonic()
                until = until or now + PATIENCE_S
                if now + pause > until or stop.wait(pause):
                    raise InputError(f"no answer ({fault})", f"--endpoint {url}",
                                     "see the server's log, then repeat the command") from None
                wait = min(2 * wait, LONGEST_WAIT_S)

    def probe(self) -> None:
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
                                 "see that the server runs there, has loaded the model and is"
                                 " not too busy") from None
            if len(texts) == 1:
                raise InputError("the same text for every seed", f"--endpoint {url}",
                                 "let the server sample by seed (SGLang:"
                                 " --enable-deterministic-inference), or use another")
        self.probed = True

    def body(self, ids: list[int], sampling, seed: int) -> dict:
        body = {"model": self.model, "prompt": ids, "max_tokens": sampling.max_new_tokens,
                "temperature": sampling.temperature, "top_p": sampling.top_p,
                "seed": seed % 2**31,  # llama.cpp's have 31 bits
                "top_k": sampling.top_k or -1, "min_p": 0,  # SGLang refuses a top_k of 0
                "presence_penalty": 0, "frequency_penalty": 0,
                "repetition_penalty": 1, "repeat_penalty": 1,  # llama.cpp has its own name
                "samplers": ["temperature", "top_k", "top_p"]}  # llama.cpp: these, in our order
        if sampling.stop:
            body["stop"] = list(sampling.stop)
        if sampling.min_lines:  # a list ends at a stop string or at the limit
            body |= {"logit_bias": {str(id): -100 for id in sorted(self.tokenizer.eos_ids)},
                     "ignore_eos": True}  # llama.cpp knows more ends of a text than the files name
        return body

    def post(self, url: str, body: dict) -> dict:
        """One attempt: Fault where the next may succeed, InputError where none will."""
        asked = request.Request(f"{url}/completions", json.dumps(body).encode(), self.headers)
        where = f"--endpoint {url}"
        try:
            with self.openers[url].open(asked, timeout=TIMEOUT_S) as answer:
                return read_row(answer.read(LARGEST), body, where)
        except HTTPError as error:
            error.close()  # unread
            if error.code not in PASSING and error.code < 500:
                raise refusal(error.code, where, body) from None
            fault = Fault(f"HTTP {error.code}")
            if (wait := error.headers.get("Retry-After", "")).isdecimal():
                fault.wait = min(float(wait), LONGEST_WAIT_S)
            raise fault from None
        except (OSError, HTTPException) as error:
            reason = getattr(error, "reason", error)
            if isinstance(reason, ssl.SSLCertVerificationError):
                raise InputError("its certificate is not valid here", where,
                                 "give the name that it is made out for, and if you signed it"
                                 " yourself, its file as SSL_CERT_FILE") from None
            raise Fault(type(reason).__name__) from None


def read_row(data: bytes, body: dict, where: str) -> dict:
    """A server's answer as a row; Fault where it is none."""
    try:
        value = json.loads(data.decode(errors="replace"))
        (choice,), usage = value["choices"], value["usage"]
        text, finish = choice["text"], choice["finish_reason"]
        read, n_tokens = int(usage["prompt_tokens"]), int(usage["completion_tokens"])
        if not isinstance(finish, str) or finish == "abort" or not isinstance(text, str):
            raise ValueError
        # What ends for another reason, such as a content filter, is a part.
        finish = "stop" if finish in STOPPED else "length"
    except (ValueError, TypeError, LookupError, OverflowError, RecursionError):
        raise Fault("not in the form of /completions") from None
    if read != (sent := len(body["prompt"])):
        told = "a second BOS, maybe" if read == sent + 1 else "a template, or another tokenizer"
        raise InputError(f"{sent} token ids were sent and {read} read ({told})", where,
                         "serve the model of --model on a server that takes ids as they are")
    # A lone half of a surrogate pair can be escaped in JSON, but no file holds it.
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    # Servers say "stop" of an end of text as well. At the limit any text counts as cut.
    if ends := [at for stop in body.get("stop", ()) if (at := text.find(stop)) >= 0]:
        text, finish = text[:min(ends)], "stop"
    elif n_tokens >= body["max_tokens"]:
        finish = "length"
    return {"text": text, "finish": finish, "n_tokens": n_tokens}


def refusal(code: int, where: str, body: dict) -> InputError:
    what, remedy = {
        3: ("it redirects", "give the address that it leads to"),
        401: ("it wants a key", f"set {KEY}"), 403: ("it refuses the key", f"check {KEY}"),
        404: ("no such place or model", "end the address as the server's documents say, mostly in"
              " /v1, and give --endpoint-model as it names the model"),
    }.get(code if code > 399 else code // 100,
          (f"it refuses {len(body['prompt'])} token ids and {body['max_tokens']} new tokens",
           "use vLLM, SGLang or llama.cpp's server, with a context that holds them; Ollama takes"
           " text alone, and transformers serve takes no ids"))
    return InputError(f"{what} (HTTP {code})", where, remedy)
