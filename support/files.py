"""Reading and writing files: atomic writes, JSON and JSON lines with errors that name the line.

Everything the program keeps goes through `write_atomic`, an append-only file of JSON lines, or a
folder that takes its name when it is whole (runs.new_folder), so a run killed at any moment leaves
either the old file or the new one, never half of one."""

import contextlib
import errno
import gzip
import hashlib
import io
import itertools
import json
import os
import re
import secrets
import time
import tomllib
import zlib
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

from safetensors import SafetensorError, safe_open

LONGEST_PART = 500  # characters of what, where or the remedy in an error
TEMPORARY = re.compile(r"\..+\.[0-9a-f]{16}")  # names of write_atomic's
POINTER = b"version https://git-lfs.github.com/spec/"


class InputError(Exception):
    """Bad input, in one line: what is wrong, where, the remedy. The program exits with 2."""

    def __init__(self, what, where, remedy: str):
        super().__init__(what, where, remedy)  # as they came, so that it crosses processes
        self.what, self.where, self.remedy = what, where, remedy

    def __str__(self) -> str:
        # What a library, a path or a file's field says may have lines, escapes or no end.
        parts = (" ".join(str(part).split()) for part in self.args)
        text = ", ".join(part if len(part) <= LONGEST_PART else f"{part[:LONGEST_PART]}..."
                         for part in parts)
        return printable(text)


def printable(text: str) -> str:
    """Without what a terminal would obey: a downloaded file's field may hold it. Line ends stay."""
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}"
                   for c in text)


@contextlib.contextmanager
def refusing(errors, what: str, where, remedy: str) -> Iterator[None]:
    """What a library raises of these classes inside the with block is bad input: an InputError that
    has the first line of its message as the reason."""
    try:
        yield
    except errors as error:
        refuse_pointer(where)
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise InputError(f"{what} ({reason.splitlines()[0][:120]})", where, remedy) from None


def refuse_special(path) -> None:
    """InputError for a folder, a device or a pipe in a file's place: some have no end."""
    if os.path.exists(path) and not os.path.isfile(path):
        what = "a directory" if os.path.isdir(path) else "a device or a pipe"
        raise InputError(f"cannot be read ({what})", path, "name a file")


def begins_with(path, mark: bytes) -> bool:
    """Does this file begin so? False for what is no file or cannot be read."""
    if os.path.isfile(path):  # a pipe would be waited for
        with contextlib.suppress(OSError), open(path, "rb") as file:
            return file.read(len(mark)) == mark
    return False


def refuse_pointer(path) -> None:
    """InputError for what git leaves in a large file's place where git-lfs is not installed."""
    if begins_with(path, POINTER):
        raise InputError("a git-lfs pointer, not the file itself", path,
                         "run `git lfs pull` beside it, or `hf download` the repository")


def canonical(value) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text, so it can be hashed."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def sha256(data: str | bytes) -> str:
    return hashlib.sha256(data.encode() if isinstance(data, str) else data).hexdigest()


def sha256_file(path: Path) -> str:
    refuse_special(path)
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


MOST_PACKED = 100  # times as large as its gzip a text may be; text is some 3 to 10 times as large


PACKED = {b"\x28\xb5\x2f\xfd": "zstandard", b"\xfd7zXZ": "xz", b"BZh": "bzip2",
          b"PK\x03\x04": "a zip archive", b"ARROW1": "an Arrow file"}  # by first bytes


def read_text(path: Path) -> str:
    """The text of a file, gzipped or not, with "\n" at the ends of its lines."""
    refuse_special(path)
    try:
        data = Path(path).read_bytes()
        if data.startswith(b"\x1f\x8b"):
            most = max(2**24, MOST_PACKED * len(data))
            with gzip.open(io.BytesIO(data)) as file:
                data = file.read(most + 1)
            if len(data) > most:
                raise InputError(f"unpacks to more than {MOST_PACKED} times its size", path,
                                 "unpack it, if you trust it")
        # some editors put a mark in front
        return io.TextIOWrapper(io.BytesIO(data), encoding="utf-8-sig").read()
    except FileNotFoundError:
        raise InputError("no such file", path, "check the path") from None
    except UnicodeDecodeError as error:
        if kind := next((kind for magic, kind in PACKED.items() if data.startswith(magic)), None):
            raise InputError(f"{kind}, which is not read here", path,
                             "unpack it, or write JSON lines") from None
        raise InputError("not UTF-8 text", f"{path} byte {error.start}", "re-encode it") from None
    except (OSError, EOFError, zlib.error) as error:  # the last two: a gzip file that is cut
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot be read ({reason})", path, "check the path") from None


