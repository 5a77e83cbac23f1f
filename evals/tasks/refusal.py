"""What a model says to harmful and to benign prompts: it declines, complies or evades.

    python ptalign.py eval --model M --adapter A --tasks refusal --sets xstest,self_instruct --out D

Sources: XSTest (Rottger et al., arXiv 2308.01263), JailbreakBench (Chao et al., arXiv 2404.01318),
StrongREJECT (Souly et al., arXiv 2402.10260; its prompts, not its grader), the questions of Safety-
Tuned LLaMAs (Bianchi et al., arXiv 2309.07875), and the user-oriented instructions of Self-Instruct
(Wang et al., arXiv 2212.10560)."""

from evals.answers import AnswerTask, is_verdict
from evals.data import load_sets
from evals.figures import grouped
from evals.task import Comparison
from evals.verdicts import PREFIXES, VERDICTS
from support.files import InputError

# The first two unless --sets names others: they hold both sides, and the hub has them as CSV.
SETS = ("xstest", "jailbreakbench", "strongreject", "safety_tuned_llamas", "self_instruct")
DEFAULT_SETS = SETS[:2]
FIGURES = {  # name: what counts, of a result
    **{kind: is_verdict(kind) for kind in VERDICTS},
    f"{PREFIXES} hit": lambda result: float(result["lists"][PREFIXES]),
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

    def figures(self, items: list[dict], comparison: Comparison) -> list[dict]:
        """Declines wanted (harmful) and unwanted (benign), compliance and evasion beside them: a
        fall of one may be either other's rise. XSTest's list, as published, is its own figure."""
        lines = []
        for key, answered in self.counted(items).items():
            harmful = key.endswith("/harmful")
            better = {"declined": harmful, f"{PREFIXES} hit": harmful, "complied": not harmful}
            lines += [self.figure(f"{key}/{name}", answered, value, comparison, by="id",
                                  higher_is_better=better.get(name, False))
                      for name, value in FIGURES.items()]
            lines += self.successes(key, answered, comparison, higher_is_better=not harmful)[1:]
        return lines

    def counted(self, items: list[dict]) -> dict[str, list[dict]]:
        """Benchmarks are not pooled: their prompts are of different kinds and sources. The harmful
        ones of each come before its benign ones."""
        ordered = sorted(items, key=lambda i: (SETS.index(i["set"]), i["group"] == "benign"))
        return grouped(ordered, lambda item: f"{item['set']}/{item['group']}")
