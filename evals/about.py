"""What a task says of itself, for `eval --list`: the constant ABOUT of its module."""

from typing import NamedTuple


class About(NamedTuple):
    """A task at its default settings; None where the user's file decides."""

    what: str  # it measures, in a few words
    source: str
    licence: str  # of the data
    items: int | None
    texts: int | None = 0  # read by the model under one column, one forward pass each
    answers: int = 0  # written by the model under one column

    def cost(self) -> str:
        if self.texts is None:
            return "as your file"
        told = [f"{n:,} {kind}" for kind, n in (("texts", self.texts), ("answers", self.answers))
                if n]
        return " + ".join(told)


HEADER = ("task", "items", "cost of a column", "licence of the data", "what it measures; source")
NOTE = """A column is the base or one adapter. A text costs one forward pass, an answer one for each
of its new tokens (--max-new-tokens); --limit takes fewer prompts of each set."""


def table(abouts: dict[str, About]) -> str:
    rows = [HEADER, *((name, "your file" if about.items is None else f"{about.items:,}",
                       about.cost(), about.licence, f"{about.what}; {about.source}")
                      for name, about in abouts.items())]
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEADER))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
             for row in rows]
    return "\n".join([*lines, "", NOTE])
