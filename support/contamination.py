"""Which evaluation prompts an adapter was trained on.

train.py leaves prompts.jsonl beside the adapter: hashes of its prompts, of their letters and digits
in lower case. An evaluation prompt of the same hash is marked wherever its item is counted, since a
gain on it may be memory. Rewordings and parts of prompts have other hashes and are not found.
`train --exclude` refuses such prompts beforehand (refuse_contamination).
"""

from pathlib import Path

from evals.report import TRAINED_ON
from support.files import InputError, read_jsonl, sha256

PROMPTS = "prompts.jsonl"


def prompt_hash(prompt: str) -> str:
    """Fingerprint of a prompt, kept beside the adapter; the same for spellings of one prompt."""
    return sha256(normalised(prompt))


def normalised(text: str) -> str:
    return " ".join("".join(c if c.isalnum() else " " for c in text.casefold()).split())


def refuse_contamination(triplets, folder: Path) -> None:
    """Refuse training prompts that also stand in the JSON lines files of `folder`."""
    if not folder.is_dir() or not (files := sorted(folder.glob("*.jsonl"))):
        raise InputError("no .jsonl files", f"--exclude {folder}",
                         "name the evaluation data's folder")
    known = {normalised(row["prompt"]): f"{file.name} line {number}" for file in files
             for number, row in read_jsonl(file) if isinstance(row.get("prompt"), str)}
    known.pop("", None)
    if not known:
        raise InputError("no row has a prompt", f"--exclude {folder}", "name the field prompt")
    for triplet in triplets:
        if found := known.get(normalised(triplet.prompt)):
            raise InputError(f"evaluation prompt ({found}) among the training rows", triplet.where,
                             "drop the row")


def trained_on(rows: dict, adapter: str) -> set[str] | None:
    """Sha256 of the prompts of {task: {set: rows}} that are among the adapter's training prompts.

    None where those are not known.
    """
    hashes = training_prompts(Path(adapter))
    if hashes is None:
        return None
    texts = {row[field] for sets in rows.values() for own in sets.values() for row in own
             for field in ("prompt", "goal") if field in row}  # an attack is built on its goal
    return {sha256(text) for text in texts if prompt_hash(text) in hashes}


def mark(items: list[dict], found: list[set[str] | None]) -> dict:
    """Set "trained_on" in the items that any adapter was trained on (figures.py counts them).

    `found` has each adapter's `trained_on`. Returns {"known": are all adapters' training prompts,
    "known_of": of how many they are, "sets": {set: {"prompts": n, "trained_on": k}}}.
    """
    told = [own for own in found if own is not None]
    about = {"known": len(told) == len(found) > 0, "known_of": len(told)}
    if not told:
        return {**about, "sets": {}}
    seen, sets = set().union(*told), {}
    for item in items:
        if "prompt" in item:
            sets.setdefault(item["set"], set()).add(item["prompt"])
            if item["prompt"] in seen:
                item["trained_on"] = True
    return {**about, "sets": {name: {"prompts": len(own), "trained_on": len(own & seen)}
                              for name, own in sets.items()}}


def training_prompts(adapter: Path) -> set[str] | None:
    """The hashes beside an adapter; None where there are none, as with an adapter of PEFT."""
    path = adapter / PROMPTS
    if not path.is_file():
        return None
    hashes = {row.get("sha256") for _, row in read_jsonl(path)}
    if not all(isinstance(h, str) and len(h) == 64 for h in hashes):
        raise InputError("not hashes of prompts", path, "train the adapter again or remove it")
    return hashes - {sha256("")}  # a prompt without letters is like any other


def notes(contamination: dict, adapter: str | list[str] | None) -> list[str]:
    """What the report says of it, `adapter` as in the run's settings."""
    if not adapter:
        return []
    known, n = contamination["known_of"], len(adapter) if isinstance(adapter, list) else 1
    beside = f"no {PROMPTS} is beside {'it' if n == 1 else 'them' if not known else 'the others'}."
    if not known:
        who = "the adapter was" if n == 1 else "the adapters were"
        return [f"Whether {who} trained on these prompts is not known: {beside}"]
    whose = "the adapter's" if n == 1 else "an adapter's"
    lines = [f"Training prompts are known of {known} of {n} adapters: {beside}"] * (known < n)
    found = [f"{name} {count['trained_on']} of {count['prompts']}"
             for name, count in contamination["sets"].items() if count["trained_on"]]
    if not found:
        return [*lines, f"None of the prompts is among {whose} training prompts (compared as "
                        "wholes)."]
    return [*lines, f"{TRAINED_ON} counts prompts that are among {whose} training prompts: "
                    f"{', '.join(found)}. A gain on these may be memory."]
