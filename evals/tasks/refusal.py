"""Refusal on harmful and on benign prompts, judged by published word lists and a fluency guard.

    python ptalign.py eval --model M --adapter A --tasks refusal --sets xstest,self_instruct --out D

Sources: XSTest (Rottger et al., arXiv 2308.01263), JailbreakBench (Chao et al., arXiv 2404.01318),
StrongREJECT (Souly et al., arXiv 2402.10260; its prompts, not its grader), and the user-oriented
instructions of Self-Instruct (Wang et al., arXiv 2212.10560). evals/verdicts.py says what counts as
a refusal. The guard's last question goes to the base model, whoever answered: how surprising is the
answer to it? Text that says nothing in good order passes the word lists, but not that.

One greedy answer a prompt; or, by --samples N, N answers drawn at TEMPERATURE and TOP_P, of which
"refused" is the mean share over prompts, and "complied in any of N" the prompts that got through.
"""

from statistics import fmean

from evals.about import About
from evals.answers import answers
from evals.blocks import Blocks
from evals.choice import score_pairs
from evals.data import SOURCES, load_sets
from evals.figures import combined, figure
from evals.verdicts import GARBLED, LISTS, VERDICTS, fluency_fault, list_hits, partial, verdict
from generate import draw_seed
from lora import adapter_disabled
from support.files import InputError, canonical, sha256
from support.progress import Progress

# The first two unless --sets names others: they hold both sides, and the hub has them as CSV.
SETS = ("xstest", "jailbreakbench", "strongreject", "self_instruct")
DEFAULT_SETS = SETS[:2]
ASKED = sum(SOURCES[name].rows for name in DEFAULT_SETS)
ABOUT = About("refusal of harmful and of benign prompts", "arXiv 2308.01263, 2404.01318",
              ", ".join(SOURCES[name].licence for name in DEFAULT_SETS), items=ASKED, texts=ASKED,
              answers=ASKED)
FORMAT = None  # the model's own
PRIMARY = None
OPTIONS = ("sets", "samples")
BATCH = 64  # prompts generated together
BATCH_TOKENS = 4096  # of answers scored together, padding counted
# The model's own distribution, less the tail: there a small model's samples fall apart.
TEMPERATURE, TOP_P = 1.0, 0.95


# --- answers and what they are, for jailbreak.py and genetic.py too -----------------------------

def measure_answers(task: str, network, tokenizer, rows: list[dict], *, format: str, column: str,
                    logs: dict, max_new_tokens: int, seed: int) -> list[dict]:
    """One result a row, in order; the answer itself stays in the log, here is its sha256.

    A row with a "sample" (its number) asks for a drawn answer, others for the greedy one.
    """
    about, made = {"task": task, "column": column, "format": format}, [None] * len(rows)
    for sample, places in by_sample(rows).items():
        own, label, more, options = [rows[i] for i in places], f"{task} {format} {column}", {}, {}
        if sample is not None:
            label, more = f"{label} sample {sample + 1}", {"sample": sample}
            options = {"temperature": TEMPERATURE, "top_p": TOP_P,
                       "seed": draw_seed(seed, f"sample {sample}")}
        with Progress(label, total=len({row["prompt"] for row in own}), unit="answer") as bar:
            log = Blocks(logs["answers"], **about, **more)
            found = answers(network, tokenizer, own, format=format, batch=BATCH, log=log,
                            max_new_tokens=max_new_tokens, progress=bar, **options)
        for i, answer in zip(places, found, strict=True):
            made[i] = answer
    with adapter_disabled(network):
        nlls = base_nll(network, tokenizer, rows, [answer["text"] for answer in made],
                        format=format, log=Blocks(logs["scores"], **about))
    return [result_of(answer, nll) for answer, nll in zip(made, nlls, strict=True)]


def by_sample(rows: list[dict]) -> dict[int | None, list[int]]:
    """Places of the rows of each sample, None for greedy ones."""
    places = {}
    for i, row in enumerate(rows):
        places.setdefault(row.get("sample"), []).append(i)
    return places


def base_nll(network, tokenizer, rows: list[dict], texts: list[str], *, format: str,
             log) -> list[float | None]:
    """-log p(answer | prompt) in nats a token; None where the text alone shows a fault."""
    asked = {i: (tokenizer.prompt_text(rows[i]["prompt"], format),
                 tokenizer.answer_text(text.strip(), format))
             for i, text in enumerate(texts) if fluency_fault(text) is None}
    with Progress("fluency under the base", total=len(set(asked.values())), unit="answer") as bar:
        scores = score_pairs(network, tokenizer, list(asked.values()), format=format,
                             names=[rows[i]["id"] for i in asked], batch_tokens=BATCH_TOKENS,
                             log=log, progress=bar)
    found = {i: -s.logprob / s.tokens for i, s in zip(asked, scores, strict=True)}
    return [found.get(i) for i in range(len(texts))]


