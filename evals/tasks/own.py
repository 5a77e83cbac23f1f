"""One's own multiple choice: `--tasks file:exam.jsonl`, rows {id, prompt, choices, label, group}.

Measured and shown as hhh.py does it, in the model's own format unless --format says otherwise.
"""

from pathlib import Path

from evals.about import About
from evals.data import CHOICE, check_rows, first_prompts
from evals.tasks import hhh
from support.files import InputError, sha256_file

PREFIX = "file:"


class OwnFile:
    """A task (suite.py) that knows its file."""

    FORMAT, BATCH, PRIMARY = None, hhh.BATCH, None
    ABOUT = About("multiple choice of your own, a row {id, prompt, choices, label, group}", "you",
                  "of your file", items=None, texts=None)
    describe, measure = staticmethod(hhh.describe), staticmethod(hhh.measure)
    figures, facts = staticmethod(hhh.figures), staticmethod(hhh.facts)

    def __init__(self, task: str):
        self.path = Path(task.removeprefix(PREFIX)).expanduser()

    def load(self, *, data_dir: str | None, limit: int | None) -> tuple[dict, dict]:
        if not self.path.name:
            raise InputError("no file named", f"--tasks {PREFIX}",
                             f"name one as in {PREFIX}exam.jsonl")
        rows = check_rows(self.path, CHOICE)
        if "all" in (groups := {row["group"] for row in rows}) and len(groups) > 1:
            raise InputError("a group is named 'all'", self.path,
                             "rename it: all groups together are shown under that name")
        rows = first_prompts(rows, limit)
        source = {"path": str(self.path), "sha256": sha256_file(self.path), "n": len(rows)}
        name = PREFIX + self.path.stem
        return {name: rows}, {name: source}
