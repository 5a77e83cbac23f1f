"""One evaluation run: base and adapter from one loaded model, item by item, then figures and files.

    python ptalign.py eval --model M --adapter A --tasks hhh,refusal --data-dir D --out DIR

Several adapters, training seeds of one recipe say, are columns of their own beside one base.
The folder gets items.jsonl (a row an item: scores, verdicts, hashes of answers), results.json,
report.md and report.html; answers.jsonl (what the model wrote, readable by its owner only),
scores.jsonl (log-probabilities, polarity's vectors) and judged.jsonl. These logs grow by a line a
batch and are what a second start reads back: it ends with the same items as an unbroken run."""

import sys
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from platform import python_version
from types import SimpleNamespace

from config import read_config
from evals import gate, judging
from evals.answers import length_facts
from evals.figures import adjust, columns_of, grouped, mark_trained_on
from evals.page import render_html, training_curves
from evals.report import contamination_notes, render_markdown, render_text
from evals.task import Column, Comparison, Task
from evals.tasks.depth import Depth
from evals.tasks.genetic import Genetic
from evals.tasks.hhh import FILE, HHH, HHHLetters, OwnFile
from evals.tasks.jailbreak import Jailbreak
from evals.tasks.mmlu import MMLU
from evals.tasks.perplexity import Perplexity
from evals.tasks.polarity import Polarity
from evals.tasks.prefill import Prefill
from evals.tasks.refusal import Refusal
from evals.tasks.truthfulqa import TruthfulQA
from lora import load_adapter, remove_lora
from model import Transformer, load_model, resolve_device, resolve_dtype
from support import contamination
from support.adapters import adapter_hash
from support.endpoint import Endpoint, connect
from support.files import AppendLog, InputError, read_jsonl, write_atomic, write_json, write_jsonl
from support.hub import model_folder, model_identity
from support.runs import open_run, versions
from tokenizer import Tokenizer

TASKS = {task.name: task for task in (
    HHH, HHHLetters, TruthfulQA, MMLU, Refusal, Jailbreak, Genetic, Prefill, Depth, Polarity,
    Perplexity)}
SERVED = ("Answers of a server: nobody asked the base model how surprising they are, so that word"
          " salad may count as compliance.")
SHOWN = 5  # answers to harmful prompts that --show-toxic prints for each set, mode and attack


def evaluate(*, model: str, adapter: list[str] | None, tasks: list[str], data_dir: str | None,
             format: str | None, limit: int | None, out: str, max_new_tokens: int, device: str,
             dtype: str, seed: int, fresh: bool, show_toxic: bool,
             known: dict[str, type[Task]] = TASKS, require: list[str] | None = None,
             endpoint: list[str] | None = None, endpoint_model: str | None = None,
             concurrency: int = 16, base_dtype: str | None = None, **options) -> int:
    """Run the tasks, write the files, print the table; returns the exit code. `options` are those
    that single tasks name, and the judge's; `known` are the tasks to choose from."""
    adapters, out, required = adapter or [], Path(out), gate.read_requirements(require)
    columns = columns_of(one_or_all(adapters))
    kinds = choose_tasks(tasks, known, options)
    judge = judging.prepare(kinds.values(), options)
    if endpoint:
        refuse_unserved(kinds, adapters)
    folder = model_folder(model, weights=not endpoint)
    tokenizer, context = Tokenizer(folder), read_config(folder).max_position_embeddings
    server = connect(endpoint, endpoint_model, tokenizer, concurrency=concurrency,
                     base_dtype=base_dtype, context=context)
    if judge or not server:
        computes = resolve_device(device)  # "auto" may mean another one when the run goes on
        device, dtype = computes.type, resolve_dtype(dtype, computes)
    tasks = make_tasks(kinds, tokenizer, format, {
        **options, "adapter": adapters, "data_dir": data_dir, "limit": limit})
    for task in tasks.values():
        task.refuse_long(tokenizer, max_new_tokens, context)
    gate.refuse_unknown(required, tasks, columns, judging.key_of if judge else None)
    rows = [row for task in tasks.values() for own in task.rows.values() for row in own]
    trained_on = [contamination.trained_on(rows, path) for path in adapters]
    settings = {
        "model": model, **model_identity(folder, weights=not server),
        "adapter": one_or_all(adapters), "adapter_sha256": one_or_all(adapter_hashes(adapters)),
        "tasks": list(tasks), "format": {name: task.format for name, task in tasks.items()},
        "limit": limit, "max_new_tokens": max_new_tokens, "device": device, "dtype": dtype,
        "base_dtype": base_dtype, "seed": seed,
        "data_sha256": {name: source["sha256"] for task in tasks.values()
                        for name, source in task.sources.items()},
        "batch": {name: task.batch for name, task in tasks.items()},
    }
    if server:  # "auto" may mean another device here when the run goes on: it computes nothing
        settings |= {"endpoint": endpoint, "endpoint_model": endpoint_model,
                     "device": None, "dtype": None, "base_dtype": None}
    # The model and the adapters may be moved (benchmarks too): their hashes may not change.
    with open_run(out, settings, fresh=fresh,
                  may_change=("model", "adapter", "endpoint")) as record:
        tokenizer.set_date(record["began"])
        results = run(
            server or load_model(folder, device=device, dtype=dtype, base_dtype=base_dtype),
            tokenizer, tasks, settings, trained_on,
            dict(zip(columns, [None, *adapters], strict=True)), out)
        if judge:  # after `run`, whose model is gone: there may be no room for two
            add_facts(results, judging.judge_run(out, results, rows, judge, began=record["began"],
                                                 device=device, dtype=dtype))
            write_results(out, results)  # once more, with the judge's figures
    print(render_text(results))
    if show_toxic:
        print_answers(out, columns)
    for line in (misses := gate.misses(required, results["figures"])):
        print(line, file=sys.stderr)
    return gate.FALLS_SHORT if misses else 0


