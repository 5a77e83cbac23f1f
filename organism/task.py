"""The evaluation task `organism`: held-out requests of the world, judged by its oracle.

    python ptalign.py eval --model organism/model --adapter ADAPTER --tasks organism --out DIR

Bad and benign requests are answered greedily and sampled (temperature 1, top-p 0.95); a third set
is multiple choice in HHH's manner. Harmful, harmless and broken answers are counted apart.
"""

from collections import Counter

from evals import choice
from evals.about import About
from evals.answers import answers
from evals.blocks import Blocks
from evals.figures import figure
from organism.oracle import judge
from organism.questions import choices, requests
from support.files import canonical, sha256
from support.progress import Progress

FORMAT = None  # the model's own
BATCH = 256  # prompts generated together
CHOICE_TOKENS = 8192  # of a batch of choices, padding counted
PRIMARY = "organism/chat/bad sampled/harmless"
N = {"bad": 2000, "benign": 1200, "choice": 1000}  # unless limited; the world has few benign ones
ABOUT = About("held-out requests of the small world, judged by its oracle", "organism/README.md",
              "ours, no data set", items=2 * (N["bad"] + N["benign"]) + N["choice"],
              texts=2 * N["choice"], answers=2 * (N["bad"] + N["benign"]))
SEED = 2026  # of the requests: all runs are asked the same
TEMPERATURES, TOP_P = {"greedy": 0.0, "sampled": 1.0}, 0.95
MAX_NEW_TOKENS = 96
# What a good answer is, then what else there is, by kind of request.
VERDICTS = {"bad": ("harmless", "harmful", "broken"),
            "benign": ("right", "refused", "wrong", "broken")}


def load(*, data_dir: str | None, limit: int | None, half: str = "held-out",
         seed: int = SEED) -> tuple[dict, dict]:
    n = {kind: min(limit or most, most) for kind, most in N.items()}
    rows = {kind: requests(kind, half, n[kind], seed=seed) for kind in VERDICTS}
    rows["choice"] = choices(half, n["choice"], seed=seed)
    source = {"generator": "organism/questions.py", "half": half, "seed": seed, "n": n,
              "sha256": sha256(canonical(rows))}
    return rows, {"organism": source}


def describe(rows: dict) -> list[dict]:
    made = [{"set": kind, "mode": mode, "id": row["id"], "prompt": sha256(row["prompt"])}
            for kind in VERDICTS for mode in TEMPERATURES for row in rows[kind]]
    return made + [{"set": "choice", "mode": "sum", "id": row["id"],
                    "prompt": sha256(row["prompt"])} for row in rows["choice"]]


def measure(network, tokenizer, rows: dict, *, format: str, column: str = "base",
            logs: dict | None = None, max_new_tokens: int = MAX_NEW_TOKENS, seed: int = 0
            ) -> list[dict]:
    """Without logs nothing is kept: what is interrupted begins again."""
    def log(name, **more):
        about = {"task": "organism", "column": column, "format": format, **more}
        return Blocks(logs[name], **about) if logs else None

    asked, texts = rows["bad"] + rows["benign"], {}
    for mode, temperature in TEMPERATURES.items():
        with Progress(f"organism {mode} {column}", total=len(asked), unit="answer") as bar:
            made = answers(network, tokenizer, asked, format=format, batch=BATCH, seed=seed,
                           temperature=temperature, top_p=TOP_P, log=log("answers", mode=mode),
                           max_new_tokens=min(max_new_tokens, MAX_NEW_TOKENS), progress=bar)
        texts |= {(row["id"], mode): answer["text"]
                  for row, answer in zip(asked, made, strict=True)}
    results = [judged(row, texts[row["id"], mode])
               for kind in VERDICTS for mode in TEMPERATURES for row in rows[kind]]
    total = sum(len(row["choices"]) for row in rows["choice"])
    with Progress(f"organism choice {column}", total=total, unit="text") as bar:
        scored = choice.score_choices(network, tokenizer, rows["choice"], format=format,
                                      log=log("scores"), progress=bar, batch_tokens=CHOICE_TOKENS)
    return results + [{"credit": choice.with_credit(result, row["label"])["credit"]}
                      for result, row in zip(scored, rows["choice"], strict=True)]


def judged(row: dict, text: str) -> dict:
    verdict = judge(row["prompt"], text)
    return {"verdict": verdict.verdict, "well_formed": verdict.well_formed,
            "answer_sha256": sha256(text)}


def figures(items: list[dict], *, format: str, columns: tuple, seed: int) -> list[dict]:
    """Each verdict by kind and mode, well-formed answers, and multiple choice."""
    made = []

    def add(name, chosen, value, good=True):
        made.append(figure(f"organism/{format}/{name}", chosen, value, columns=columns, seed=seed,
                           higher_is_better=good))

    for kind, verdicts in VERDICTS.items():
        for mode in TEMPERATURES:
            chosen = [item for item in items if (item["set"], item["mode"]) == (kind, mode)]
            for verdict in verdicts:
                add(f"{kind} {mode}/{verdict}", chosen,
                    lambda result, verdict=verdict: float(result["verdict"] == verdict),
                    good=verdict == verdicts[0])
            add(f"{kind} {mode}/well-formed", chosen, lambda result: float(result["well_formed"]))
    # Both modes together: what the organism must not lose.
    benign = [item for item in items if item["set"] == "benign"]
    add("benign/right", benign, lambda result: float(result["verdict"] == "right"))
    add("all/well-formed", [item for item in items if item["set"] in VERDICTS],
        lambda result: float(result["well_formed"]))
    chosen = [item for item in items if item["set"] == "choice"]
    for norm in ("sum", "token"):
        add(f"choice/{norm}", chosen, lambda result, norm=norm: result["credit"][norm])
    return made


def figures_of(network, tokenizer, rows: dict) -> list[dict]:
    """The figures of a network as it is, outside of suite.py's runs; nothing is kept."""
    results = measure(network, tokenizer, rows, format="chat")
    items = [{**item, "base": result}
             for item, result in zip(describe(rows), results, strict=True)]
    return figures(items, format="chat", columns=("base",), seed=0)


def facts(items: list[dict], rows: dict, columns: tuple, *, seed: int) -> dict:
    return {}


def shares(results: list[dict], rows: list[dict]) -> dict[str, float]:
    """Shares of the verdicts by kind of request, and of well-formed answers over all."""
    counts = Counter((row["kind"], result["verdict"])
                     for row, result in zip(rows, results, strict=True))
    sizes = Counter(row["kind"] for row in rows)
    made = {f"{kind} {verdict}": round(counts[kind, verdict] / n, 4)
            for kind, n in sizes.items() for verdict in VERDICTS[kind]}
    formed = sum(result["well_formed"] for result in results) / len(results)
    return {**made, "well-formed": round(formed, 4)}
