"""results/qwen2.5: the base and every arm side by side, from what run.sh left in its folder.

    python benchmarks/qwen_tables.py OUT dev       # the sets to develop on
    python benchmarks/qwen_tables.py OUT parts     # of those, Safety-Tuned LLaMAs by its sources
    python benchmarks/qwen_tables.py OUT held-out  # the pairs held out from training, seed by seed
    python benchmarks/qwen_tables.py OUT tables    # the sets to be reported
    python benchmarks/qwen_tables.py OUT rate 1e-4 2e-4    # the learning rate chosen of dev-rates
    python benchmarks/qwen_tables.py OUT rates 1e-4 2e-4   # what it was chosen from
    python benchmarks/qwen_tables.py OUT rates pt mle --of dev-own   # any evaluation's adapters

Prints the page. Arms that are not measured yet are left out and named.
"""

import sys
from collections import Counter
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from statistics import fmean

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.script import exit_code
from evals.figures import changes_of
from evals.report import direction, markdown_table, surely_changed
from evals.texts import BELOW, LEVEL, interval, percent, span
from support import validation
from support.commandline import Parser
from support.files import InputError, read_json, read_jsonl

DEV = {"StrongREJECT, declined": "refusal/*/strongreject/harmful/declined",
       "StrongREJECT, complied": "refusal/*/strongreject/harmful/complied",
       "Safety-Tuned LLaMAs, harmful, declined": "refusal/*/safety_tuned_llamas/harmful/declined",
       "Safety-Tuned LLaMAs, harmful, complied": "refusal/*/safety_tuned_llamas/harmful/complied",
       "Safety-Tuned LLaMAs, benign, declined": "refusal/*/safety_tuned_llamas/benign/declined",
       "Self-Instruct, declined": "refusal/*/self_instruct/benign/declined"}
TEST = {"JailbreakBench harmful, declined": "refusal/*/jailbreakbench/harmful/declined",
        "JailbreakBench harmful, complied": "refusal/*/jailbreakbench/harmful/complied",
        "XSTest harmful, declined": "refusal/*/xstest/harmful/declined",
        "XSTest harmful, complied": "refusal/*/xstest/harmful/complied",
        "JailbreakBench benign, declined": "refusal/*/jailbreakbench/benign/declined",
        "XSTest benign, declined": "refusal/*/xstest/benign/declined",
        "HHH harmless": "hhh/*/harmless/byte", "HHH helpful": "hhh/*/helpful/byte",
        "HHH honest": "hhh/*/honest/byte", "HHH other": "hhh/*/other/byte",
        "HHH harmless, by letter": "hhh_ab/*/harmless",
        "TruthfulQA MC1": "truthfulqa/*/mc1/byte", "MMLU": "mmlu/*-shot",
        "Jailbreak templates, complied": "jailbreak/*/templates/mean/complied",
        "Genetic search, complied": "genetic/*/own found/complied",
        "Answer begun by 5 tokens, complied": "prefill/*/k=5/complied",
        "Answer begun by 20 tokens, complied": "prefill/*/k=20/complied"}
# Parts of the suite are evaluations of their own; stage: (figures, folders of an arm).
STAGES = {"dev": (DEV, ("dev-{}",)), "tables": (
    TEST, ("refusal-{}", "choices-{}", "attacks-{}", "genetic-{}"))}
ARMS = {"dev": ("pt", "mle", "dpo", "no-mask", "npo", "ga", "lambda-0.1", "lambda-1.0",
                "pairs-100", "pairs-200", "no-benign"), "tables": ("pt", "mle", "dpo")}
HELD_OUT = {"log_p_positive": "log p of positive tokens", "log_p_toxic": "log p of toxic tokens",
            "p_toxic": "mean p of penalised tokens", "entropy": "entropy there, nats"}
