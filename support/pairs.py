"""The data file's rows: a prompt, a positive answer and a toxic one, read and checked.

A row without a toxic answer has `toxic: null` (benign rows, positives only). Public preference data
is read as TRL reads it: prompt, chosen and rejected. In either form a text is a string or a list of
messages. Every row becomes messages first and is judged after, so that a prompt inside the answers,
a system text, earlier turns and HH-RLHF's dialogues need no form of their own."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from support import files
from support.decoding import spoken
from support.files import InputError, read_jsonl, refusing, sha256
from support.lexicon import CONTEMPT, is_refusal, plain
from support.progress import say

OWN, TRL = ("positive", "toxic"), ("chosen", "rejected")
ASKED = ("question", "instruction", "input")  # Orca's and Alpaca's in the place of a prompt
COLUMNS = "the columns are prompt, positive, toxic (may be null) or prompt, chosen, rejected"
SPEAKERS = {"Human": "user", "Assistant": "assistant"}  # of HH-RLHF's dialogues
SWAP_SHARE = 0.05  # of rows that look swapped: below it they are noise, above it a mistake
TOLD = 5  # places named for each reason why rows cannot be used


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
    prompt: str  # the user's last message
    positive: str
    toxic: Toxic | None
    where: str  # file and line, for messages
    before: tuple[dict, ...] = ()  # a system text and earlier turns, as messages
    domain: str = "all"  # the row's own, if it names one

    @property
    def messages(self) -> list[dict]:
        """All that the answers follow; only they carry a loss."""
        return [*self.before, {"role": "user", "content": self.prompt}]


def read_triplets(path: Path, *, skip: bool | None = False,
                  columns_right: bool | None = False) -> list[Triplet]:
    """Every row, checked; InputError names the file and lines, and never quotes a text. `skip`
    leaves out what cannot be used; `columns_right` says that no columns are exchanged. None is
    False where a command has no such option to tell of."""
    triplets = usable(lambda row: _triplet(*row), read_rows(path), path, skip=skip)
    if not triplets:
        raise InputError("no rows", path, "run synth first or name another file")
    if not columns_right:
        _warn_if_swapped(triplets, ", or --columns-are-right" * (columns_right is False))
    return triplets


def usable(check: Callable, rows: Iterable, path: Path, *, skip: bool | None) -> list:
    """What `check` makes of every row. Those it refuses are reported all at once, or left out."""
    made, errors = [], {}  # errors: lists by reason, without its numbers
    for row in rows:
        try:
            made.append(check(row))
        except InputError as error:
            errors.setdefault(re.sub(r"\d+", "", str(error.what)), []).append(error)
    if not errors:
        return made
    reasons, n = [], sum(map(len, errors.values()))
    for alike in errors.values():
        if n == 1 and not (skip and made):
            raise alike[0]
        places = [str(error.where).removeprefix(f"{path} ") for error in alike[:TOLD]]
        more = ", ..." * (len(alike) > TOLD)
        reasons.append(f"{len(alike)}: {alike[0].what} ({', '.join(places)}{more})")
    told = f"{n} of {n + len(made)} rows cannot be used: {'; '.join(reasons)}"
    if not (skip and made):
        remedies = {error.remedy for alike in errors.values() for error in alike}
        if made or len(remedies) > 1:  # where all fail alike, it is hardly the rows' fault
            remedies = {"repair or drop them" + ", or add --skip-bad-rows" * (skip is False)}
        raise InputError(told, path, *remedies)
    say(f"left out: {told}")
    return made


# ---- rows ----

def read_rows(path: Path) -> list[tuple[str, dict]]:
    """The rows of the containers that `datasets` reads, each with its place, "FILE line N" or "FILE
    row N" from 1: JSON lines, an array of objects, either gzipped, and parquet."""
    if files.begins_with(path, b"PAR1"):
        with refusing(ImportError, "parquet, which only the package pyarrow reads", path,
                      "pip install pyarrow, or write the rows as JSON lines"):
            import pyarrow.parquet
        damage = (pyarrow.ArrowException, OSError, ValueError, OverflowError)
        with refusing(damage, "damaged parquet", path, "write it anew"):
            # No row needs a time, and not all of these have a value in Python.
            columns = [field.name for field in pyarrow.parquet.read_schema(path)
                       if not pyarrow.types.is_temporal(field.type)]
            value = pyarrow.parquet.read_table(path, columns=columns).to_pylist()
    else:
        text = files.read_text(path)
        try:
            value = files.parse_json(text, path, make=files.once)
        except InputError:
            if text.lstrip().startswith("["):
                raise
            value = None  # several lines are not one value
    if isinstance(value, dict) and len(value) == 1:
        [value] = value.values()  # {"data": [...]}
    if isinstance(value, list):
        return [(f"{path} row {number}", row) for number, row in enumerate(value, start=1)]
    return [(f"{path} line {number}", row) for number, row in read_jsonl(path)]


