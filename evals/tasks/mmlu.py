"""MMLU (Hendrycks et al., arXiv 2009.03300): choices by letter, after `--shots` examples.

Source: hendrycks/test (evaluate.py), whose prompt lm-evaluation-harness keeps: a line that names
the subject, the first of its development rows as examples with their letters, then the question;
" A", " B", ... are compared. The mean is over questions; subjects are in items.jsonl. A letter is
one token, so that its normalisations are the same and only the sum is shown."""

from string import ascii_uppercase as LETTERS

from evals.choice import MultipleChoice, credit
from evals.data import SOURCES, load_rows
from evals.figures import grouped
from evals.task import Comparison
from support.files import InputError, canonical, sha256


class MMLU(MultipleChoice):
    name, sets, options = "mmlu", ("mmlu",), ("shots",)

    def __init__(self, options):
        super().__init__(options)
        self.shots, self.examples, shown = options.shots or 0, {}, []
        if self.shots:
            shown, source = load_rows("mmlu_dev", data_dir=options.data_dir)
            for subject in grouped(self.rows["mmlu"], "group"):
                own = [row for row in shown if row["group"] == subject][: self.shots]
                if len(own) < self.shots:
                    raise InputError(f"{len(own)} examples of {subject} where --shots asks for "
                                     f"{self.shots}", SOURCES["mmlu_dev"].file, "ask for fewer")
                self.examples[subject] = own
            # of the examples shown: another number of them is another run
            self.sources["mmlu_shots"] = {**source, "shots": self.shots,
                                          "sha256": sha256(canonical(self.examples))}
        for row in self.rows["mmlu"] + shown:
            if (n := len(row["choices"])) > len(LETTERS):
                raise InputError(f"{n} choices where there are {len(LETTERS)} letters",
                                 f"mmlu {row['id']}", "drop the row")

    def questions(self, row: dict) -> list[dict]:
        front = prefix(row["group"], self.examples.get(row["group"], []))
        text, choices = question(row), LETTERS[: len(row["choices"])]
        if not self.shots:  # one line is not worth batches of its own for each subject
            front, text = "", front + text
        return [{"id": row["id"], "prefix": front, "prompt": text, "choices": choices}]

    def result(self, row: dict, scored: dict) -> dict:
        values = scored["values"]["sum"]
        return {"values": values, "cut": scored["cut"], "credit": credit(values, row["label"])}

    def figures(self, items: list[dict], comparison: Comparison) -> list[dict]:
        return [self.figure(f"{self.shots}-shot", items, lambda result: result["credit"],
                            comparison)]

    def baseline_rows(self) -> dict[str, list[dict]]:
        return self.rows


def prefix(subject: str, examples: list[dict]) -> str:
    """What a subject's questions have in front: its name, then examples."""
    title = ("The following are multiple choice questions (with answers) about "
             f"{subject.replace('_', ' ')}.")
    shown = [f"{question(example)} {LETTERS[example['label']]}" for example in examples]
    return "".join(f"{part}\n\n" for part in (title, *shown))


def question(row: dict) -> str:
    lines = [f"{letter}. {text}" for letter, text in zip(LETTERS, row["choices"], strict=False)]
    return "\n".join([row["prompt"].strip(), *lines, "Answer:"])