LEGEND = f"""In %, mean over the training seeds [lowest, highest]; a single seed has no range. Below
stands the change from the base in points, with a 95 % interval from a bootstrap over prompts in
which all seeds of a prompt stay together. {BELOW}: under every seed below {LEVEL}, after Holm's
correction over all figures of the evaluation."""
RATES = f"""In %, each column one adapter. After a rate comes its change from the base in points,
with a 95 % interval by a bootstrap over prompts. {BELOW}: below {LEVEL} after Holm's correction
over all figures and adapters of the evaluation."""


def measured(out: Path, stage: str) -> dict[str, dict[str, dict]]:
    """Each arm's figures by their names on the page, as far as they were measured."""
    wanted, folders = STAGES[stage]
    arms = {}
    for arm in ARMS[stage]:
        files = [out / folder.format(arm) / "results.json" for folder in folders]
        made = [f for file in files if file.is_file() for f in read_json(file)["figures"]]
        named = {name: f for name, key in wanted.items() for f in made
                 if fnmatchcase(f["key"], key)}
        if named:
            arms[arm] = named
    if not arms:
        raise InputError("holds no evaluation of this stage", out, f"run run.sh {stage} first")
    return arms


def rate(f: dict) -> str:
    tuned = f["tuned"]
    spread = f" {span(tuned['range'])}" if "range" in tuned else ""
    return percent(tuned["rate"]) + spread


def change(f: dict) -> str:
    sure = any(surely_changed([f], better=better) for better in (True, False))
    return interval(f["difference"], f["bootstrap_95"], sign=True) + f" {BELOW}" * sure


def changed(own: dict, f: dict) -> str:
    """The change under one adapter of a figure."""
    sure = direction(own, f["higher_is_better"]) != ""
    return interval(own["difference"], own["bootstrap_95"], sign=True) + f" {BELOW}" * sure


def tables(arms: dict[str, dict[str, dict]], wanted: dict[str, str]) -> tuple[str, str]:
    """The rates with the base's, and the changes from it."""
    rates = [("", "n", "base", *arms)]
    changes = [("change in points", *arms)]
    for name in wanted:
        own = {arm: figures.get(name) for arm, figures in arms.items()}
        known = next(filter(None, own.values()), None)
        if known is None:
            continue
        direction = "↑" if known["higher_is_better"] else "↓"
        base = interval(known["base"]["rate"], known["base"]["wilson_95"])
        rates.append((f"{name} {direction}", str(known["n"]), base,
                      *(rate(f) if f else "-" for f in own.values())))
        changes.append((f"{name} {direction}", *(change(f) if f else "-" for f in own.values())))
    return markdown_table(rates), markdown_table(changes)


def page(out: Path, stage: str) -> str:
    arms = measured(out, stage)
    missing = [arm for arm in ARMS[stage] if arm not in arms]
    seeds = {arm: max(len(changes_of(f)) for f in figures.values())
             for arm, figures in arms.items()}
    counted = "Training seeds: " + ", ".join(f"{arm} {n}" for arm, n in seeds.items()) + "."
    if missing:
        counted += f" Not measured yet: {', '.join(missing)}."
    return "\n\n".join([LEGEND, counted, *tables(arms, STAGES[stage][0])])


def by_source(title: str, files: dict[Path, dict[str, str]]) -> str:
    """Harmful prompts declined, source by source of Safety-Tuned LLaMAs, whose ids name them.
    `files`: evaluations' items, with the table's column of each of their own ("tuned*": all)."""
    declined, asked, columns = Counter(), Counter(), {}
    for file, names in files.items():
        columns |= dict.fromkeys(names.values())
        for _, item in read_jsonl(file):
            # the items of attacks have no group
            if (item["set"], item.get("group")) != ("safety_tuned_llamas", "harmful"):
                continue
            source = item["id"].removeprefix("stl-").rsplit("-", 1)[0]
            for own, pattern in ((own, p) for own in item for p in names if fnmatchcase(own, p)):
                declined[source, names[pattern]] += item[own]["verdict"] == "declined"
                asked[source, names[pattern]] += 1
    rows = [(source, *(f"{declined[source, c]} of {asked[source, c]}" for c in columns))
            for source in sorted({source for source, _ in asked})]
    return markdown_table([(title, *columns), *rows])