def _triplet(where: str, row: dict) -> Triplet:
    try:
        if not isinstance(row, dict):
            raise ValueError("not a JSON object")
        # null, too, is none: rows of joined sets have the columns of both
        own, theirs = ([n for n in names if row.get(n) is not None] for names in (OWN, TRL))
        if own and theirs:
            raise ValueError(f"{own[0]} and {theirs[0]}, of two forms, in one row ({COLUMNS})")
        fields = TRL if theirs else OWN
        talk, other = (_talk(row, field) for field in fields)
        if other and other[:-1] != talk[:-1]:
            raise ValueError(f"{' and '.join(fields)} differ before their last answers")
        if other and other[-1]["content"].strip() == talk[-1]["content"].strip():
            raise ValueError(f"{' and '.join(fields)} are the same text")
    except ValueError as error:
        raise InputError(error, where, "repair or drop the row") from None
    *before, asked, answer = talk
    toxic = Toxic(other[-1]["content"]) if other else None
    named = {"domain": row["domain"]} if isinstance(row.get("domain"), str) else {}
    return Triplet(asked["content"], answer["content"], toxic, where, tuple(before), **named)


def _talk(row: dict, field: str) -> list[dict] | None:
    """An answer behind all that it follows, as messages; None where a benign row has none."""
    if field not in row:
        raise ValueError(f"field {field} is missing ({COLUMNS})")
    if row[field] is None and field == "toxic":
        return None
    talk = _messages(row[field], field, "assistant")
    # As in TRL, a prompt that is one string is ignored beside whole conversations.
    if len(talk) < 2 or isinstance(row.get("prompt"), list):
        asked = [text for text in map(row.get, ASKED) if isinstance(text, str) and text.strip()]
        prompt = row.get("prompt")  # null where sets with other columns were joined
        if prompt is None and not asked:
            raise ValueError(f"field prompt is missing ({COLUMNS})")
        talk = _messages("\n".join(asked) if prompt is None else prompt, "prompt", "user") + talk
    if not any(message["role"] == "system" for message in talk):
        talk = _messages(row.get("system") or "", "system", "system") + talk
    turns = "".join(f"{message['role']} " for message in talk)
    if not re.fullmatch(r"(system )?(user assistant )+", turns):
        raise ValueError(f"prompt and {field} are no turns of user and assistant, an answer last")
    return talk


def _messages(value, field: str, role: str) -> list[dict]:
    """A string is a message of this role, or a dialogue of several."""
    if isinstance(value, str):
        value = dialogue(value) or [{"role": role, "content": value}]
    try:
        talk = [{"role": m["role"], "content": m["content"] if m["role"] != "assistant"
                 else spoken(m["content"])} for m in value]
        empty = [m for m in talk if not m["content"].strip()]
    except (AttributeError, KeyError, TypeError):
        raise ValueError(f"field {field} is a {type(value).__name__}, not a string or a list of"
                         " messages, each with a role and a content") from None
    if any(m["role"] != "system" for m in empty):  # many files have one without words
        raise ValueError(f"field {field} is empty")
    return [m for m in talk if m not in empty]


def dialogue(text: str) -> list[dict] | None:
    """The messages of HH-RLHF's form, "Human: ..." and "Assistant: ..." with a blank line before
    each. A prompt of that form ends in "Assistant:"."""
    if not text.lstrip().startswith("Human:") or "\n\nAssistant:" not in text:
        return None
    _, *parts = re.split(r"\n\n(Human|Assistant):", f"\n\n{text.strip()}")
    talk = [{"role": SPEAKERS[speaker], "content": said.strip()}
            for speaker, said in zip(parts[::2], parts[1::2], strict=True)]
    return talk if talk[-1]["content"] else talk[:-1]


# ---- exchanged columns ----

def _warn_if_swapped(triplets: list[Triplet], remedy: str) -> None:
    """Refusals belong to `positive`, contempt to `toxic`: the reverse in many rows is a swap. Only
    those two signs are read, since a distance between the two columns is symmetric."""
    pairs = [t for t in triplets if t.toxic is not None]
    right = [t for t in pairs if is_refusal(t.positive) or CONTEMPT.search(plain(t.toxic.raw()))]
    wrong = [t for t in pairs if is_refusal(t.toxic.raw()) or CONTEMPT.search(plain(t.positive))]
    if len(wrong) > max(len(right), 1, SWAP_SHARE * len(pairs)):
        say(f"warning: positive and toxic (or chosen and rejected) look swapped in {len(wrong)} of"
            f" {len(pairs)} rows (first: {wrong[0].where}): exchange them{remedy}")