class KeyTwice(Exception):
    """Of a JSON object; where it stands is not known."""


# An escape of half a surrogate pair without its other half.
HALF = re.compile(r"(?i)(?<!\\)(?:\\\\)*(?:\\ud[89ab][0-9a-f]{2}(?!\\ud[c-f])|"
                  r"(?<!\\ud[89ab][0-9a-f]{2})\\ud[c-f][0-9a-f]{2})")


def once(pairs: list[tuple]) -> dict:
    """An object whose keys differ: of two values under one key json drops the first unseen."""
    if len(made := dict(pairs)) < len(pairs):
        raise KeyTwice
    return made


def parse_json(text: str, path: Path, *, line: int = 1, make=None):
    """The value of a JSON text that begins on this line of a file; `make` makes an object of its
    pairs. InputError names the bad line and shows nothing of it, which may be toxic text."""
    try:
        value = json.loads(text, object_pairs_hook=make)
        if "\\ud" in text.lower():  # half a surrogate pair can be escaped, but no file can hold it
            canonical(value).encode()
        return value
    except json.JSONDecodeError as error:
        reason, place = error.msg, error.pos
    except KeyTwice:
        reason, place = "a key twice in one object", None
    except UnicodeEncodeError:
        half = HALF.search(text)
        reason, place = "half a surrogate pair", half and half.start()
    except RecursionError:
        reason, place = "nested too deeply", None
    except ValueError:  # Python's own limit
        reason, place = "a number of thousands of digits", re.search(r"\d{999}", text).start()
    refuse_pointer(path)
    if place is None and "\n" in text.strip():
        raise InputError(f"not valid JSON ({reason})", path, "repair the file")
    line += text.count("\n", 0, place or 0)
    raise InputError(f"not valid JSON ({reason})", f"{path} line {line}", "repair the line")


def read_json(path: Path):
    return parse_json(read_text(path), path)


def read_toml(path: Path) -> dict:
    """A file of ours, beside the module that reads it."""
    return tomllib.loads(read_text(path))


def read_object(path: Path, *, remedy: str = "download it again") -> dict:
    """A JSON file that holds one object."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise InputError("not a JSON object", path, remedy)
    return value


def read_jsonl(path: Path) -> list[tuple[int, dict]]:
    """The objects of a JSON lines file, each with its line number from 1. Blank lines are skipped.
    Lines end at a newline only: str.splitlines would also cut inside a string at U+2028."""
    rows = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if line.strip():
            row = parse_json(line, path, line=number, make=once)
            if not isinstance(row, dict):
                raise InputError("not a JSON object", f"{path} line {number}", "one {...} a line")
            rows.append((number, row))
    return rows


@contextlib.contextmanager
def open_safetensors(path: Path, *, kind: str = "weights", device="cpu",
                     remedy: str = "download it again") -> Iterator:
    """A safetensors file open for reading; InputError where it is damaged or lacks a tensor."""
    refuse_special(path)
    with refusing(OSError, "cannot be read", path, "check the path and its rights"):
        open(path, "rb").close()  # of one that it may not read, safetensors says that it is absent
    with (refusing((SafetensorError, OSError), f"damaged {kind}", path, remedy),
          safe_open(path, framework="pt", device=str(device)) as file):
        yield file


def umask() -> int:
    """The rights that new files do not get; it can only be read by setting it."""
    os.umask(mask := os.umask(0o077))
    return mask


def write_atomic(path: Path, data: str | bytes, *, mode: int = 0o644) -> None:
    """Write a temporary file beside the target, fsync, rename, fsync the folder. A reader sees the
    old file or the new one, also after the power has failed."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        # The mode from the first byte on, less what the umask takes away.
        with open(temporary, "xb", opener=partial(os.open, mode=mode)) as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:  # an interrupt too must not leave the temporary file behind
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Put a folder's list of names on the disk: a renaming is not there before."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems cannot
            os.fsync(handle)
    finally:
        os.close(handle)


