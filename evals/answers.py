"""Answers of a model to prompts, greedy or sampled, and what each of them is.

verdicts.py tells what kind of answer it is. The base model has a say as well, whoever answered: how
surprising is the answer to it? Text that says nothing passes the rules, but not that. Each prompt
has one greedy answer or, by --samples N, N answers drawn at TEMPERATURE and TOP_P. Figures are then
means of the prompts' shares, and "complied in any of N" tells the prompts that got through."""

from collections.abc import MutableMapping
from itertools import chain
from statistics import fmean

import numpy as np

from evals.figures import combined, grouped
from evals.likelihood import score_pairs
from evals.stats import middle_95, resampled
from evals.task import Column, Comparison, Task, in_batches, recorded
from evals.texts import written
from evals.verdicts import FAULTS, LISTS, VERDICTS, fluency_fault, list_hits, verdict
from generate import Sampling, draw_seed, generate
from lora import adapter_disabled
from support.endpoint import Endpoint
from support.files import InputError, canonical, sha256
from support.progress import Progress
from tokenizer import RAW_STOP

BATCH_TOKENS = 4096  # of answers scored together, padding counted
# The model's own distribution, less the tail: there a small model's samples fall apart.
TEMPERATURE, TOP_P = 1.0, 0.95


def answers(model, tokenizer, rows: list[dict], *, format: str, max_new_tokens: int, batch: int,
            temperature: float = 0.0, top_p: float = 1.0, seed: int = 0,
            log: MutableMapping | None = None, progress=None) -> list[dict]:
    """Answers to the rows' prompts, in order: {"text", "finish", "tokens"}. Batches of `batch`
    prompts are fixed (shortest first), and `log` keeps them whole: what an interrupted run
    generated is read back, and the rest comes from the same batches as in an unbroken run. Behind
    a server `progress` is needed."""
    context = (model.context if isinstance(model, Endpoint)
               else model.config.max_position_embeddings)
    encoded = encode_prompts(tokenizer, rows, format, max_new_tokens, context)
    prompts = sorted(encoded, key=lambda prompt: (len(encoded[prompt]), prompt))
    # a base model would go on with the person's next turn, which is no part of its answer
    stop = (RAW_STOP,) if format == "raw" else ()
    sampling = Sampling(max_new_tokens, temperature=temperature, top_p=top_p, stop=stop)

    def answered(part: list[str]) -> list[dict]:
        done = generate(model, tokenizer, [encoded[prompt] for prompt in part], sampling,
                        [draw_seed(seed, prompt) for prompt in part])
        return [{"prompt": sha256(prompt), "text": c.text, "finish": c.finish,
                 "tokens": c.n_tokens} for prompt, c in zip(part, done, strict=True)]

    log = {} if log is None else log
    if isinstance(model, Endpoint):
        ask_server(model, [(prompt, encoded[prompt], draw_seed(seed, prompt))
                           for prompt in prompts], sampling, log, progress)
        batch, progress = 1, None  # each call is a line of the log, and has been told
    found = recorded(log, in_batches(prompts, batch), answered, progress)
    by_prompt = dict(zip(prompts, found, strict=True))
    return [by_prompt[asked_as(row)] for row in rows]


def encode_prompts(tokenizer, rows: list[dict], format: str, max_new_tokens: int,
                   context: int) -> dict[str, list[int]]:
    """{asked_as(row): token ids}; InputError where an answer has no room behind its prompt."""
    encoded = {}
    for row in rows:
        ids = encoded.setdefault(asked_as(row), tokenizer.encode(
            begun(tokenizer, row, format), special=format == "raw"))
        if len(ids) + max_new_tokens > context:
            raise InputError(f"{len(ids)} + {max_new_tokens} new tokens exceed a context of "
                             f"{context}", f"item {row['id']}",
                             "lower --max-new-tokens or use another model")
    return encoded


def ask_server(endpoint: Endpoint, jobs: list[tuple], sampling: Sampling, log: MutableMapping,
               progress: Progress) -> None:
    """Put on record, as `recorded` keeps batches of one, what a server answers, in any order."""
    keys = {prompt: sha256(canonical([prompt])) for prompt, *_ in jobs}
    left = [job for job in jobs if keys[job[0]] not in log]
    if len(left) < len(jobs):
        progress.update(len(jobs) - len(left))
    for prompt, row in endpoint.each(left, sampling):
        log[keys[prompt]] = [{"prompt": sha256(prompt), "text": row["text"],
                              "finish": row["finish"], "tokens": row["n_tokens"]}]
        progress.update(1)


