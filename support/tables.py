"""The rows of a data file, in the containers that `datasets` reads: JSON lines, an array of JSON
objects, either of them gzipped, and parquet where pyarrow is installed."""

import gzip
import io
import zlib
from pathlib import Path

from support.files import InputError, decoded, parse_json, parse_jsonl, read_bytes, refusing

GZIP, PARQUET = b"\x1f\x8b", b"PAR1"  # what such files begin with, whatever they are called


def read_rows(path: Path) -> list[tuple[str, dict]]:
    """Every row, with its place for messages: "FILE line N" or "FILE row N", both from 1."""
    data = read_bytes(path)
    if data.startswith(GZIP):
        with refusing((OSError, EOFError, zlib.error), "damaged gzip", path, "download it again"):
            data = gzip.decompress(data)
    if data.startswith(PARQUET):
        return _numbered(_parquet_rows(data, path), path)
    text = decoded(data, path)
    try:
        value = parse_json(text, path)
    except InputError:
        if text.lstrip().startswith("["):
            raise
        value = None  # several lines are not one value
    if isinstance(value, dict) and len(value) == 1:  # {"data": [...]}
        [value] = value.values()
    if isinstance(value, list):
        return _numbered(value, path)
    return [(f"{path} line {number}", row) for number, row in parse_jsonl(text, path)]


def _numbered(rows: list, path: Path) -> list[tuple[str, dict]]:
    places = [f"{path} row {number}" for number in range(1, len(rows) + 1)]
    for place, row in zip(places, rows, strict=True):
        if not isinstance(row, dict):
            raise InputError("not a JSON object", place, "one {...} a row")
    return list(zip(places, rows, strict=True))


def _parquet_rows(data: bytes, path: Path) -> list[dict]:
    with refusing(ImportError, "parquet, which only the package pyarrow reads", path,
                  "pip install pyarrow, or write the rows as JSON lines"):
        import pyarrow.parquet
    with refusing((pyarrow.ArrowException, OSError), "damaged parquet", path, "download it again"):
        return pyarrow.parquet.read_table(io.BytesIO(data)).to_pylist()
