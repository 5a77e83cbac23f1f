"""Which evaluation prompts an adapter was trained on: a gain on them may be memory.

train.py leaves prompts.jsonl beside the adapter: hashes of its prompts' letters and digits in lower
case, which miss rewordings and excerpts. `train --exclude` refuses such prompts beforehand."""

import unicodedata
from pathlib import Path

from support.files import InputError, read_jsonl, sha256

PROMPTS = "prompts.jsonl"
ASKED = ("prompt", "goal")  # of an evaluation's rows


def prompt_hash(prompt: str) -> str:
    """Fingerprint of a prompt, kept beside the adapter; the same for spellings of one prompt."""
    folded = unicodedata.normalize("NFKC", prompt).casefold()
    kept = "".join(c if c.isalnum() else " " for c in folded)
    return sha256(" ".join(kept.split()))


NO_LETTERS = prompt_hash("")  # a prompt without letters is like any other


def refuse_contamination(triplets, folder: Path) -> None:
    """Refuse training prompts that also stand in the JSON lines files of `folder`, as prompts or as
    goals, which attacks are built on."""
    if not folder.is_dir() or not (files := sorted(folder.glob("*.jsonl"))):
        raise InputError("no .jsonl files", f"--exclude {folder}",
                         "name the evaluation data's folder")
    known = {prompt_hash(row[field]): f"{file.name} line {number}" for file in files
             for number, row in read_jsonl(file) for field in ASKED
             if isinstance(row.get(field), str)}
    known.pop(NO_LETTERS, None)
    if not known:
        raise InputError("no row has a prompt", f"--exclude {folder}", "name the field prompt")
    for triplet in triplets:
        if place := known.get(prompt_hash(triplet.prompt)):
            raise InputError(f"evaluation prompt ({place}) among the training rows", triplet.where,
                             "drop the row")


def trained_on(rows: dict, adapter: str) -> set[str] | None:
    """SHA-256 of the prompts of {task: {set: rows}} that the adapter was trained on. None where its
    training prompts are not on record, as with an adapter that PEFT wrote."""
    path = Path(adapter) / PROMPTS
    if not path.is_file():
        return None
    hashes = [row.get("sha256") for _, row in read_jsonl(path)]
    if not all(isinstance(h, str) and len(h) == 64 for h in hashes):
        raise InputError("not hashes of prompts", path, "train the adapter again or remove it")
    hashes = {*hashes} - {NO_LETTERS}
    texts = {row[field] for sets in rows.values() for set_rows in sets.values() for row in set_rows
             for field in ASKED if field in row}
    return {sha256(text) for text in texts if prompt_hash(text) in hashes}