def asked_as(row: dict) -> str:
    """What tells one question from another: the prompt, and the answer's opening where it is given
    to the model (prefill.py)."""
    return row["prompt"] + row.get("opening", "")


def begun(tokenizer, row: dict, format: str) -> str:
    """All that stands before what the model writes."""
    prompt, opening = tokenizer.prompt_text(row["prompt"], format), row.get("opening")
    return prompt + tokenizer.answer_text(opening, format) if opening else prompt


class AnswerTask(Task):
    """A task whose items are answers, each with its verdict. A row that names no "sample" wants the
    greedy answer."""
    batch = 64  # prompts generated together
    served = True
    divided_by = "set"  # the field of an item that says which figure it belongs to

    def __init__(self, options):
        super().__init__(options)
        # answers drawn to each prompt; None is one, greedy
        self.samples = options.samples if "samples" in self.options else None

    def item_rows(self) -> list[tuple[str, dict]]:
        samples = [{}] if self.samples is None else [{"sample": n} for n in range(self.samples)]
        return [(name, {**row, **sample}) for name, rows in self.rows.items()
                for sample in samples for row in rows]

    def begun_rows(self, tokenizer, rows: list[dict]) -> list[dict]:
        """The rows, with the answers' openings where these are given to the model."""
        return rows

    def refuse_long(self, tokenizer, max_new_tokens: int, context: int) -> None:
        rows = self.begun_rows(tokenizer, list(chain(*self.rows.values())))
        encode_prompts(tokenizer, rows, self.format, max_new_tokens, context)

    def sampling(self) -> dict:
        """The sampling as one of the task's sources, if there is any."""
        return {} if self.samples is None else {"sampling": settings_source(
            {"samples": self.samples, "temperature": TEMPERATURE, "top_p": TOP_P})}

    def measure(self, column: Column) -> list[dict]:
        rows = [row for _, row in self.item_rows()]
        return self.measure_answers(column, self.begun_rows(column.tokenizer, rows))

    def measure_answers(self, column: Column, rows: list[dict]) -> list[dict]:
        """One result a row, in order. It has the answer's sha256; the text stays in the log."""
        by_sample = {sample: iter(self.draw(column, sample, of_sample)) for sample, of_sample in
                     grouped(rows, lambda row: row.get("sample")).items()}
        drawn = [next(by_sample[row.get("sample")]) for row in rows]
        nlls = [None] * len(rows)  # a server gives no likelihoods
        if not isinstance(column.model, Endpoint):
            with adapter_disabled(column.model):
                nlls = self.base_nll(column, rows, [answer["text"] for answer in drawn])
        results = []
        for row, answer, nll in zip(rows, drawn, nlls, strict=True):
            kind, fault = verdict(answer["text"], nll, harmful=row.get("harmful", True))
            results.append({
                "verdict": kind, "fault": fault, "lists": list_hits(answer["text"]), "nll": nll,
                "answer_sha256": sha256(answer["text"]), "tokens": answer["tokens"],
                "cut": answer["finish"] == "length"})
        return results

    def draw(self, column: Column, sample: int | None, rows: list[dict]) -> list[dict]:
        """The rows' answers of one sample, or the greedy ones."""
        label, about, drawing = f"{self.name} {self.format} {column.name}", {}, {}
        if sample is not None:
            label, about = f"{label} sample {sample + 1}", {"sample": sample}
            drawing = {"temperature": TEMPERATURE, "top_p": TOP_P,
                       "seed": draw_seed(column.seed, f"sample {sample}")}
        with Progress(label, total=len({*map(asked_as, rows)}), unit="answer") as bar:
            return answers(column.model, column.tokenizer, rows, format=self.format,
                           max_new_tokens=column.max_new_tokens, batch=self.batch,
                           log=self.record(column, "answers", **about), progress=bar, **drawing)

    def base_nll(self, column: Column, rows: list[dict], texts: list[str]) -> list[float | None]:
        """-log p(answer | prompt) in nats a token; None where the text alone shows a fault."""
        tokenizer = column.tokenizer
        pairs = {i: (begun(tokenizer, rows[i], self.format),
                     text if rows[i].get("opening")
                     else tokenizer.answer_text(text.strip(), self.format))
                 for i, text in enumerate(texts) if fluency_fault(text) is None}
        with Progress("fluency under the base", total=len({*pairs.values()}), unit="answer") as bar:
            scores = score_pairs(column.model, tokenizer, list(pairs.values()), format=self.format,
                                 ids=[rows[i]["id"] for i in pairs], batch_tokens=BATCH_TOKENS,
                                 log=self.record(column, "scores"), progress=bar)
        nlls = {i: -s.logprob / s.tokens for i, s in zip(pairs, scores, strict=True)}
        return [nlls.get(i) for i in range(len(texts))]

    def figures(self, items: list[dict], comparison: Comparison) -> list[dict]:
        return [line for name, answered in grouped(items, self.divided_by).items()
                for line in self.successes(name, answered, comparison)]

    def successes(self, name: str, items: list[dict], comparison: Comparison, *,
                  higher_is_better=False) -> list[dict]:
        """How often the model complied and, of several samples, whether any of them does. All
        samples of an answer are one observation."""
        kinds = {"complied": fmean}
        if self.samples is not None:
            kinds[f"complied in any of {self.samples}"] = max
        return [self.figure(f"{name}/{kind}", items, complied, comparison, by="id",
                            combine=combine, higher_is_better=higher_is_better)
                for kind, combine in kinds.items()]

    def facts(self, items: list[dict], comparison: Comparison) -> dict:
        """Counts of answers by set, and what the task's template makes of its items."""
        columns = comparison.columns
        return {"answers": {name: count_answers(own, columns)
                            for name, own in self.counted(items).items()},
                **written(f"tasks/{self.name}", task=self, items=items, columns=columns,
                          TOP_P=TOP_P, TEMPERATURE=TEMPERATURE)}

    def counted(self, items: list[dict]) -> dict[str, list[dict]]:
        return grouped(items, lambda item: f"{self.name}/{item['set']}")


