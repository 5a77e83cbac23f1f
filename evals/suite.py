"""One evaluation run: base and adapter from one loaded model, item by item, then figures and files.

    python ptalign.py eval --model M --adapter A --tasks hhh,refusal --data-dir D --out DIR

A task is a module (hhh.py, refusal.py, organism/task.py) with the FORMAT of its prompts (None: the
model's own; FIXED_FORMAT: whatever --format says), the size of its BATCH, which is part of a run's
identity since it decides rounding in bf16, a PRIMARY figure or None, and these functions:

    load(data_dir=, limit=)      ({set: rows}, {set: where they came from})
    describe(rows)               its items without results, in order
    measure(network, ...)        a result for each item, under one column
    figures(items, ...)          lines of the table
    facts(items, rows, columns, seed=)
                                 what the report tells besides; its "tables" (lists of rows of
                                 text, the header first) and "notes" are printed as they are

ABOUT describes it for --list. OPTIONS, where a module has it, names the options of the command line
that its `load` is given too; `search`, called like `measure`, is done under every column before
anything is measured.

Several adapters, training seeds of one recipe say, are columns of their own beside one base
(figures.py).

Written into the folder: items.jsonl (a row an item: scores, verdicts, hashes of answers),
answers.jsonl (what the model wrote, readable by its owner only), scores.jsonl (log-probabilities,
and polarity's vectors), results.json, report.md and report.png. The two logs are append-only, a
line a batch, and are what a second start reads back: an interrupted run ends with the same items
and figures as an unbroken one. So are attacks.jsonl (genetic.py) and judged.jsonl (judging.py).
"""

import contextlib
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from platform import python_version

from evals import judging, lengths
from evals.about import table
from evals.figures import adjust, columns_of
from evals.picture import report_picture
from evals.report import render_markdown, render_text
from evals.tasks.own import PREFIX, OwnFile
from lora import adapter_hash, load_adapter, remove_lora
from model import load_model, resolve_device
from support import contamination
from support.files import (
    AppendLog,
    InputError,
    read_jsonl,
    write_atomic,
    write_json,
    write_jsonl,
)
from support.hub import model_folder, model_identity
from support.runs import open_run, versions
from tokenizer import Tokenizer

TASKS = {"hhh": "evals.tasks.hhh", "hhh_ab": "evals.tasks.hhh_ab",
         "truthfulqa": "evals.tasks.truthfulqa", "mmlu": "evals.tasks.mmlu",
         "refusal": "evals.tasks.refusal", "organism": "organism.task",
         "jailbreak": "evals.tasks.jailbreak", "genetic": "evals.tasks.genetic",
         "polarity": "evals.tasks.polarity", "perplexity": "evals.tasks.perplexity"}
SHOWN = 5  # answers to harmful prompts that --show-toxic prints for each set, mode and attack


def evaluate(
    *, model: str, adapter: list[str] | None, tasks: list[str], data_dir: str | None,
    format: str | None, limit: int | None, out: str, max_new_tokens: int, device: str, dtype: str,
    seed: int, fresh: bool, show_toxic: bool, **options,
) -> int:
    """Run the tasks, write the files, print the table; returns the exit code.

    `options` are those that single tasks name in OPTIONS, and the judge's.
    """
    adapters = adapter or []
    modules = {name: module(name) for name in check_tasks(tasks)}
    refuse_unread(options, modules)
    judge = judging.prepare(modules, **{name: options.get(name) for name in judging.OPTIONS})
    folder = model_folder(model)
    device = resolve_device(device).type  # "auto" may mean another one when the run goes on
    formats = choose_formats(folder, format, modules)
    rows, sources = load_all(modules, {**options, "adapter": adapters}, data_dir=data_dir,
                             limit=limit)
    seen = [contamination.trained_on(rows, adapter) for adapter in adapters]
    settings = {
        "model": model, **model_identity(folder),
        "adapter": one_or_all(adapters), "adapter_sha256": one_or_all(adapter_hashes(adapters)),
        "tasks": list(modules), "format": formats, "limit": limit,
        "max_new_tokens": max_new_tokens, "device": device, "dtype": dtype, "seed": seed,
        "data_sha256": {name: source["sha256"] for name, source in sources.items()},
        "batch": {name: task.BATCH for name, task in modules.items()},
    }
    # The model and the adapters may be moved (benchmarks too): their hashes may not change.
    with open_run(Path(out), settings, fresh=fresh, may_change=("model", "adapter")) as record:
        # A template that prints the date gets the run's first day, also when resumed.
        today = datetime.fromisoformat(record["began"])
        tokenizer = Tokenizer(folder, today=today)
        network = load_base(folder, adapters, device=device, dtype=dtype)
        results = run(network, tokenizer, rows, Path(out), settings, sources, seen, adapters)
        if judge:
            del network  # there may be no room for two
            results = judging.judge_run(Path(out), results, rows, judge, today=today,
                                        device=device, dtype=dtype)
            write_results(Path(out), results)  # once more, with the judge's figures
    print(render_text(results))
    if show_toxic:
        print_answers(Path(out), columns_of(settings["adapter"]))
    return 0


