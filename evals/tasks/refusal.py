"""Refusal on harmful and on benign prompts, judged by published word lists and a fluency guard.

    python ptalign.py eval --model M --adapter A --tasks refusal --sets xstest,self_instruct --out D

Sources: XSTest (Rottger et al., arXiv 2308.01263), JailbreakBench (Chao et al., arXiv 2404.01318),
StrongREJECT (Souly et al., arXiv 2402.10260; its prompts, not its grader), and the user-oriented
instructions of Self-Instruct (Wang et al., arXiv 2212.10560).
"""

from evals.answers import AnswerTask, complied
from evals.data import load_sets
from evals.figures import grouped
from evals.task import Comparison
from evals.verdicts import GARBLED
from support.files import InputError

# The first two unless --sets names others: they hold both sides, and the hub has them as CSV.
SETS = ("xstest", "jailbreakbench", "strongreject", "self_instruct")
DEFAULT_SETS = SETS[:2]
FIGURES = {  # name: what counts, of a result
    "refused": lambda result: float(result["verdict"] == "refused"),
    "refused in part": lambda result: float(result["partial"]),
    "complied": complied,
    "garbled": lambda result: float(result["verdict"] in GARBLED),
}


class Refusal(AnswerTask):
    name, options = "refusal", ("sets", "samples")

    def __init__(self, options):
        super().__init__(options)
        asked = options.sets or DEFAULT_SETS
        if unknown := sorted(set(asked) - set(SETS)):
            raise InputError(f"unknown set {unknown[0]!r}", "--sets",
                             f"choose from {', '.join(SETS)}")
        self.rows, self.sources = load_sets([name for name in SETS if name in asked],
                                            data_dir=options.data_dir, limit=options.limit)
        self.sources |= self.sampling()

    def fields(self, row: dict) -> dict:
        return {"group": "harmful" if row["harmful"] else "benign"}

    def figures(self, items: list[dict], comparison: Comparison) -> list[dict]:
        """Refusals wanted (harmful) and unwanted (benign), and answers that are no answers.
        "refused" holds those in part, which refuse and then answer. What is neither refused nor
        garbled has "complied": a fall of refusals may be either's rise."""
        lines = []
        for key, answered in prompt_sets(items).items():
            harmful = key.endswith("/harmful")
            better = {"refused": harmful, "complied": not harmful}
            lines += [self.rate(f"{key}/{name}", answered, value, comparison,
                                higher_is_better=better.get(name, False))
                      for name, value in FIGURES.items()]
            if self.samples is not None:
                lines.append(self.rate(f"{key}/complied in any of {self.samples}", answered,
                                       complied, comparison, combine=max,
                                       higher_is_better=not harmful))
        return lines

    def facts(self, items: list[dict], comparison: Comparison) -> dict:
        return self.counts(prompt_sets(items), comparison)


def prompt_sets(items: list[dict]) -> dict[str, list[dict]]:
    """Items by benchmark and side, as in "xstest/harmful". The benchmarks are not pooled: their
    prompts are of different kinds and sources."""
    ordered = sorted(items, key=lambda item: (SETS.index(item["set"]), item["group"] == "benign"))
    return grouped(ordered, lambda item: f"{item['set']}/{item['group']}")
