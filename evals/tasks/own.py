"""Multiple choice of one's own: `--tasks file:exam.jsonl`, measured and shown as HHH is.

A row is {id, prompt, choices, label, group}.
"""

from pathlib import Path

from evals.choice import MultipleChoice
from evals.data import check_rows, first_prompts
from evals.task import About
from evals.tasks.hhh import HHH
from support.files import InputError, sha256_file

PREFIX = "file:"


class OwnFile(MultipleChoice):
    name, options = f"{PREFIX}PATH", ("path",)
    about = About("multiple choice of your own, a row {id, prompt, choices, label, group}", "you",
                  "of your file", items=None, texts=None)
    batch, prompt_format = HHH.batch, None

    def __init__(self, options):
        self.path = Path(options.path).expanduser()
        self.name = PREFIX + self.path.stem
        super().__init__(options)

    def load(self, options) -> tuple[dict, dict]:
        if not self.path.name:
            raise InputError("no file named", f"--tasks {PREFIX}",
                             f"name one as in {PREFIX}exam.jsonl")
        rows = check_rows(self.path, "choice")
        if "all" in (groups := {row["group"] for row in rows}) and len(groups) > 1:
            raise InputError("a group is named 'all'", self.path,
                             "rename it: all groups together are shown under that name")
        rows = first_prompts(rows, options.limit)
        source = {"path": str(self.path), "sha256": sha256_file(self.path), "n": len(rows)}
        return {self.name: rows}, {self.name: source}
