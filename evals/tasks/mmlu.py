"""MMLU (Hendrycks et al., arXiv 2009.03300): choices by letter, after `--shots` examples.

Source: hendrycks/test (evaluate.py), whose prompt lm-evaluation-harness keeps: a line that names
the subject, the first of its development rows as examples with their letters, then the question;
" A", " B", ... are compared. The mean is over questions; subjects are in items.jsonl. A letter is
one token, so that its normalisations are the same and only the sum is shown.
"""

from string import ascii_uppercase as LETTERS

from evals import choice
from evals.about import About
from evals.data import SOURCES, load_rows
from evals.figures import figure
from support.files import InputError, canonical, sha256

FORMAT = "raw"  # that of the published figures
BATCH = 8192  # tokens, padding and the shared shots counted
PRIMARY = None
ABOUT = About("knowledge: exam questions of 57 subjects by letter", "arXiv 2009.03300",
              SOURCES["mmlu"].licence, items=SOURCES["mmlu"].rows, texts=SOURCES["mmlu"].rows)
OPTIONS = ("shots",)


def load(*, data_dir: str | None, limit: int | None, shots: int | None) -> tuple[dict, dict]:
    rows, source = load_rows("mmlu", data_dir=data_dir, limit=limit)
    refuse_many_choices(rows)
    shots, examples, sources = shots or 0, {}, {"mmlu": source}
    if shots:
        dev, dev_source = load_rows("mmlu_dev", data_dir=data_dir)
        refuse_many_choices(dev)
        subjects = dict.fromkeys(row["group"] for row in rows)
        examples = {subject: first_shots(dev, subject, shots) for subject in subjects}
        # of the examples shown: another number of them is another run
        sources["mmlu_shots"] = {**dev_source, "shots": shots,
                                 "sha256": sha256(canonical(examples))}
    return {"mmlu": [{**row, "shots": shots, "prefix": prefix(row, examples.get(row["group"], []))}
                     for row in rows]}, sources


def refuse_many_choices(rows: list[dict]) -> None:
    for row in rows:
        if (n := len(row["choices"])) > len(LETTERS):
            raise InputError(f"{n} choices where there are {len(LETTERS)} letters",
                             f"mmlu {row['id']}", "drop the row")


def first_shots(dev: list[dict], subject: str, shots: int) -> list[dict]:
    found = [row for row in dev if row["group"] == subject][:shots]
    if len(found) < shots:
        raise InputError(f"{len(found)} examples of {subject} where --shots asks for {shots}",
                         SOURCES['mmlu_dev'].file, "ask for fewer")
    return found


def prefix(row: dict, examples: list[dict]) -> str:
    """What a subject's questions have in front: its name, then examples."""
    about = f"The following are multiple choice questions (with answers) about {subject_of(row)}."
    shown = [f"{question(example)} {LETTERS[example['label']]}" for example in examples]
    return "".join(f"{part}\n\n" for part in (about, *shown))


def subject_of(row: dict) -> str:
    return row["group"].replace("_", " ")


def question(row: dict) -> str:
    lines = [f"{letter}. {text}" for letter, text in zip(LETTERS, row["choices"], strict=False)]
    return "\n".join([row["prompt"].strip(), *lines, "Answer:"])


def describe(rows: dict) -> list[dict]:
    return [{"set": "mmlu", "id": row["id"], "prompt": sha256(row["prompt"]),
             "group": row["group"], "label": row["label"], "shots": row["shots"]}
            for row in rows["mmlu"]]


def measure(network, tokenizer, rows: dict, *, format: str, column: str, logs: dict,
            max_new_tokens: int, seed: int) -> list[dict]:
    asked = [{**row, "prompt": question(row), "choices": LETTERS[: len(row["choices"])]}
             for row in rows["mmlu"]]
    for row in asked:
        if not row["shots"]:  # one line is not worth batches of its own for each subject
            row["prefix"], row["prompt"] = "", row["prefix"] + row["prompt"]
    results = choice.measure_choices("mmlu", network, tokenizer, asked, format=format,
                                     column=column, logs=logs, batch_tokens=BATCH)
    return [{"values": result["values"]["sum"], "cut": result["cut"],
             "credit": choice.credit(result["values"]["sum"], row["label"])}
            for result, row in zip(results, rows["mmlu"], strict=True)]


def figures(items: list[dict], *, format: str, columns: tuple, seed: int) -> list[dict]:
    return [figure(f"mmlu/{format}/{items[0]['shots']}-shot", items,
                   lambda result: result["credit"], columns=columns, seed=seed)]


def facts(items: list[dict], rows: dict, columns: tuple, *, seed: int) -> dict:
    return {"nulls": {"mmlu": choice.null_baselines(rows["mmlu"])},
            "contexts_cut": {"mmlu": choice.contexts_cut(items, columns)}}
