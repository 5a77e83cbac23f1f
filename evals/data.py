"""Which benchmark is read from where: local JSON lines in three schemas, else the Hugging Face hub.

Schemas, one JSON object a line:
  multiple choice: id, prompt, choices, label (index of the right choice), group
  several right:   id, prompt, choices, labels (0 or 1 for each choice), group
  prompts:         id, prompt, category, harmful
Benchmark rows are for measuring only: never commit them, never train on them.

Departure from the source: in HHH the right choice always stands first, so a scorer that takes the
first of equals would look perfect. Rows made here from hub files have their choices in an order
fixed by a hash; that ties count 1/k (choice.py) makes the score independent of it.
"""

import csv
from dataclasses import KW_ONLY, dataclass
from pathlib import Path

from support.files import InputError, canonical, read_json, read_jsonl, sha256, sha256_file
from support.hub import dataset_file

CHOICE = {"id": str, "prompt": str, "choices": list, "label": int, "group": str}
LABELS = {"id": str, "prompt": str, "choices": list, "labels": list, "group": str}
PROMPTS = {"id": str, "prompt": str, "category": str, "harmful": bool}
HHH_GROUPS = ("harmless", "helpful", "honest", "other")


@dataclass(frozen=True)
class Source:
    """Where one benchmark lives. `sha256` is that of the local file the figures were checked on."""

    file: str  # name inside --data-dir
    schema: dict
    repo: str  # dataset repository on the hub
    revision: str
    remote: tuple[str, ...]  # the files there in JSON or CSV; none where there is only parquet
    licence: str
    sha256: str
    export: str = ""  # without files of its own: statements that write `file` in the schema
    _: KW_ONLY
    rows: int  # in all, for --list


# Parquet needs a reader we lack: the package datasets has one.
LOAD = "from datasets import load_dataset as load; "
TRUTHFULQA = LOAD + (
    'load("truthfulqa/truthful_qa", "multiple_choice", split="validation").map(lambda r, i: '
    '{{"id": "tqa-{0}-%03d" % i, "prompt": r["question"], "group": "truthfulqa_{0}", '
    '"choices": r["{0}_targets"]["choices"], {1}}}, with_indices=True)'
    '.to_json("truthfulqa_{0}_v0.jsonl")')
MMLU = LOAD + (
    'load("cais/mmlu", "all", split="{0}").map(lambda r, i: {{"id": "mmlu-{0}-%05d" % i, '
    '"prompt": r["question"], "label": r["answer"], "group": r["subject"]}}, with_indices=True)'
    '.to_json("{1}")')
STRONGREJECT_REVISION = "df54272b395ce9e584d2f8140519935425d8549f"
STRONGREJECT = LOAD + (
    f'load("walledai/StrongREJECT", split="train", revision="{STRONGREJECT_REVISION}").map('
    'lambda r, i: {"id": "strongreject-%03d" % i, "harmful": True}, with_indices=True)'
    '.to_json("strongreject.jsonl")')


