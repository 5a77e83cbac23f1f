"""A server of /v1/completions on this machine, scripted: what it writes, and what goes wrong.

Also the calls and fixtures that the tests of endpoint.py share; they need no model."""

import contextlib
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from generate import Sampling
from support import endpoint
from support.addresses import KEY
from support.endpoint import Endpoint
from tokenizer import Tokenizer

SAMPLING = Sampling(8, temperature=0.7, top_p=0.9, stop=("\n",))
PROBES = len(endpoint.PROBE_SEEDS)
SECRET = "sk-not-to-be-seen"


def letters(body: dict) -> dict:
    """An answer that depends on prompt and seed, as a row."""
    return {"text": f" {sum(body['prompt'])} {body['seed']}", "finish": "stop", "n_tokens": 3}


def answer(body: dict, row: dict, *, read: int = 0) -> bytes:
    """`read`: tokens more than were sent."""
    usage = {"prompt_tokens": len(body["prompt"]) + read, "completion_tokens": row["n_tokens"]}
    finish = "stop" if row["finish"] == "eos" else row["finish"]
    return json.dumps({"choices": [{"text": row["text"], "finish_reason": finish}],
                       "usage": usage}).encode()


class Server(ThreadingHTTPServer):
    daemon_threads, request_queue_size = True, 256

    def handle_error(self, *_):
        pass  # a client that went away


class Stub:
    """`write(body)` gives a row; `fault(n, body)` what happens to the n-th request instead: an
    HTTP status, (status, headers), bytes to send, "reset" or "half"; None is no fault."""

    def __init__(self, write=letters, fault=lambda n, body: None):
        self.write, self.fault, self.lock = write, fault, threading.Lock()
        self.asked: list[tuple[str, dict, dict]] = []  # path, headers, body
        self.under_way = self.most = 0
        stub = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                stub.handle(self)

            def log_message(self, *_):
                pass

        self.handler, self.port = Handler, 0
        self.listen()
        self.url = f"http://127.0.0.1:{self.port}/v1"

    def listen(self) -> None:
        self.server = Server(("127.0.0.1", self.port), self.handler)
        self.port = self.server.server_port
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def end(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def handle(self, handler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        with self.lock:
            n = len(self.asked)
            self.asked.append((handler.path, dict(handler.headers), body))
            self.under_way += 1
            self.most = max(self.most, self.under_way)
        try:
            self.reply(handler, self.fault(n, body), body)
        finally:
            with self.lock:
                self.under_way -= 1

    def reply(self, handler, fault, body: dict) -> None:
        if fault == "reset":
            handler.connection.close()
            return
        status, headers = fault if isinstance(fault, tuple) else (
            (fault, {}) if isinstance(fault, int) else (200, {}))
        if status != 200:
            data = f"said of {body['prompt']}: QUOTED".encode()
        else:
            data = fault if isinstance(fault, bytes) else answer(body, self.write(body))
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data[: len(data) // 2] if fault == "half" else data)


@contextlib.contextmanager
def serving(*arguments, **options):
    stub = Stub(*arguments, **options)
    try:
        yield stub
    finally:
        stub.end()


def slowly(seconds: float, write=letters):
    """The same text, later: requests of even seeds take so long."""
    def late(body: dict) -> dict:
        time.sleep(seconds * (1 - body["seed"] % 2))
        return write(body)
    return late


def after_probes(fault):
    """A fault of the calls behind the probes; the first of them is number 0."""
    return lambda n, body: fault(n - PROBES, body) if n >= PROBES else None


# ---- what asks it ----

@pytest.fixture(scope="session")
def tokenizer(tiny_folder):
    return Tokenizer(tiny_folder)


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """Waits of a moment, and no key of the machine that the tests run on."""
    monkeypatch.setattr(endpoint, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(endpoint, "LONGEST_WAIT_S", 0.05)
    monkeypatch.setattr(endpoint, "PATIENCE_S", 5)
    monkeypatch.delenv(KEY, raising=False)


def connected(tokenizer, *stubs, concurrency=4, context=2048) -> Endpoint:
    return Endpoint([stub.url for stub in stubs], "served", tokenizer, context=context,
                    concurrency=concurrency)


def ask(tokenizer, *stubs, n=6, sampling=SAMPLING, **options) -> dict[int, dict]:
    """{number: row} of n calls; the probes have been paid for."""
    jobs = [(i, [5, 6, 7 + i], 1000 + i) for i in range(n)]
    return dict(connected(tokenizer, *stubs, **options).each(jobs, sampling))
