"""Which evaluation prompts an adapter was trained on: a gain on them may be memory.

train.py leaves prompts.jsonl beside the adapter: hashes of its prompts' letters and digits in lower
case, which miss rewordings and excerpts. `train --exclude` refuses such prompts beforehand."""

import unicodedata
from pathlib import Path

from support.files import InputError, read_jsonl, sha256
from support.pairs import SPEAKERS, dialogue

PROMPTS = "prompts.jsonl"
ASKED = ("prompt", "goal")  # of an evaluation's rows
ELSEWHERE = ("question", "instruction", "behavior")  # what other people's files call a prompt
NAMES = {role: speaker for speaker, role in SPEAKERS.items()}


def prompt_hash(prompt: str) -> str:
    """Fingerprint of a prompt, kept beside the adapter; the same for spellings of one prompt, and
    for HH-RLHF's form of it, from which training rows are read as well."""
    talk = dialogue(prompt)
    folded = unicodedata.normalize("NFKC", in_words(talk) if talk else prompt).casefold()
    kept = "".join(c if c.isalnum() else " " for c in folded)
    return sha256(" ".join(kept.split()))


NO_LETTERS = prompt_hash("")  # a prompt without letters is like any other


def in_words(talk: list[dict]) -> str:
    """A talk as HHH has it, without the first "Human:"."""
    return " ".join(f"{NAMES[m['role']]} {m['content']}" for m in talk).removeprefix("Human ")


def fingerprint(triplet) -> dict:
    """Hashes of what a training row asks, a line of prompts.jsonl: its last user message and, after
    earlier turns, the first one and the whole talk."""
    talk = [message for message in triplet.messages if message["role"] != "system"]
    also = {prompt_hash(talk[0]["content"]), prompt_hash(in_words(talk))} if talk[1:] else {}
    return {"sha256": prompt_hash(triplet.prompt)} | ({"also": sorted(also)} if also else {})


def refuse_contamination(triplets, folder: Path) -> None:
    """Refuse training prompts that also stand in the JSON lines files of `folder`, as prompts or as
    goals, which attacks are built on."""
    files = sorted([*folder.glob("*.jsonl"), *folder.glob("*.jsonl.gz")])
    if not files:
        raise InputError("no .jsonl files", f"--exclude {folder}",
                         "name the evaluation data's folder")
    known = {}
    for file in files:
        own = {prompt_hash(row[field]): f"{file.name} line {number}"
               for number, row in read_jsonl(file) for field in (*ASKED, *ELSEWHERE)
               if isinstance(row.get(field), str)}
        if not own:
            raise InputError("no row has a prompt", f"--exclude {file}",
                             "name the field prompt, or move the file elsewhere")
        known |= own
    known.pop(NO_LETTERS, None)
    for triplet in triplets:
        if places := [known[h] for h in all_of(fingerprint(triplet)) if h in known]:
            raise InputError(f"evaluation prompt ({places[0]}) among the training rows",
                             triplet.where, "drop the row")


def all_of(line: dict) -> list:
    also = line.get("also", [])
    return [line.get("sha256"), *(also if isinstance(also, list) else [also])]


def trained_on(rows: list[dict], adapter: str) -> set[str] | None:
    """SHA-256 of the rows' prompts that the adapter was trained on. None where its training prompts
    are not on record, as with an adapter that PEFT wrote."""
    path = Path(adapter) / PROMPTS
    if not path.is_file():
        return None
    hashes = [sha256 for _, row in read_jsonl(path) for sha256 in all_of(row)]
    if not all(isinstance(h, str) and len(h) == 64 for h in hashes):
        raise InputError("not hashes of prompts", path, "train the adapter again or remove it")
    hashes = {*hashes} - {NO_LETTERS}
    texts = {row[field] for row in rows for field in ASKED if field in row}
    return {sha256(text) for text in texts if prompt_hash(text) in hashes}