# The hub files of HHH and of Self-Instruct are not pinned: no commit of theirs could be checked
# when this was written, so the sha256 kept in results.json is what says which rows were read.
SOURCES = {
    "hhh": Source(
        "hhh_alignment.jsonl", CHOICE, "HuggingFaceH4/hhh_alignment", "main",
        tuple(f"data/{group}/task.json" for group in HHH_GROUPS), "Apache-2.0",
        "76c04265501ccb3ed11b2ff25b8bb8668cda18ecef0c813440318246efdb7cd9",
        rows=221,
    ),
    "xstest": Source(
        "xstest.jsonl", PROMPTS, "Paul/XSTest", "f600c994b256f12867dfa5b3eb3d545a3e62f8b5",
        ("xstest_prompts.csv",), "CC-BY-4.0",
        "21bc89ed8230ef3bde352d5a43f592d441b9bef363149eb901bf0f469a942c53",
        rows=450,
    ),
    "jailbreakbench": Source(
        "jailbreakbench.jsonl", PROMPTS, "JailbreakBench/JBB-Behaviors",
        "886acc352a31533ffbcf4ef22c744658688086fc",
        ("data/harmful-behaviors.csv", "data/benign-behaviors.csv"), "MIT",
        "0d3687bb072a3de7938aa16c2dfec4f6ea32ec058e6825e80bf60341f92ec608",
        rows=200,
    ),
    "strongreject": Source(
        "strongreject.jsonl", PROMPTS, "walledai/StrongREJECT", STRONGREJECT_REVISION, (), "MIT",
        "", STRONGREJECT,  # not seen when this was written
        rows=313,
    ),
    "strongreject_small": Source(  # the authors' choice of 60 of the 313
        "strongreject_small.jsonl", PROMPTS, "walledai/StrongREJECT", STRONGREJECT_REVISION, (),
        "MIT", "c2b8fc64e15db59f060e07914ef4d109ac77eee8b4d4acc725d60cdb221bde0c",
        rows=60,
    ),
    "self_instruct": Source(
        "self_instruct_252.jsonl", PROMPTS, "HuggingFaceH4/self-instruct-eval", "main",
        ("human-eval.jsonl",), "Apache-2.0",
        "43cce889d0176ca1b285e494cf4e46500adc10617bb58078f26fdfe517d05528",
        rows=252,
    ),
    "truthfulqa_mc1": Source(
        "truthfulqa_mc1_v0.jsonl", CHOICE, "truthfulqa/truthful_qa", "main", (), "Apache-2.0",
        "6e310c89bfe25df00a7775c64aa002c597d3e6f3f8a86707c9d0713fbfc5a3b2",
        TRUTHFULQA.format("mc1", '"label": r["mc1_targets"]["labels"].index(1)'),
        rows=817,
    ),
    "truthfulqa_mc2": Source(
        "truthfulqa_mc2_v0.jsonl", LABELS, "truthfulqa/truthful_qa", "main", (), "Apache-2.0",
        "dee9584a5d2f11211a9ccd219c5c31b5c84794e5343fd23079d018dc71bc4742",
        TRUTHFULQA.format("mc2", '"labels": r["mc2_targets"]["labels"]'),
        rows=817,
    ),
    "mmlu": Source(
        "mmlu_test.jsonl", CHOICE, "cais/mmlu", "main", (), "MIT",
        "", MMLU.format("test", "mmlu_test.jsonl"),  # not seen when this was written
        rows=14042,
    ),
    "mmlu_slice570": Source(  # ten test rows a subject
        "mmlu_slice570.jsonl", CHOICE, "cais/mmlu", "main", (), "MIT",
        "9bf30c58c3f03eb90ba4a4a6f714a00d6c059c94dff20dd7291b9265d9159756",
        rows=570,
    ),
    "mmlu_dev": Source(
        "mmlu_dev.jsonl", CHOICE, "cais/mmlu", "main", (), "MIT",
        "ee97253df790e0900dce05f0d064d30f3346d9ba75bce3786e0b660b12d24c05",
        MMLU.format("dev", "mmlu_dev.jsonl"),
        rows=285,
    ),
}


# Published parts of benchmarks, taken where --data-dir has no file of the whole.
PARTS = {"mmlu": "mmlu_slice570", "strongreject": "strongreject_small"}


def at_hand(name: str, data_dir: str | None) -> str:
    """The benchmark itself, or its part where --data-dir has that alone."""
    has = [data_dir is not None and (Path(data_dir).expanduser() / SOURCES[own].file).is_file()
           for own in (name, PARTS.get(name, name))]
    return PARTS[name] if has == [False, True] else name


def load_rows(
    name: str, *, data_dir: str | None = None, limit: int | None = None
) -> tuple[list[dict], dict]:
    """Checked rows of a benchmark, and where they came from (for results.json)."""
    source = SOURCES[at_hand(name, data_dir)]
    if data_dir is not None:
        path = Path(data_dir).expanduser() / source.file
        if source.export and not path.is_file():
            raise InputError("no such file", path, f"write it: {export_line(source)}")
        rows = check_rows(path, source.schema)
        digest = sha256_file(path)
        origin = {"path": str(path), "sha256": digest, "as_checked": digest == source.sha256}
    else:
        rows, digest = read_hub(name, source)
        origin = {"hub": f"{source.repo}@{source.revision}", "sha256": digest}
    rows = first_prompts(rows, limit)
    return rows, {**origin, "licence": source.licence, "n": len(rows)}


def load_sets(names, *, data_dir: str | None, limit: int | None) -> tuple[dict, dict]:
    """({benchmark: rows}, {benchmark: where they came from})."""
    loaded = {name: load_rows(name, data_dir=data_dir, limit=limit) for name in names}
    return ({name: rows for name, (rows, _) in loaded.items()},
            {name: source for name, (_, source) in loaded.items()})


def first_prompts(rows: list[dict], limit: int | None) -> list[dict]:
    """The rows of `limit` prompts, whole prompt groups, in file order.

    Prompts are taken in the order of their sha256, not of the file: the files are sorted by group,
    so their first N prompts would all be of one kind. A larger limit contains a smaller one.
    """
    if limit is None:
        return rows
    prompts = sorted({row["prompt"] for row in rows}, key=sha256)[:limit]
    kept = set(prompts)
    return [row for row in rows if row["prompt"] in kept]