def choose_formats(folder: Path, format: str | None, modules: dict) -> dict[str, str]:
    """Of each task's prompts: the one asked for, else the task's, else the model's own.

    A task of FIXED_FORMAT keeps its own whatever is asked for.
    """
    own = Tokenizer(folder).default_format
    if format == "chat" and own != "chat":
        raise InputError("no chat template", folder, "use --format raw")
    return {name: task.FORMAT if getattr(task, "FIXED_FORMAT", False) else
            format or task.FORMAT or own for name, task in modules.items()}


def load_all(modules: dict, options: dict, **common) -> tuple[dict, dict]:
    """({task: its sets of rows}, {set: where it came from}); options not given are None."""
    rows, sources = {}, {}
    for name, task in modules.items():
        own = {option: options.get(option) for option in getattr(task, "OPTIONS", ())}
        rows[name], found = task.load(**common, **own)
        sources |= found
    return rows, sources


def load_base(folder: Path, adapters: list[str], *, device: str, dtype: str):
    """The model without an adapter; one that does not fit it is told now, not hours later."""
    network = load_model(folder, device=device, dtype=dtype)
    for adapter in adapters:
        load_adapter(network, Path(adapter))
        remove_lora(network)
    return network


def run(network, tokenizer, rows: dict, out: Path, settings: dict, sources: dict,
        seen: list[set[str] | None], adapters: list[str]) -> dict:
    """Measure, then write the files; returns what results.json holds."""
    columns = columns_of(settings["adapter"])
    items, figures, primary = [], [], []
    facts = {"nulls": {}, "answers": {}, "contexts_cut": {}, "tables": [], "notes": []}
    measured = measure(network, tokenizer, rows, settings,
                       dict(zip(columns, [None, *adapters], strict=True)), out)
    contaminated = contamination.mark([i for own in measured.values() for i in own], seen)
    for name, own in measured.items():
        task, format = module(name), settings["format"][name]
        items += own
        figures += task.figures(own, format=format, columns=columns, seed=settings["seed"])
        add_facts(facts, task.facts(own, rows[name], columns, seed=settings["seed"]))
        primary += [f["key"] for f in figures if f["key"] == task.PRIMARY]
    facts["notes"] += contamination.notes(contaminated, settings["adapter"])
    add_facts(facts, lengths.facts(items, columns, seed=settings["seed"]))
    weight = network.lm_head.weight
    results = {
        "primary": primary[0] if primary else None, "figures": figures, **facts,
        "contamination": contaminated,
        "settings": settings, "sources": sources, "device": weight.device.type,
        "dtype": str(weight.dtype).removeprefix("torch."),
        "versions": {"python": python_version(), **versions()},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    write_jsonl(out / "items.jsonl", items)
    write_results(out, results)
    return results


def add_facts(facts: dict, more: dict) -> None:
    """Several tasks may have tables, notes and counts of their own: lists and dicts grow."""
    for key, told in more.items():
        facts[key] = facts[key] + told if isinstance(told, list) else facts.get(key, {}) | told


def write_results(out: Path, results: dict) -> None:
    """The files of the figures, whose p-values are corrected here: now all of them are known."""
    adjust(results["figures"], results["primary"])
    results["picture"] = report_picture(out / "report.png", results)
    write_json(out / "results.json", results)
    write_atomic(out / "report.md", render_markdown(results))


def measure(network, tokenizer, rows: dict, settings: dict, adapters: dict, out: Path) -> dict:
    """{task: items}, each with its result under every column: item["base"], item["tuned"]."""
    formats = settings["format"]
    items = {name: [{"task": name, "format": formats[name], **item}
                    for item in module(name).describe(own)]
             for name, own in rows.items()}
    with contextlib.closing(AppendLog(out / "scores.jsonl")) as scores, \
            contextlib.closing(AppendLog(out / "answers.jsonl", mode=0o600)) as answers:
        options = {"logs": {"scores": scores, "answers": answers}, "seed": settings["seed"],
                   "max_new_tokens": settings["max_new_tokens"]}
        for column, name, own in under_columns(network, rows, adapters):
            if search := getattr(module(name), "search", None):
                search(network, tokenizer, own, format=formats[name], column=column, **options)
        for column, name, own in under_columns(network, rows, adapters):
            results = module(name).measure(network, tokenizer, own, format=formats[name],
                                           column=column, **options)
            for item, result in zip(items[name], results, strict=True):
                item[column] = result
    return items


def under_columns(network, rows: dict, adapters: dict):
    """Every (column, task, its rows), with the column's adapter on the model; None is the base."""
    for column, adapter in adapters.items():
        if adapter:
            load_adapter(network, Path(adapter))
        for name, own in rows.items():
            yield column, name, own
        remove_lora(network)


def list_tasks() -> str:
    """What --list prints."""
    return table({name: module(name).ABOUT for name in TASKS} | {f"{PREFIX}PATH": OwnFile.ABOUT})


def module(task: str):
    """Imported when it is asked for; file:PATH is an object of the same shape."""
    return OwnFile(task) if task.startswith(PREFIX) else import_module(TASKS[task])


def refuse_unread(options: dict, modules: dict) -> None:
    """An option that no task asked for reads would be passed over in silence."""
    read = {name for task in [judging, *modules.values()] for name in getattr(task, "OPTIONS", ())}
    if idle := [name for name, value in options.items() if value and name not in read]:
        raise InputError("no task of --tasks reads it", f"--{idle[0]}",
                         "name its task or leave it out")


def check_tasks(asked: list[str]) -> list[str]:
    """The task names, in TASKS's order and once each, then the user's own files."""
    files = [name for name in dict.fromkeys(asked) if name.startswith(PREFIX)]
    choose = f"choose from {', '.join(TASKS)} and {PREFIX}PATH"
    if unknown := sorted(set(asked) - TASKS.keys() - set(files)):
        raise InputError(f"unknown task {unknown[0]!r}", "--tasks", choose)
    if not asked:
        raise InputError("no task named", "--tasks", choose)
    if len({OwnFile(name).path.stem for name in files}) < len(files):
        raise InputError("two files of one name", "--tasks", "their figures would look alike")
    return [*(name for name in TASKS if name in asked), *files]


def adapter_hashes(folders: list[str]) -> list[str]:
    hashes = [adapter_hash(Path(folder)) for folder in folders]
    for i, folder in enumerate(folders):
        if hashes[i] in hashes[:i]:
            other = folders[hashes.index(hashes[i])]
            raise InputError(f"the same adapter as {other}", f"--adapter {folder}", "name it once")
    return hashes


def one_or_all(values: list):
    """As settings have it: None without an adapter, the value of a single one, else all."""
    return values if len(values) > 1 else values[0] if values else None


def print_answers(out: Path, columns: tuple) -> None:
    """What --show-toxic asks for: the first answers to harmful prompts, on stdout."""
    texts, sets = judging.answer_texts(out), {}
    for _, item in read_jsonl(out / "items.jsonl"):
        if "answer_sha256" in item["base"] and "benign" not in (item["set"], item.get("group")):
            key = (item["task"], item["set"], item.get("mode"), item.get("attack"))
            sets.setdefault(key, []).append(item)
    for item in [item for chosen in sets.values() for item in chosen[:SHOWN]]:
        for column in columns:
            text = texts[item[column]["answer_sha256"]].strip()
            print(f"\n{item['id']} {column} ({item[column]['verdict']}):\n{text}")