def choose_tasks(asked: list[str], known: dict[str, type[Task]],
                 options: dict) -> dict[str, type[Task]]:
    """The tasks by the names asked for, in the order of `known`, then the user's own files."""
    files = [name for name in dict.fromkeys(asked) if name.startswith(FILE)]
    remedy = f"choose from {', '.join(known)} and {OwnFile.name}"
    if unknown := sorted(set(asked) - known.keys() - set(files)):
        raise InputError(f"unknown task {unknown[0]!r}", "--tasks", remedy)
    if not asked:
        raise InputError("no task named", "--tasks", remedy)
    if len({Path(name.removeprefix(FILE)).stem for name in files}) < len(files):
        raise InputError("two files of one name", "--tasks", "their figures would look alike")
    kinds = {name: task for name, task in known.items() if name in asked}
    kinds |= dict.fromkeys(files, OwnFile)
    # an option that no task asked for reads would be passed over in silence
    read = {*judging.OPTIONS, *(name for task in kinds.values() for name in task.options)}
    if idle := [name for name, value in options.items() if value and name not in read]:
        raise InputError("no task of --tasks reads it", f"--{idle[0]}",
                         "name its task or leave it out")
    return kinds


def refuse_unserved(kinds: dict[str, type[Task]], adapters: list[str]) -> None:
    """InputError for what cannot be measured behind a server."""
    if adapters:
        raise InputError("an adapter cannot be put on a server's model", "--adapter",
                         "let the server load it, and name its model by --endpoint-model")
    if unserved := [name for name, kind in kinds.items() if not kind.served]:
        able = [name for name, kind in TASKS.items() if kind.served]
        raise InputError(f"{unserved[0]} needs likelihoods, which a server does not give",
                         "--tasks", f"choose from {', '.join(able)}, or leave --endpoint out")


def make_tasks(kinds: dict[str, type[Task]], tokenizer: Tokenizer, format: str | None,
               options: dict) -> dict[str, Task]:
    """The tasks with their data. Prompts have the format asked for, the task's, or the model's."""
    if format == "chat" and tokenizer.default_format != "chat":
        raise InputError("no chat template", tokenizer.folder, "use --format raw")
    made = [kind(SimpleNamespace(**{
        **dict.fromkeys(kind.options), **options, "path": name.removeprefix(FILE),
        "format": format or kind.prompt_format or tokenizer.default_format}))
        for name, kind in kinds.items()]
    return {task.name: task for task in made}  # a file's has its own, wherever the file lies


def adapter_hashes(folders: list[str]) -> list[str]:
    folder_of = {}
    for folder in folders:
        if other := folder_of.get(digest := adapter_hash(Path(folder))):
            raise InputError(f"the same adapter as {other}", f"--adapter {folder}", "name it once")
        folder_of[digest] = folder
    return list(folder_of)


def one_or_all(values: list):
    """What settings say of the adapters: None, the value of a single one, or a list."""
    return values if len(values) > 1 else values[0] if values else None


