"""Reading and writing files: atomic writes, JSON and JSON lines with errors that name the line.

Everything the program keeps goes through `write_atomic` or an append-only file of JSON lines, so a
run killed at any moment leaves either the old file or the new one, never half of one.
"""

import contextlib
import hashlib
import json
import os
import re
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError, safe_open


class InputError(Exception):
    """Bad input, told in one line: what is wrong, where, the remedy. The program exits with 2."""

    def __init__(self, what, where, remedy: str):
        super().__init__(f"{what}, {where}, {remedy}")
        self.what, self.where, self.remedy = what, where, remedy


def canonical(value) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text, so it can be hashed."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def sha256(data: str | bytes) -> str:
    return hashlib.sha256(data.encode() if isinstance(data, str) else data).hexdigest()


def sha256_file(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_text(path: Path) -> str:
    try:
        return Path(path).read_text(encoding="utf-8-sig")  # some editors put a mark in front
    except FileNotFoundError:
        raise InputError("no such file", path, "check the path") from None
    except UnicodeDecodeError as error:
        raise InputError("not UTF-8 text", f"{path} byte {error.start}", "re-encode it") from None
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", path, "check the path") from None


def parse_json(text: str):
    """json.loads, but half a surrogate pair (JSON can escape one) is refused: no file holds it.

    Raises JSONDecodeError alone, also where Python's own limits are passed.
    """
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        raise
    except ValueError:
        place = re.search(r"\d{999}", text).start()
        raise json.JSONDecodeError("a number of thousands of digits", text, place) from None
    except RecursionError:
        raise json.JSONDecodeError("nested too deeply", text, 0) from None
    if (place := text.lower().find("\\ud")) >= 0:
        try:
            canonical(value).encode()
        except UnicodeEncodeError:
            raise json.JSONDecodeError("half a surrogate pair", text, place) from None
    return value


def read_json(path: Path):
    try:
        return parse_json(read_text(path))
    except json.JSONDecodeError as error:
        raise InputError(f"not valid JSON ({error.msg})", f"{path} line {error.lineno}",
                         "repair the file") from None


def read_object(path: Path, *, remedy: str = "download it again") -> dict:
    """A JSON file that holds one object."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise InputError("not a JSON object", path, remedy)
    return value


@contextlib.contextmanager
def open_safetensors(path: Path, *, kind: str = "weights", device="cpu",
                     remedy: str = "download it again") -> Iterator:
    """A safetensors file open for reading; InputError where it is damaged or lacks a tensor."""
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            yield file
    except (SafetensorError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"damaged {kind} ({reason})", path, remedy) from None


def read_jsonl(path: Path) -> list[tuple[int, dict]]:
    """The objects of a JSON lines file, each with its line number (from 1). Blank lines are passed.

    Lines end at a newline only: str.splitlines would also cut inside a string at U+2028.
    """
    rows = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except json.JSONDecodeError as error:
            # error.doc holds the line, which may be toxic text: only the short message is told.
            raise InputError(f"not valid JSON ({error.msg})", f"{path} line {number}",
                             "repair the line") from None
        if not isinstance(row, dict):
            raise InputError("not a JSON object", f"{path} line {number}", "one {...} a line")
        rows.append((number, row))
    return rows


def write_atomic(path: Path, data: str | bytes, *, mode: int = 0o644) -> None:
    """Temporary file beside the target, fsync, rename: a reader sees the old file or the new."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    # The mode from the first byte on, less what the umask takes away.
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:  # an interrupt too must not leave the temporary file behind
        with contextlib.suppress(FileNotFoundError):  # it came after the renaming
            os.unlink(temporary)
        raise


def set_aside(path: Path) -> None:
    """Rename a file or folder to NAME.old-TIME: what --fresh does with an old result."""
    stamp, n = time.strftime("%Y%m%d-%H%M%S"), 1
    old = path.with_name(f"{path.name}.old-{stamp}")
    while old.exists():  # twice within a second
        n += 1
        old = path.with_name(f"{path.name}.old-{stamp}-{n}")
    path.rename(old)


def write_json(path: Path, value, *, mode: int = 0o644) -> None:
    write_atomic(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n", mode=mode)


def write_jsonl(path: Path, rows, *, mode: int = 0o644) -> None:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_atomic(path, text, mode=mode)


class AppendLog:
    """An append-only file of JSON lines that survives a kill: a torn last line is cut on opening.

    `rows` is what the file holds. New ones are on disk (fsync) when `append` returns.
    """

    def __init__(self, path: Path, *, mode: int = 0o644):
        self.path = Path(path)
        self.file = os.fdopen(os.open(self.path, os.O_RDWR | os.O_CREAT, mode), "r+b")
        whole = self.file.read()
        whole = whole[: whole.rfind(b"\n") + 1]
        self.file.truncate(len(whole))
        self.file.seek(len(whole))
        self.rows = [row for _, row in read_jsonl(self.path)]

    def append(self, *rows: dict) -> None:
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        self.file.write(text.encode())
        self.file.flush()
        os.fsync(self.file.fileno())
        self.rows.extend(rows)

    def close(self) -> None:
        self.file.close()
