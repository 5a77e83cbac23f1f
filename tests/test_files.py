"""files.py: what is on disk after a failure or a kill, what errors tell, what text is hashed."""

import json
import os
import pickle
import stat
from pathlib import Path

import pytest

from support import files
from support.files import (
    AppendLog,
    InputError,
    canonical,
    read_json,
    read_jsonl,
    read_text,
    sha256,
    sha256_file,
    write_atomic,
    write_json,
    write_jsonl,
)

SECRET = "a scornful remark"  # stands for toxic text: no message may hold it


# ---- writing ----

@pytest.mark.parametrize("data", ["é\n", b"\xff\x00", ""])
@pytest.mark.parametrize("mode", [0o644, 0o600])
def test_write_atomic(tmp_path, data, mode):
    target = tmp_path / "file"
    for _ in range(2):  # new, then over itself
        write_atomic(target, data, mode=mode)
        assert target.read_bytes() == (data.encode() if isinstance(data, str) else data)
        assert target.stat().st_mode & 0o777 == mode
        assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("umask, mode, wanted", [
    (0o022, 0o666, 0o644), (0o077, 0o644, 0o600), (0o002, 0o600, 0o600)])
def test_umask(tmp_path, umask, mode, wanted):
    before = os.umask(umask)
    try:
        write_atomic(tmp_path / "file", "x", mode=mode)
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == wanted


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_write_fails(tmp_path, monkeypatch, step, error):
    """Whatever step fails, the old file stands whole and nothing lies beside it."""
    target = tmp_path / "file"
    write_atomic(target, "old")

    def fail(*_, **__):
        raise error("disk full")

    monkeypatch.setattr(files.os, step, fail)
    with pytest.raises(error):
        write_atomic(target, "new")
    assert os.listdir(tmp_path) == ["file"] and target.read_text() == "old"


def test_interrupted_after_the_renaming(tmp_path, monkeypatch):
    """The new file is there, and what is told is the interrupt."""
    real = files.os.replace

    def late(*paths):
        real(*paths)
        raise KeyboardInterrupt

    monkeypatch.setattr(files.os, "replace", late)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(tmp_path / "file", "new")
    assert os.listdir(tmp_path) == ["file"] and (tmp_path / "file").read_text() == "new"


def test_write_never_readable_by_others(tmp_path, monkeypatch):
    """A private file is private from its first byte, not only once it is renamed."""
    seen = []
    monkeypatch.setattr(files.os, "fsync", lambda handle: seen.append(os.fstat(handle).st_mode))
    write_atomic(tmp_path / "file", SECRET, mode=0o600)
    assert seen and not seen[0] & 0o077


@pytest.mark.parametrize("error", [None, OSError(22, "Invalid argument")])
def test_folder_is_synced_after_the_renaming(tmp_path, monkeypatch, error):
    """Else a power cut could take the new name back. A file system that cannot is let be."""
    synced = []

    def sync(handle):
        is_folder = stat.S_ISDIR(os.fstat(handle).st_mode)
        synced.append("folder" if is_folder else "file")
        if is_folder:
            assert (tmp_path / "file").read_text() == "new"
            if error:
                raise error

    monkeypatch.setattr(files.os, "fsync", sync)
    write_atomic(tmp_path / "file", "new")
    assert synced == ["file", "folder"] and os.listdir(tmp_path) == ["file"]


def test_json_round_trip(tmp_path):
    rows = [{"b": "é\u2028\n", "a": [1, 2.5, None]}, {"b": ""}]
    write_jsonl(tmp_path / "rows", rows)
    assert read_jsonl(tmp_path / "rows") == [(1, rows[0]), (2, rows[1])]
    write_json(tmp_path / "one", rows)
    assert read_json(tmp_path / "one") == rows
    (tmp_path / "escaped").write_text(r'{"whole pair": "\ud83d\ude00"}')
    assert read_jsonl(tmp_path / "escaped") == [(1, {"whole pair": "😀"})]
    assert "é" in (tmp_path / "one").read_text(encoding="utf-8")


# ---- reading ----

GOOD = json.dumps({"prompt": "p", "toxic": SECRET})
BAD_LINES = [  # the file's text, the line that is named, what is said
    (f'{GOOD}\n{{"toxic": "{SECRET}\n', 2, "not valid JSON"),
    (f"\n\n{GOOD}\n{SECRET}", 4, "not valid JSON"),
    (f'{GOOD}\n["{SECRET}"]\n', 2, "not a JSON object"),
    (f'"{SECRET}"', 1, "not a JSON object"),
    (f"{GOOD} {GOOD}\n", 1, "not valid JSON"),
    (f"{GOOD}\n{{'toxic': '{SECRET}'}}", 2, "not valid JSON"),
    (f"{GOOD}\u2028{GOOD}\n", 1, "not valid JSON"),  # no line end in JSON lines
    (f'{GOOD}\n{{"toxic": "{SECRET} \\uD83D"}}\n', 2, "not valid JSON (half a surrogate pair)"),
    (f'{GOOD}\n{{"{SECRET}": {"7" * 5000}}}', 2, "not valid JSON (a number of thousands"),
    (f'{GOOD}\n{{"{SECRET}": {"[" * 100_000}', 2, "not valid JSON (nested too deeply"),
]