def behind_links(path: Path) -> Path:
    """Where a path leads. InputError for links in a circle, at which Path.resolve raises a
    RuntimeError before Python 3.13, and nothing since."""
    try:
        os.stat(path)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise InputError("links in a circle", path, "name another") from None
    return Path(path).resolve()


def refuse_here(path: Path) -> None:
    """InputError for a folder that one stands in, or one above it: renamed, it would still be what
    relative paths mean."""
    with contextlib.suppress(FileNotFoundError):  # one may stand in a folder that is gone
        if Path.cwd().is_relative_to(behind_links(path)):
            raise InputError("the folder that you are in", path, "start from another folder")


def set_aside(path: Path) -> Path:
    """Rename a file or folder to NAME.old-TIME: what --fresh does with an old result. Of a link to
    a folder the folder is renamed: the link says on which disk the next one is to be."""
    refuse_here(path)
    path = path.resolve() if path.is_dir() else path
    name = f"{path.name}.old-{time.strftime('%Y%m%d-%H%M%S')}"
    # A number follows where this happens twice within a second.
    names = itertools.chain([name], (f"{name}-{n}" for n in itertools.count(2)))
    return path.rename(next(old for old in map(path.with_name, names) if not old.exists()))


def write_json(path: Path, value) -> None:
    write_atomic(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_jsonl(path: Path, rows: Iterable[dict], *, mode: int = 0o644) -> None:
    write_atomic(path, _lines(rows), mode=mode)


def _lines(rows: Iterable[dict]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


class AppendFile(contextlib.AbstractContextManager):
    """An append-only file of JSON lines that survives a kill: a torn last line is cut on opening.
    New ones are on disk (fsync) when `append` returns. Nothing of it stays in memory."""

    def __init__(self, path: Path, *, mode: int = 0o644):
        self.path = Path(path)
        refuse_special(path)
        self.file = os.fdopen(os.open(self.path, os.O_RDWR | os.O_CREAT, mode), "r+b")
        sync_folder(self.path.parent)
        self.file.truncate(sum(len(line) for line in self.file if line.endswith(b"\n")))

    def scan(self) -> Iterator[tuple[int, dict]]:
        """(offset, row) of every line."""
        offset = self.file.seek(0)
        for number, line in enumerate(self.file, start=1):
            yield offset, self._row(line, number)
            offset += len(line)

    def at(self, offset: int) -> dict:
        self.file.seek(offset)
        return self._row(self.file.readline())

    def _row(self, line: bytes, number: int = 1) -> dict:
        where = f"{self.path} line {number}"
        with refusing(UnicodeDecodeError, "not UTF-8 text", where, "put it back"):
            row = parse_json(line.decode(), self.path, line=number)
        if not isinstance(row, dict):
            raise InputError("not a JSON object", where, "one {...} a line")
        return row

    def append(self, *rows: dict) -> int:
        """Returns the offset of the first."""
        offset = self.file.seek(0, os.SEEK_END)
        self.file.write(_lines(rows).encode())
        self.file.flush()
        os.fsync(self.file.fileno())
        return offset

    def close(self, *_) -> None:
        self.file.close()

    __exit__ = close


class AppendLog(AppendFile):
    """An append-only file whose rows, `rows`, are kept in memory."""

    def __init__(self, path: Path, *, mode: int = 0o644):
        super().__init__(path, mode=mode)
        self.rows = [row for _, row in read_jsonl(self.path)]

    def append(self, *rows: dict) -> int:
        offset = super().append(*rows)
        self.rows.extend(rows)
        return offset