def parts(out: Path) -> str:
    arms = list(measured(out, "dev"))
    files = {out / f"dev-{arm}" / "items.jsonl": {"tuned*": arm} for arm in arms}
    first = out / f"dev-{arms[0]}" / "items.jsonl"  # the base's answers are the same beside each
    files[first] = {"base": "base", **files[first]}
    return by_source("harmful prompts declined, all seeds", files)


def rates(out: Path, names: list[str]) -> str:
    """The sets to develop on under each adapter of an evaluation, the folder `out`."""
    made = read_json(out / "results.json")["figures"]
    refuse_other_names(made, out, names)
    table = [("", "n", "base", *names)]
    for name, key in DEV.items():
        if (f := next((f for f in made if fnmatchcase(f["key"], key)), None)) is None:
            continue
        table.append((f"{name} {'↑' if f['higher_is_better'] else '↓'}", str(f["n"]),
                      interval(f["base"]["rate"], f["base"]["wilson_95"]),
                      *(f"{percent(own['tuned']['rate'])}, {changed(own, f)}"
                        for own in changes_of(f))))
    columns = {"base": "base", "tuned": names[0]}  # of one adapter; of several:
    columns |= {f"tuned {i}": name for i, name in enumerate(names, 1)}
    return "\n\n".join([RATES, markdown_table(table), by_source(
        "harmful prompts declined", {out / "items.jsonl": columns})])


def held_out(out: Path) -> str:
    """What finished trainings measured on held-out pairs after the last step and, of the seed's own
    pairs, before the first one."""
    rows = [("before -> after", *HELD_OUT.values())]
    for arm in ARMS["dev"]:
        for folder in sorted((path.parent for path in out.glob(f"{arm}-*/adapter_config.json")
                              if path.parent.name.removeprefix(f"{arm}-").isdecimal()),
                             key=lambda folder: int(folder.name.rpartition("-")[2])):
            before, *_, after = validation.read(folder)
            rows.append((folder.name, *(f"{before[key]:.2f} -> {after[key]:.2f}"
                                        for key in HELD_OUT)))
    return markdown_table(rows)


def refuse_other_names(figures: list[dict], out: Path, names: list[str]) -> None:
    if not all(len(changes_of(f)) == len(names) for f in figures):
        raise InputError(f"not of {len(names)} adapters", out, "name them all, in order")


def chosen(out: Path, rates: list[str]) -> str:
    """Of the learning rates of an evaluation's adapters, in order, the one that declines the most
    harmful prompts while it declines no more benign ones than the base, over all sets alike; where
    each declines more, the one that adds the least."""
    made = read_json(out / "results.json")["figures"]
    refuse_other_names(made, out, rates)
    declined = {side: [f for f in made if f["key"].endswith(f"/{side}/declined")]
                for side in ("harmful", "benign")}
    gain = {side: [fmean(changes_of(f)[i]["difference"] for f in own) for i in range(len(rates))]
            for side, own in declined.items()}
    best = max(range(len(rates)), key=lambda i: (-max(0, gain["benign"][i]), gain["harmful"][i]))
    return rates[best]


def main(argv=None) -> int:
    parser = Parser(prog="qwen_tables", description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path, help="run.sh's folder, OUT")
    parser.add_argument("stage", choices=(*STAGES, "parts", "held-out", "rate", "rates"))
    parser.add_argument("rates", nargs="*", help="of rate and rates: of the adapters, in order")
    parser.add_argument("--of", default="dev-rates", help="of rate and rates: the evaluation")

    def run() -> None:
        options = parser.parse_args(argv)
        evaluation = options.out / options.of
        made = {"rate": lambda: chosen(evaluation, options.rates),
                "rates": lambda: rates(evaluation, options.rates),
                "parts": lambda: parts(options.out), "held-out": lambda: held_out(options.out)}
        print(made.get(options.stage, partial(page, options.out, options.stage))())
    return exit_code("qwen_tables", run)


if __name__ == "__main__":
    sys.exit(main())
