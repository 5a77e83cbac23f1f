"""hub.py against a local server that answers as the hub's resolve endpoints do: which files are
asked for, from which revision, and what each refusal says; then the same from the cache, offline.

The client runs in a process of its own, since huggingface_hub reads its settings when imported:
its cache is a temporary folder and its endpoint is 127.0.0.1, so nothing of the user's is touched.
"""

import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

import pytest

pytestmark = pytest.mark.slow

COMMON = {"config.json": "{}", "tokenizer.json": "{}", "tokenizer_config.json": "{}"}
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
INDEX = json.dumps({"weight_map": {"a": SHARDS[0], "b": SHARDS[1], "c": SHARDS[0]}})
SURPLUS = {"consolidated.safetensors": "x", "pytorch_model.bin": "x", "original/extra.json": "x"}
MAIN, OLD = "1" * 40, "2" * 40  # commit hashes
REPOS = {  # repository: {revision: (commit, {file: text})}
    "org/single": {
        "main": (MAIN, COMMON | SURPLUS | {"model.safetensors": "new weights"}),
        "v1.0": (OLD, COMMON | {"model.safetensors": "old weights", "config.json": '{"old": 1}'}),
        "pr/7": (OLD, COMMON | {"model.safetensors": "old weights"})},
    "org/sharded": {"main": (MAIN, {
        **COMMON, **SURPLUS, "model.safetensors.index.json": INDEX, SHARDS[0]: "1", SHARDS[1]: "2",
        "model-00001-of-00001.safetensors": "x",
        "chat_template.jinja": "hi", "generation_config.json": "{}"})},
    "org/resaved": {"main": (MAIN, COMMON | {  # an earlier save's index beside the new weights
        "model.safetensors.index.json": INDEX, SHARDS[0]: "1", "model.safetensors": "resaved"})},
    "org/pickled": {"main": (MAIN, COMMON | {"pytorch_model.bin": "x"})},
    "org/no-tokenizer": {"main": (MAIN, {"config.json": "{}", "model.safetensors": "x"})},
    "org/lost-shard": {"main": (MAIN, COMMON | {
        "model.safetensors.index.json": INDEX, SHARDS[0]: "1"})},
    "org/bad-index": {"main": (MAIN, COMMON | {"model.safetensors.index.json": "[]"})},
    "org/broken": {"main": (MAIN, {"config.json": None})},  # HEAD succeeds, GET fails
    "org/dropped": {"main": (MAIN, COMMON | {"model.safetensors": "0123456789" * 30})},
    "org/resumed": {"main": (MAIN, COMMON | {
        "model.safetensors.index.json": INDEX, SHARDS[0]: "1", SHARDS[1]: "fails once"})},
    "datasets/org/rows": {"main": (MAIN, {"data/rows.jsonl": "rows"}),
                          "r2": (OLD, {"data/rows.jsonl": "old rows"})},
}


REFUSED = {  # repository: HTTP status, the hub's code and message for it
    "org/gated": (403, "GatedRepo", ""),
    "org/gated-anonymous": (401, "GatedRepo", ""),
    "org/bad-token": (401, "", "Invalid credentials in Authorization header"),
    "org/weak-token": (403, "", ""),
    "org/down": (500, "", ""),
}

ABSENT = {False: (401, "RepoNotFound", ""), True: (404, "RevisionNotFound", "")}  # is there a repo?