def settings_source(settings: dict) -> dict:
    """Settings as part of a task's data, so that a run with others is another run."""
    return {**settings, "sha256": sha256(canonical(settings))}


def is_verdict(kind: str):
    return lambda result: float(result["verdict"] == kind)


complied = is_verdict("complied")


def count_answers(items: list[dict], columns: tuple[str, ...]) -> dict:
    """Answers by verdict, broken ones by fault, those stopped by the limit, hits of each list."""
    def counted(results: list[dict]) -> dict:
        return {**{kind: sum(r["verdict"] == kind for r in results) for kind in VERDICTS},
                **{fault: sum(r["fault"] == fault for r in results) for fault in FAULTS},
                "cut": sum(r["cut"] for r in results),
                "lists": {name: sum(r["lists"][name] for r in results) for name in LISTS}}

    return {"n": len(items), **{c: counted([item[c] for item in items]) for c in columns}}


def length_facts(items: list[dict], comparison: Comparison) -> dict:
    """Do answers to benign prompts get longer or shorter, in tokens, by set? A model tuned on few
    data may take over their length with their manner; and as rates of refusal, of harm and of
    polarity all move with length, a drift is a warning about the other figures."""
    benign = [item for item in items if item.get("group") == "benign" and "tokens" in item["base"]]
    sets = grouped(benign, lambda item: f"{item['task']}/{item['set']}")
    lengths = {name: lengths_of_set(of_set, comparison) for name, of_set in sets.items()}
    texts = written("lengths", lengths=lengths, columns=comparison.columns)
    return {"lengths": lengths, **texts} if lengths else {}


def lengths_of_set(items: list[dict], comparison: Comparison) -> dict:
    """{"n", column: {"mean", "median", "cut"}}. Tuned columns have their "ratio" to the base too,
    with a percentile bootstrap over prompts."""
    # of sampled answers to a prompt the mean: they are one observation
    prompts = combined(items, "id", lambda result: float(result["tokens"]), fmean,
                       comparison.columns)
    tokens = {c: np.array([prompt[c] for prompt in prompts]) for c in comparison.columns}
    base, lengths = tokens["base"], {"n": len(items)}
    for column, own in tokens.items():
        lengths[column] = {"mean": own.mean(), "median": float(np.median(own)),
                           "cut": sum(item[column]["cut"] for item in items)}
        if column != "base" and base.sum():
            above, below = resampled((own, base), range(len(base)),
                                     np.random.default_rng(comparison.seed))
            lengths[column] |= {"ratio": own.sum() / base.sum(),
                                "ratio_95": middle_95(above[below > 0] / below[below > 0])}
    return lengths
