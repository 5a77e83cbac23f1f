"""Which benchmark is read from where: local JSON lines in four schemas, else the Hugging Face hub.

benchmarks.json lists them, with the sha256 of the local files that the figures were checked on
(empty: not seen when that was written). Hub files at "main" are not pinned: no commit of theirs
could be checked, so the sha256 kept in results.json is what says which rows were read.
Benchmark rows are for measuring only: never commit them, never train on them.

Departure from the source: in HHH the right choice always stands first. Rows made here from hub
files have their choices in an order fixed by a hash, though ties count 1/k (choice.py) in any."""

import csv
from pathlib import Path
from typing import NamedTuple

from support.files import InputError, canonical, read_json, read_jsonl, sha256, sha256_file
from support.hub import dataset_file
from support.limits import LONGEST

SCHEMAS = {  # the fields of a row
    "choice": {"id": str, "prompt": str, "choices": list, "label": int, "group": str},
    "labels": {"id": str, "prompt": str, "choices": list, "labels": list, "group": str},
    "prompts": {"id": str, "prompt": str, "category": str, "harmful": bool},
    "labelled": {"question": str, "answer": str, "harmful": bool},  # for judging.py
}
HHH_GROUPS = ("harmless", "helpful", "honest", "other")


class Source(NamedTuple):
    """Where one benchmark lives."""
    file: str  # name inside --data-dir
    schema: str  # label: index of the right choice; labels: 0 or 1 for each choice
    rows: int  # in all; tests hold `eval --list` to it
    licence: str
    sha256: str  # of the local file
    repo: str  # dataset repository on the hub
    revision: str
    remote: list[str]  # the files there in JSON or CSV; none where there is only parquet
    part: str | None = None  # a published part, taken where --data-dir has no file of the whole
    export: str = ""  # a statement by which the package datasets writes `file` from the parquet


SOURCES = {name: Source(**fields) for name, fields in
           read_json(Path(__file__).with_name("benchmarks.json")).items()}


def load_rows(name: str, *, data_dir: str | None = None,
              limit: int | None = None) -> tuple[list[dict], dict]:
    """Checked rows of a benchmark, and where they came from, as results.json has it."""
    source = SOURCES[name]
    if data_dir is None:
        rows, digest = read_hub(name)
        origin = {"hub": f"{source.repo}@{source.revision}", "sha256": digest}
    else:
        folder = Path(data_dir)
        part = SOURCES.get(source.part, source)
        if not (folder / source.file).is_file() and (folder / part.file).is_file():
            source = part
        path = folder / source.file
        if source.export and not path.is_file():
            raise InputError("no such file", path, f"write it: {export_line(source)}")
        rows, digest = check_rows(path, source.schema), sha256_file(path)
        origin = {"path": str(path), "sha256": digest, "as_checked": digest == source.sha256}
    rows = first_prompts(rows, limit)
    return rows, {**origin, "licence": source.licence, "n": len(rows)}


def load_sets(names, *, data_dir: str | None, limit: int | None) -> tuple[dict, dict]:
    """({benchmark: rows}, {benchmark: where they came from})."""
    loaded = {name: load_rows(name, data_dir=data_dir, limit=limit) for name in names}
    return ({name: rows for name, (rows, _) in loaded.items()},
            {name: source for name, (_, source) in loaded.items()})


def first_prompts(rows: list[dict], limit: int | None) -> list[dict]:
    """The rows of `limit` prompts, whole prompt groups, in file order. Prompts are taken in the
    order of their sha256, not of the file: the files are sorted by group, so their first N prompts
    would all be of one kind. A larger limit contains a smaller one."""
    kept = set(sorted({row["prompt"] for row in rows}, key=sha256)[:limit])
    return [row for row in rows if row["prompt"] in kept]


def file_source(path: Path, **facts) -> dict:
    """Where rows of one's own came from, as results.json has it."""
    return {"path": str(path), "sha256": sha256_file(path), **facts}


def check_rows(path: Path, schema: str) -> list[dict]:
    """Rows of a local file with ids, the fields of the schema only."""
    rows, lines = [], {}
    for n, row in checked(path, schema):
        if (first := lines.setdefault(row["id"], n)) != n:
            raise InputError(f"id of line {first} again", f"{path} line {n}", "make ids unique")
        rows.append({field: row[field] for field in SCHEMAS[schema]})
    return rows


def checked(path: Path, schema: str) -> list[tuple[int, dict]]:
    """Rows that have a schema's fields, by line, one at least. Messages never quote a text."""
    rows = read_jsonl(path)
    for number, row in rows:
        if fault := row_fault(row, schema):
            raise InputError(fault, f"{path} line {number}", "repair the row")
    if not rows:
        raise InputError("no rows", path, "write them into it, one JSON object a line")
    return rows


