"""The data file's rows: a prompt, a positive answer and a toxic one, read and checked.

A row without a toxic answer has `toxic: null` (benign rows, positives only). TRL's preference rows
are read as well: prompt, chosen and rejected, all strings, or all lists of messages, where the
prompt may also be the message that both answers begin with.
"""

from dataclasses import dataclass
from pathlib import Path

from support.files import InputError, read_jsonl, sha256
from support.lexicon import CONTEMPT, is_refusal, plain

OWN, TRL = ("prompt", "positive", "toxic"), ("prompt", "chosen", "rejected")
COLUMNS = f"{', '.join(OWN)} (toxic may be null) or {', '.join(TRL)}"
SWAP_SHARE = 0.05  # of rows that look swapped: below it they are noise, above it a mistake


class Toxic(str):
    """Text that is a fingerprint wherever it is printed, formatted or logged whole. JSON and the
    tokenizer read the characters themselves; `raw()` is the way to a plain string. A slice, strip,
    join or sum of it is a plain string too: keep those out of messages."""

    __slots__ = ()

    def raw(self) -> str:
        return str.__str__(self)

    def __repr__(self) -> str:
        return f"<toxic {len(self)} chars sha {sha256(self.raw())[:8]}>"

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return format(repr(self), spec)


@dataclass(frozen=True)
class Triplet:
    prompt: str
    positive: str
    toxic: Toxic | None
    where: str  # file and line, for messages


def read_triplets(path: Path) -> list[Triplet]:
    """Every row, checked; InputError names the file and line, and never quotes a text."""
    triplets = [_check_row(row, f"{path} line {number}") for number, row in read_jsonl(path)]
    if not triplets:
        raise InputError("no rows", path, "run synth first or name another file")
    _refuse_swapped(triplets, path)
    return triplets


def _check_row(row: dict, where: str) -> Triplet:
    fields = OWN
    if theirs := [name for name in TRL[1:] if name in row]:
        if own := [name for name in OWN[1:] if name in row]:
            raise InputError(f"columns of both forms ({own[0]} and {theirs[0]}) in one row", where,
                             f"keep {COLUMNS}")
        row, fields = _plain_texts(row, where), TRL
    for field in fields:
        if field not in row:
            raise InputError(f"field {field} is missing", where, f"the columns are {COLUMNS}")
        value = row[field]
        if value is None and field == "toxic":
            continue
        if not isinstance(value, str):
            raise InputError(f"field {field} is a {type(value).__name__}, not a string", where,
                             "repair the row")
        if not value.strip():
            raise InputError(f"field {field} is empty", where, "repair or drop the row")
    prompt, positive, toxic = (row[field] for field in fields)
    if toxic == positive:
        raise InputError(f"{fields[1]} and {fields[2]} are the same text", where, "drop the row")
    return Triplet(prompt, positive, None if toxic is None else Toxic(toxic), where)


def _plain_texts(row: dict, where: str) -> dict:
    """A TRL row with its lists of messages as strings; any other row as it is. Only a user's
    message and an assistant's answer to it: a system text or earlier turns would have to be left
    out of the prompt, so they are refused."""
    lists = [field for field in TRL if isinstance(row.get(field), list)]
    if not lists:
        return row
    if texts := [field for field in TRL if isinstance(row.get(field), str)]:
        raise InputError(f"field {texts[0]} is a string and {lists[0]} a list of messages", where,
                         "use one form in a row")
    prompt, chosen, rejected = (row.get(field) for field in TRL)
    if prompt is None and isinstance(chosen, list) and isinstance(rejected, list):
        if chosen[:1] != rejected[:1]:
            raise InputError(
                "chosen and rejected begin with different messages and there is no prompt", where,
                "repair the row")
        prompt, chosen, rejected = chosen[:1], chosen[1:], rejected[1:]
    messages = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    return {field: _only_message(value, field, where)
            for field, value in messages.items() if value is not None}


def _only_message(messages, field: str, where: str) -> str:
    role = "user" if field == "prompt" else "assistant"
    if not (isinstance(messages, list) and len(messages) == 1 and isinstance(messages[0], dict)
            and messages[0].get("role") == role):
        raise InputError(f"field {field} is not one message of the {role}", where,
                         "drop the row (longer conversations are not read)")
    return messages[0].get("content")


def _refuse_swapped(triplets: list[Triplet], path: Path) -> None:
    """Refusals belong to `positive`, contempt to `toxic`: the reverse in many rows is a swap. Only
    those two signs are read, since a distance between the two columns is symmetric."""
    pairs = [t for t in triplets if t.toxic is not None]
    right = [t for t in pairs if is_refusal(t.positive) or _scorns(t.toxic.raw())]
    wrong = [t for t in pairs if is_refusal(t.toxic.raw()) or _scorns(t.positive)]
    if len(wrong) > max(len(right), 1, SWAP_SHARE * len(pairs)):
        columns = "positive and toxic (or chosen and rejected)"
        raise InputError(f"{columns} look swapped in {len(wrong)} of {len(pairs)} rows",
                         f"{path} (first: {wrong[0].where})", "exchange the two columns")


def _scorns(text: str) -> bool:
    return CONTEMPT.search(plain(text)) is not None