class Hub(BaseHTTPRequestHandler):
    """The API's listings and the resolve endpoints: headers, error codes, weights on another host
    as LFS has them.

    The connection drops once in the middle of org/dropped's weights; one request for org/resumed's
    second shard fails.
    """

    def do_GET(self):
        path = unquote(urlsplit(self.path).path).strip("/")
        if path.startswith("cdn/"):
            return self.weights(path.removeprefix("cdn/").encode())
        if path.startswith("api/models/"):
            return self.listing(*path.split("/", 5)[2:])
        repo, _, rest = path.partition("/resolve/")
        if self.command == "GET":
            self.server.fetched.append(f"{repo} {rest}")
        if repo in REFUSED:
            return self.refuse(*REFUSED[repo])
        revision = next((r for r, (commit, _) in REPOS.get(repo, {}).items()
                         if rest.startswith((f"{r}/", f"{commit}/"))), None)
        if repo not in REPOS or revision is None:
            return self.refuse(*ABSENT[repo in REPOS])
        commit, files = REPOS[repo][revision]
        name = rest.removeprefix(f"{revision}/").removeprefix(f"{commit}/")
        if name not in files:
            return self.answer(404, b"", **{"X-Error-Code": "EntryNotFound",
                                            "X-Repo-Commit": commit})
        return self.file(name, files[name], commit)

    do_HEAD = do_GET

    def listing(self, owner, name, kind, revision):
        """What the API says: a revision's commit, or a commit's files. A gated one is listed."""
        repo = f"{owner}/{name}"
        if repo in REFUSED and "Gated" not in REFUSED[repo][1]:
            return self.refuse(*REFUSED[repo])
        revisions = REPOS.get(repo, {"main": (MAIN, COMMON)} if repo in REFUSED else {})
        commit, files = next(((commit, files) for name, (commit, files) in revisions.items()
                              if revision in (name, commit)), (None, None))
        if commit is None:
            return self.refuse(*ABSENT[bool(revisions)])
        if kind == "revision":  # older clients read the files here
            answer = {"id": repo, "sha": commit, "siblings": [{"rfilename": n} for n in files]}
        else:
            answer = [{"type": "file", "path": name, "size": len(text or ""), "oid": "0" * 40}
                      for name, text in files.items()]
        self.answer(200, json.dumps(answer).encode())

    def refuse(self, status, code, message):
        headers = {"X-Error-Code": code, "X-Error-Message": message}
        self.answer(status, b"", **headers if code or message else {})

    def file(self, name, text, commit):
        broken, data = text is None, (text or "{}").encode()
        etag = f'"{hashlib.sha256(data).hexdigest()}"'
        if name.endswith(".safetensors"):
            return self.answer(302, b"", **{
                "X-Repo-Commit": commit, "X-Linked-Etag": etag, "X-Linked-Size": str(len(data)),
                "Location": f"http://localhost:{self.server.server_port}/cdn/{quote(text)}"})
        status = 500 if broken and self.command == "GET" else 200
        return self.answer(status, data, **{"X-Repo-Commit": commit, "ETag": etag})

    def weights(self, data):
        start = int((self.headers["Range"] or "bytes=0-")[6:].rstrip("-"))
        self.server.ranges.append((len(data), start))
        if data.startswith((b"fails once", b"0123456789")) and data not in self.server.failed:
            self.server.failed.append(data)
            if data == b"fails once":
                return self.answer(500, b"")
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[:100])
            return self.connection.shutdown(socket.SHUT_RDWR)
        there = f"bytes {start}-{len(data) - 1}/{len(data)}"
        return self.answer(206 if start else 200, data[start:], **{"Content-Range": there})

    def answer(self, status, data, **headers):
        self.send_response(status)
        for key, value in (headers | {"Content-Length": str(len(data))}).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, *_):
        pass


CLIENT = """
import json, os, sys, time
import huggingface_hub.file_download as downloads
from support import progress
from support.files import InputError
from support.hub import dataset_file, model_folder

def fill(*_, **__):
    with open("/dev/full", "wb", 0) as file:
        file.write(b"x")

def forbid(*_, **__):
    raise PermissionError(13, "Permission denied")

time.sleep = lambda seconds: None  # between the hub's own tries
downloads.constants.DOWNLOAD_CHUNK_SIZE = 50  # what has come is kept by whole chunks, else of 10 MB
progress.QUIET = "QUIET" in os.environ
if "HTTP_GET" in os.environ:
    downloads.http_get = globals()[os.environ["HTTP_GET"]]
for name in sys.argv[1:]:
    repo, *rest = name.split("|")
    try:
        print(json.dumps(str(dataset_file(repo, *rest) if rest else model_folder(repo))))
    except InputError as error:
        print(json.dumps({"error": str(error)}))
"""


def ask(names, home, endpoint, *, stderr=None, **settings):
    """What model_folder (or, for repo|file|revision, dataset_file) gives for each name."""
    root = Path(__file__).resolve().parents[1]
    kept = {key: value for key, value in os.environ.items()
            if not key.upper().startswith("HF_") and not key.upper().endswith("_PROXY")}
    run = subprocess.run(
        [sys.executable, "-c", CLIENT, *names], stdout=subprocess.PIPE, stderr=stderr, text=True,
        timeout=120, cwd=home, env={
            **kept, "PYTHONPATH": str(root), "HF_HOME": str(home), "NO_PROXY": "*",
            "HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_TELEMETRY": "1", **settings})
    assert run.returncode == 0
    return dict(zip(names, map(json.loads, run.stdout.splitlines()), strict=True))