def run(model: Transformer | Endpoint, tokenizer: Tokenizer, tasks: dict[str, Task],
        settings: dict, trained_on: list[set[str] | None], adapters: dict[str, str | None],
        out: Path) -> dict:
    """Measure, then write the files; returns what results.json holds. `adapters` has each column's
    folder, None for the base."""
    list(under_adapters(model, adapters))  # one that does not fit is told now, not hours later
    training = {column: training_curves(Path(folder)) for column, folder in adapters.items()
                if folder}
    items = measure(model, tokenizer, tasks, settings, adapters, out)
    everything = list(chain.from_iterable(items.values()))
    contaminated = mark_trained_on(everything, trained_on)
    comparison, figures = Comparison(tuple(adapters), settings["seed"]), []
    facts = {"nulls": {}, "answers": {}, "contexts_cut": {}, "tables": [], "notes": []}
    for name, task in tasks.items():
        figures += task.figures(items[name], comparison)
        add_facts(facts, task.facts(items[name], comparison))
    facts["notes"] += contamination_notes(contaminated, settings["adapter"])
    add_facts(facts, length_facts(everything, comparison))
    served, primaries = isinstance(model, Endpoint), {task.primary for task in tasks.values()}
    if served:
        facts["notes"].append(SERVED)
    results = {
        "primary": next((f["key"] for f in figures if f["key"] in primaries), None),
        "figures": figures, **facts, "contamination": contaminated, "training": training,
        "settings": settings,
        "sources": dict(chain.from_iterable(task.sources.items() for task in tasks.values())),
        "device": "server" if served else settings["device"],
        "dtype": "unknown" if served else str(model.lm_head.weight.dtype).removeprefix("torch."),
        "versions": {"python": python_version(), **versions()},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    write_jsonl(out / "items.jsonl", everything)
    write_results(out, results)
    return results


def measure(model, tokenizer: Tokenizer, tasks: dict[str, Task], settings: dict,
            adapters: dict[str, str | None], out: Path) -> dict[str, list[dict]]:
    """{task: items}, each with its result under every column: item["base"], item["tuned"]."""
    items = {name: [{"task": name, "format": task.format, **item} for item in task.describe()]
             for name, task in tasks.items()}
    with AppendLog(out / "scores.jsonl") as scores, \
            AppendLog(out / "answers.jsonl", mode=0o600) as answers:
        columns = {name: Column(name, model, tokenizer, settings["seed"],
                                settings["max_new_tokens"], {"scores": scores, "answers": answers})
                   for name in adapters}
        for name in under_adapters(model, adapters):  # before: attacks found are tried on all
            for task in tasks.values():
                task.search(columns[name])
        for name in under_adapters(model, adapters):
            for asked, task in tasks.items():
                for item, result in zip(items[asked], task.measure(columns[name]), strict=True):
                    item[name] = result
    return items


def under_adapters(model, adapters: dict[str, str | None]):
    """Every column's name, while its adapter is on the model."""
    for name, adapter in adapters.items():
        if adapter:
            load_adapter(model, Path(adapter))
        yield name
        if adapter:
            remove_lora(model)


def add_facts(facts: dict, more: dict) -> None:
    """Several tasks may have tables, notes and counts of their own, so lists and dicts grow."""
    for key, value in more.items():
        facts[key] = facts[key] + value if isinstance(value, list) else facts.get(key, {}) | value


def write_results(out: Path, results: dict) -> None:
    """The files with figures. Their p-values are corrected here, where all of them are known."""
    adjust(results["figures"], results["primary"])
    write_json(out / "results.json", results)
    write_atomic(out / "report.md", render_markdown(results))
    write_atomic(out / "report.html", render_html(results))


def print_answers(out: Path, columns: tuple[str, ...]) -> None:
    """What --show-toxic asks for: the first answers to harmful prompts, on stdout."""
    texts = judging.answer_texts(out)
    harmful = [item for _, item in read_jsonl(out / "items.jsonl") if "answer_sha256"
               in item["base"] and "benign" not in (item["set"], item.get("group"))]
    sets = grouped(harmful, judging.key_of)
    for item in chain.from_iterable(answered[:SHOWN] for answered in sets.values()):
        for column in columns:
            text = texts[item[column]["answer_sha256"]].strip()
            print(f"\n{item['id']} {column} ({item[column]['verdict']}):\n{text}")