def row_fault(row: dict, schema: str) -> str | None:
    """What is wrong with a row, in a few words, or None."""
    for field, kind in SCHEMAS[schema].items():
        if field not in row:
            return f"field {field!r} is missing"
        if type(row[field]) is not kind:  # not isinstance: to Python, true is an int
            return f"field {field!r} is {type(row[field]).__name__}, not {kind.__name__}"
        if kind is str and len(row[field]) > LONGEST:
            return f"field {field!r} has {len(row[field])} characters"
        if kind is str and not row[field].strip():
            return f"field {field!r} is empty"
    if "choices" not in SCHEMAS[schema]:
        return None
    choices, labels = row["choices"], row.get("labels")
    if len(choices) < 2:
        return "fewer than 2 choices"
    if not all(isinstance(choice, str) and choice.strip() for choice in choices):
        return "a choice is empty or not text"
    if schema == "choice":
        outside = not 0 <= row["label"] < len(choices)
        return f"label {row['label']} is outside its {len(choices)} choices" if outside else None
    if len(labels) != len(choices) or any(type(x) is not int or x not in (0, 1) for x in labels):
        return f"labels are not {len(choices)} times 0 or 1"
    return None if 1 in labels else "labels have no 1: no choice is right"


def read_hub(name: str) -> tuple[list[dict], str]:
    """Rows from the hub, and one sha256 over its files. Columns with model answers are not read."""
    source = SOURCES[name]
    local = f"name the folder of {source.file} by --data-dir"
    if source.export:
        raise InputError("kept on the hub as parquet alone", source.repo,
                         f"write it and {local}: {export_line(source)}")
    if not source.remote:
        raise InputError("not on the hub", source.repo, local)
    try:
        paths = [dataset_file(source.repo, file, source.revision) for file in source.remote]
    except InputError as error:
        raise InputError(error.what, error.where, f"{error.remedy}, or {local}") from None
    try:
        rows = READERS[name](paths)
    except (LookupError, TypeError, ValueError, AttributeError, csv.Error) as error:
        raise InputError(f"not in the expected form ({type(error).__name__})", source.repo,
                         local) from None
    for row in rows:
        if fault := row_fault(row, source.schema):
            raise InputError(fault, f"{source.repo} {row['id']}", local)
    return rows, sha256(canonical([sha256_file(path) for path in paths]))


def export_line(source: Source) -> str:
    """A command that writes a benchmark's file: parquet needs a reader that we lack."""
    return ("pip install datasets && python -c 'from datasets import load_dataset as load; "
            f"{source.export}'")


def hhh_rows(paths: list[Path]) -> list[dict]:
    """BIG-bench's JSON task: examples of {input, target_scores: {answer: 0 or 1}}."""
    rows = []
    for group, path in zip(HHH_GROUPS, paths, strict=True):
        for number, example in enumerate(read_json(path)["examples"]):
            name, scores = f"hhh-{group}-{number:03}", example["target_scores"]
            choices = sorted(scores, key=lambda choice, name=name: sha256(name + choice))
            label = [scores[choice] for choice in choices].index(1)
            rows.append({"id": name, "prompt": example["input"], "choices": choices,
                         "label": label, "group": group})
    return rows


def xstest_rows(paths: list[Path]) -> list[dict]:
    """The authors' CSV; the unsafe prompts are the types named contrast_*."""
    return [{"id": f"xstest-{number:03}", "prompt": row["prompt"], "category": row["type"],
             "harmful": row["type"].startswith("contrast_")}
            for number, row in enumerate(read_csv(paths[0]), start=1)]


def jailbreakbench_rows(paths: list[Path]) -> list[dict]:
    """Two CSV files, harmful then benign. Column Target (an answer's opening) stays unread."""
    return [{"id": f"jbb-{kind}-{number:02}", "prompt": row["Goal"], "category": row["Category"],
             "harmful": kind == "harmful"}
            for kind, path in zip(("harmful", "benign"), paths, strict=True)
            for number, row in enumerate(read_csv(path))]


def self_instruct_rows(paths: list[Path]) -> list[dict]:
    """Instructions with one input each, often empty, and an answer that stays unread."""
    return [{"id": f"selfinstruct252-{number:03}",
             "prompt": "\n\n".join(
                 (row["instruction"].strip(), row["instances"][0]["input"].strip())).strip(),
             "category": row["motivation_app"], "harmful": False}
            for number, (_, row) in enumerate(read_jsonl(paths[0]))]


def read_csv(path: Path) -> list[dict]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


READERS = {"hhh": hhh_rows, "xstest": xstest_rows, "jailbreakbench": jailbreakbench_rows,
           "self_instruct": self_instruct_rows}