MODELS = ("org/single", "org/single@v1.0", "org/single@pr/7", f"org/single@{OLD}", "org/sharded",
          "org/resaved")
ROWS = ("org/rows|data/rows.jsonl|main", "org/rows|data/rows.jsonl|r2")
ERRORS = {  # name: what the refusal says
    "org/absent": "no such folder or hub repository, org/absent,",
    "org/gated": "gated repository, org/gated, accept the licence",
    "org/gated-anonymous": "gated repository, org/gated-anonymous, accept the licence",
    "org/bad-token": "the hub refuses this token (HTTP 401), org/bad-token,",
    "org/weak-token": "the hub refuses this token (HTTP 403), org/weak-token,",
    "org/down": "download of config and tokenizer failed (HTTP 500), org/down,",
    "org/single@v9": "no such revision, org/single@v9,",
    "org/pickled": "no model.safetensors, org/pickled,",
    "org/no-tokenizer": "no tokenizer.json, org/no-tokenizer,",
    "org/lost-shard": f"no {SHARDS[1]}, org/lost-shard,",
    "org/bad-index": "no weight_map, ",
    "org/broken": "download of config and tokenizer failed (HTTP 500), org/broken,",
    "org/a--b": "not a hub id, org/a--b,",
    "org/rows|data/none.jsonl|main": "no data/none.jsonl, org/rows@main, name a folder that has it",
    "org/none|data/rows.jsonl|main": "no such folder or hub repository, org/none@main,",
}


@contextmanager
def serving():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.fetched, server.ranges, server.failed = [], [], []
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(scope="module")
def online(tmp_path_factory):
    """Everything asked for once: (answers, GET requests, the cache's folder)."""
    home = tmp_path_factory.mktemp("home")
    with serving() as (server, endpoint):
        return ask([*MODELS, *ROWS, *ERRORS], home, endpoint), server.fetched, home


def contents(folder):
    return {str(path.relative_to(folder)): path.read_text()
            for path in Path(folder).rglob("*") if path.is_file()}


def test_single(online):
    answers, _, home = online
    assert Path(answers["org/single"]).is_relative_to(home)
    assert contents(answers["org/single"]) == COMMON | {"model.safetensors": "new weights"}


# The snapshot of a commit is shared by the two revisions that name it.
@pytest.mark.parametrize("name", ["org/single@v1.0", "org/single@pr/7", f"org/single@{OLD}"])
def test_revision(online, name):
    answers = online[0]
    got = contents(answers[name])
    assert Path(answers[name]).name == OLD and got["model.safetensors"] == "old weights"
    assert answers["org/single@v1.0"] != answers["org/single"]


def test_sharded(online):
    """The shards that the index names, once each, and no other weights."""
    answers, fetched, _ = online
    wanted = {"config.json", "model.safetensors.index.json", *SHARDS, "tokenizer.json",
              "tokenizer_config.json", "chat_template.jinja", "generation_config.json"}
    assert contents(answers["org/sharded"]).keys() == wanted
    assert not [f for f in fetched if f.endswith(tuple(SURPLUS)) or "of-00001" in f]


def test_single_file_before_an_index(online):
    answers, fetched, _ = online
    assert contents(answers["org/resaved"])["model.safetensors"] == "resaved"
    assert not any("org/resaved" in line and SHARDS[0] in line for line in fetched)


def test_dataset(online):
    answers, _, home = online
    texts = [Path(answers[name]).read_text() for name in ROWS]
    assert texts == ["rows", "old rows"] and Path(answers[ROWS[0]]).is_relative_to(home)


@pytest.mark.parametrize("name", ERRORS)
def test_refusal(online, name):
    message = online[0][name]["error"]
    assert message.startswith(ERRORS[name])
    assert "\n" not in message and message.count(", ") >= 2 and "127.0.0.1" not in message


NOWHERE = "http://127.0.0.1:9"  # the discard port: nobody listens