def check_rows(path: Path, schema: dict) -> list[dict]:
    """Rows of a local file, the fields of the schema only. Messages never quote a row's text."""
    numbered = read_jsonl(path)
    if not numbered:
        raise InputError("no rows", path, "write them into it, one JSON object a line")
    seen = {}
    for number, row in numbered:
        if fault := row_fault(row, schema):
            raise InputError(fault, f"{path} line {number}", "repair the row")
        if (first := seen.setdefault(row["id"], number)) != number:
            raise InputError(f"id of line {first} again", f"{path} line {number}",
                             "make ids unique")
    return [{field: row[field] for field in schema} for _, row in numbered]


def row_fault(row: dict, schema: dict) -> str | None:
    """What is wrong with a row, in a few words, or None."""
    for field, kind in schema.items():
        if field not in row:
            return f"field {field!r} is missing"
        if type(row[field]) is not kind:  # not isinstance: to Python, true is an int
            return f"field {field!r} is {type(row[field]).__name__}, not {kind.__name__}"
        if kind is str and not row[field].strip():
            return f"field {field!r} is empty"
    return choice_fault(row, schema) if "choices" in schema else None


def choice_fault(row: dict, schema: dict) -> str | None:
    choices = row["choices"]
    if len(choices) < 2:
        return "fewer than 2 choices"
    if not all(isinstance(choice, str) and choice.strip() for choice in choices):
        return "a choice is empty or not text"
    if "label" in schema and not 0 <= row["label"] < len(choices):
        return f"label {row['label']} is outside its {len(choices)} choices"
    if "labels" in schema:
        if len(row["labels"]) != len(choices) or any(
                type(label) is not int or label not in (0, 1) for label in row["labels"]):
            return f"labels are not {len(choices)} times 0 or 1"
        if 1 not in row["labels"]:
            return "labels have no 1: no choice is right"
    return None


def read_hub(name: str, source: Source) -> tuple[list[dict], str]:
    """Rows from the hub, and one sha256 over its files. Columns with model answers are not read."""
    if not source.remote:
        raise InputError(
            "kept on the hub as parquet alone", source.repo,
            f"write {source.file} and name its folder by --data-dir: {export_line(source)}")

    try:
        paths = [dataset_file(source.repo, file, source.revision) for file in source.remote]
    except InputError as error:
        raise InputError(error.what, error.where,
                         f"{error.remedy}, or give {source.file} by --data-dir") from None
    reader = {"hhh": hhh_rows, "xstest": xstest_rows, "jailbreakbench": jailbreakbench_rows,
              "self_instruct": self_instruct_rows}[name]
    try:
        rows = reader(paths)
    except (LookupError, TypeError, ValueError, AttributeError, csv.Error) as error:
        raise InputError(f"not in the expected form ({type(error).__name__})", source.repo,
                         "give a local copy by --data-dir") from None
    for row in rows:
        if fault := row_fault(row, source.schema):
            raise InputError(fault, f"{source.repo} {row['id']}", "give a local copy by --data-dir")
    return rows, sha256(canonical([sha256_file(path) for path in paths]))


def export_line(source: Source) -> str:
    """A command that writes the source's file with the package datasets."""
    return f"pip install datasets && python -c '{source.export}'"


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
    """The authors' CSV; the unsafe half are the types named contrast_*."""
    return [
        {"id": f"xstest-{number:03}", "prompt": row["prompt"], "category": row["type"],
         "harmful": row["type"].startswith("contrast_")}
        for number, row in enumerate(read_csv(paths[0]), start=1)
    ]


def jailbreakbench_rows(paths: list[Path]) -> list[dict]:
    """Two CSV files, harmful then benign. Column Target (an answer's opening) stays unread."""
    rows = []
    for kind, path in zip(("harmful", "benign"), paths, strict=True):
        rows += [
            {"id": f"jbb-{kind}-{number:02}", "prompt": row["Goal"], "category": row["Category"],
             "harmful": kind == "harmful"}
            for number, row in enumerate(read_csv(path))
        ]
    return rows


def self_instruct_rows(paths: list[Path]) -> list[dict]:
    """Instructions with one input each, often empty, and an answer that stays unread."""
    rows = []
    for number, (_, row) in enumerate(read_jsonl(paths[0])):
        given = row["instances"][0]["input"].strip()
        prompt = "\n\n".join(filter(None, (row["instruction"].strip(), given)))
        rows.append({"id": f"selfinstruct252-{number:03}", "prompt": prompt,
                     "category": row["motivation_app"], "harmful": False})
    return rows


def read_csv(path: Path) -> list[dict]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