def result_of(answer: dict, nll: float | None) -> dict:
    text = answer["text"]
    found = verdict(text, nll)
    return {"verdict": found, "partial": found == "refused" and partial(text),
            "lists": list_hits(text), "nll": nll, "answer_sha256": sha256(text),
            "tokens": answer["tokens"], "cut": answer["finish"] == "length"}


def repeated(rows: list[dict], samples: int | None) -> list[dict]:
    """The rows as they are to be asked: once greedily, or each `samples` times."""
    if samples is None:
        return rows
    return [{**row, "sample": i} for i in range(samples) for row in rows]


def sampling(samples: int | None) -> dict:
    """Settings of the sampling as a source, so that a run with others is another run."""
    if samples is None:
        return {}
    about = {"samples": samples, "temperature": TEMPERATURE, "top_p": TOP_P}
    return {"sampling": {**about, "sha256": sha256(canonical(about))}}


def sample_field(row: dict) -> dict:
    return {"sample": row["sample"]} if "sample" in row else {}


def complied(result: dict) -> float:
    return float(result["verdict"] == "complied")


# --- the task -----------------------------------------------------------------------------------

def load(*, data_dir: str | None, limit: int | None, sets: list[str] | None = None,
         samples: int | None = None) -> tuple[dict, dict]:
    if unknown := sorted(set(sets or ()) - set(SETS)):
        raise InputError(f"unknown set {unknown[0]!r}", "--sets", f"choose from {', '.join(SETS)}")
    names = [name for name in SETS if name in (sets or DEFAULT_SETS)]
    rows, sources = load_sets(names, data_dir=data_dir, limit=limit)
    return ({name: repeated(own, samples) for name, own in rows.items()},
            sources | sampling(samples))


def describe(rows: dict) -> list[dict]:
    return [{"set": name, "id": row["id"], **sample_field(row), "prompt": sha256(row["prompt"]),
             "group": "harmful" if row["harmful"] else "benign"}
            for name in rows for row in rows[name]]


def measure(network, tokenizer, rows: dict, **options) -> list[dict]:
    return measure_answers("refusal", network, tokenizer,
                           [row for name in rows for row in rows[name]], **options)


def prompt_sets(items: list[dict]) -> dict[str, list[dict]]:
    """Items by benchmark and side, as in "xstest/harmful"; an empty side is left out.

    The benchmarks are not pooled: their prompts are of different kinds and sources.
    """
    sides = [(name, side) for name in SETS for side in ("harmful", "benign")]
    sets = {"/".join(side): [item for item in items if (item["set"], item["group"]) == side]
            for side in sides}
    return {key: chosen for key, chosen in sets.items() if chosen}


FIGURES = {  # name: what counts, of a result
    "refused": lambda result: float(result["verdict"] == "refused"),
    "refused in part": lambda result: float(result["partial"]),
    "complied": complied,
    "garbled": lambda result: float(result["verdict"] in GARBLED),
}


def figures(items: list[dict], *, format: str, columns: tuple, seed: int) -> list[dict]:
    """Refusals wanted (harmful) and unwanted (benign), and answers that are no answers.

    "refused" holds those in part, which refuse and then answer. What is neither refused nor garbled
    has "complied": a fall of refusals may be either's rise.
    """
    made = []
    for key, chosen in prompt_sets(items).items():
        harmful = key.endswith("/harmful")
        good = {"refused": harmful, "complied": not harmful}
        lines = {name: (value, fmean, good.get(name, False)) for name, value in FIGURES.items()}
        if samples := number_of_samples(chosen):
            lines[f"complied in any of {samples}"] = complied, max, not harmful
        for name, (value, combine, better) in lines.items():
            made.append(figure(
                f"refusal/{format}/{key}/{name}", combined(chosen, "id", value, combine, columns),
                float, columns=columns, seed=seed, higher_is_better=better))
    return made


def number_of_samples(items: list[dict]) -> int:
    """0 for greedy answers."""
    return len({item["sample"] for item in items if "sample" in item})


def notes(task: str, items: list[dict]) -> list[str]:
    if not number_of_samples(items):
        return []
    return [f"{task}: answers sampled at temperature {TEMPERATURE:g}, top-p {TOP_P:g}. Rates are "
            "means over prompts of each prompt's share; a prompt is one observation of intervals "
            "and tests, and fixed/broken and p count the prompts whose share rose and fell (a sign "
            "test)."]


def facts(items: list[dict], rows: dict, columns: tuple, *, seed: int) -> dict:
    return {"answers": {key: {"n": len(chosen), **{c: count_answers(chosen, c) for c in columns}}
                        for key, chosen in prompt_sets(items).items()},
            "notes": notes("refusal", items)}


def count_answers(items: list[dict], column: str) -> dict:
    """Answers by verdict, refusals in part, those stopped by the limit, hits of each list."""
    results = [item[column] for item in items]
    verdicts = {v: sum(r["verdict"] == v for r in results) for v in VERDICTS}
    lists = {name: sum(r["lists"][name] for r in results) for name in LISTS}
    return {**verdicts, "in part": sum(r["partial"] for r in results),
            "cut": sum(r["cut"] for r in results), "lists": lists}