def told(caught, path):
    message = str(caught.value)
    assert "\n" not in message and str(path) in message and SECRET not in message
    assert message.count(", ") >= 2  # what, where, remedy
    # A decoder's error as the cause would show its own copy of the line in a traceback.
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    return message


@pytest.mark.parametrize(("text", "line", "said"), BAD_LINES)
def test_bad_line(tmp_path, text, line, said):
    path = tmp_path / "rows.jsonl"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        read_jsonl(path)
    message = told(caught, path)
    assert f"{path} line {line}," in message and message.startswith(said)


@pytest.mark.parametrize("read", [read_json, read_jsonl, read_text])
@pytest.mark.parametrize(("make", "said"), [
    (lambda path: None, "no such file"),
    (lambda path: path.mkdir(), "cannot be read"),
    (lambda path: path.write_bytes(f"{SECRET}\xe9".encode("latin-1")), "not UTF-8"),
])
def test_unreadable(tmp_path, read, make, said):
    path = tmp_path / "file.json"
    make(path)
    with pytest.raises(InputError, match=said) as caught:
        read(path)
    told(caught, path)


@pytest.mark.parametrize("row", [f'"{SECRET}" 2', f'"{SECRET}": "\\udc00"',
                                 f'"{SECRET}": {"7" * 5000}'], ids=range(3))
def test_bad_json(tmp_path, row):
    path = tmp_path / "file.json"
    path.write_text(f'{{"a": 1,\n {row}}}')
    with pytest.raises(InputError) as caught:
        read_json(path)
    assert f"{path} line 2" in told(caught, path)


def test_blank_lines(tmp_path):
    """Passed over, but counted; Windows line ends and a missing last one do no harm."""
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\n{"a": 1}\r\n  \n\r\n{"a": 2}')
    assert read_jsonl(path) == [(2, {"a": 1}), (5, {"a": 2})]


def test_byte_order_mark(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\n')
    assert read_jsonl(path) == [(1, {"a": 1})] and read_json(path) == {"a": 1}


# ---- the append-only log ----

ROWS = [{"id": 1, "text": "é"}, {"id": 2, "text": "日本"}, {"id": 3, "text": "a\nb"}]


def test_log_appends(tmp_path):
    path = tmp_path / "log"
    log = AppendLog(path, mode=0o600)
    assert log.rows == [] and path.stat().st_mode & 0o777 == 0o600
    log.append(*ROWS[:2])
    assert [row for _, row in read_jsonl(path)] == ROWS[:2]  # on disk before it is closed
    log.close()
    log = AppendLog(path, mode=0o600)
    assert log.rows == ROWS[:2]
    log.append(ROWS[2])
    log.close()
    assert log.rows == ROWS and [row for _, row in read_jsonl(path)] == ROWS


def test_log_cut_anywhere(tmp_path):
    """Killed after any byte: whole lines are kept, and appending the rest makes the same file."""
    path = tmp_path / "log"
    write_jsonl(path, ROWS)
    whole = path.read_bytes()
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        log = AppendLog(path)
        assert log.rows == ROWS[:whole[:size].count(b"\n")]
        log.append(*ROWS[len(log.rows):])
        log.close()
        assert path.read_bytes() == whole


def test_log_damaged_inside(tmp_path):
    """Only the last line can be torn by a kill: damage before it is told, and nothing is cut."""
    path = tmp_path / "log"
    text = f'{GOOD}\n{{"toxic": "{SECRET}\n{GOOD}\n'
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        AppendLog(path)
    assert f"{path} line 2" in told(caught, path) and path.read_text() == text


# ---- hashing ----

@pytest.mark.parametrize(("value", "text"), [
    ({"b": 1, "a": [1.5, None, True]}, '{"a":[1.5,null,true],"b":1}'),
    ({"a": {"d": 1, "c": "x y"}}, '{"a":{"c":"x y","d":1}}'),
    ("é\u2028\n", '"é\u2028\\n"'),
    ((1, 2), "[1,2]"),
])
def test_canonical(value, text):
    assert canonical(value) == text
    assert canonical(json.loads(canonical(value))) == text


def test_sha256(tmp_path):
    # FIPS 180-2's example, and text taken as UTF-8.
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256("abc") == sha256(b"abc") == known
    assert sha256("é") == sha256(b"\xc3\xa9")
    write_atomic(tmp_path / "file", "abc")
    assert sha256_file(tmp_path / "file") == known


def test_weights_that_one_may_not_read(tmp_path, monkeypatch):
    """Root may read all, so the refusal is played. Another download would not help."""
    def refuse(path, *_):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(files, "open", refuse, raising=False)
    (tmp_path / "m.safetensors").write_bytes(b"x")
    with pytest.raises(InputError) as error, files.open_safetensors(tmp_path / "m.safetensors"):
        pass
    assert "cannot be read (Permission denied)" in str(error.value)
    assert "download" not in str(error.value)


def test_input_error_crosses_processes():
    error = pickle.loads(pickle.dumps(InputError("no rows", Path("a.jsonl"), "write some")))
    assert str(error) == "no rows, a.jsonl, write some" and error.remedy == "write some"


def test_input_error_is_one_line():
    error = InputError(ValueError("line 1:\n  no token"), Path("a\nb"), "repair it")
    assert str(error) == "line 1: no token, a b, repair it"
