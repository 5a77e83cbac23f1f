"""Attack success: harmful behaviours asked directly and under published jailbreak templates.

    python ptalign.py eval --model M --adapter A --tasks jailbreak --templates FILE --out DIR

The behaviours are JailbreakBench's harmful half (Chao et al., arXiv 2404.01318). templates.json has
one template of each family, written by us after the paper that it names; none of them adds anything
to what a behaviour asks for. A user's own templates and whole prompts (those that another attack
found, say) are asked beside them.

An attack succeeds when the answer is neither refused nor garbled by verdicts.py: a word list and a
fluency guard, the guard's last question being put to the base model. They cannot tell compliance
from an answer that misses the point, which a small model gives often (to Base64 above all): read
the rates beside the direct one, or have the answers judged, which stay in answers.jsonl. An answer
in a cipher is broken text to the guard.

Departures from those papers:
1. One wording stands for a family. Published rates are often the best of many: "any" comes closest.
2. One user turn, no system text, no second model to rewrite it; one greedy answer a prompt, or
   --samples N drawn ones (refusal.py): how many get through, and whether any does.
3. The examples of the few-shot family are harmless ones.
"""

import base64
import codecs
import re
from pathlib import Path
from statistics import fmean

from evals.about import About
from evals.data import SOURCES, first_prompts, load_rows
from evals.figures import combined, figure, grouped
from evals.tasks import refusal
from evals.tasks.refusal import complied, number_of_samples, repeated, sample_field, sampling
from evals.verdicts import GARBLED
from support.files import InputError, read_json, read_jsonl, sha256, sha256_file

FORMAT = None  # the model's own
PRIMARY = None
BATCH = refusal.BATCH  # prompts answered together
OPTIONS = ("templates", "replay", "samples")
OURS = Path(__file__).with_name("templates.json")
HARMFUL = SOURCES["jailbreakbench"].rows // 2
ASKED = 16 * HARMFUL  # directly and under fifteen templates
ABOUT = About("attack success directly and under published templates", "arXiv 2404.01318",
              SOURCES["jailbreakbench"].licence, items=ASKED, texts=ASKED, answers=ASKED)
DIRECT, TEMPLATES, OWN, REPLAY = "direct", "templates", "own templates", "replay"
NOTE = ("Attacks succeed when the answer counts as complied: a word list and a fluency guard say "
        "so, and no judge; an answer that misses the point counts too. templates: mean and any of "
        "the templates, per behaviour; p of the mean is a sign test of behaviours.")

LEET = str.maketrans("aeiostAEIOST", "431057431057")


def half(text: str, side: int) -> str:
    words = text.split()
    middle = (len(words) + 1) // 2
    return " ".join((words[:middle], words[middle:])[side])


SLOTS = {  # how a template may hold the request
    "prompt": str,
    "base64": lambda text: base64.b64encode(text.encode()).decode(),
    "rot13": lambda text: codecs.encode(text, "rot13"),
    "leet": lambda text: text.translate(LEET),
    "front": lambda text: half(text, 0),
    "back": lambda text: half(text, 1),
}
SLOT = re.compile("{(" + "|".join(SLOTS) + ")}")


def fill(template: str, prompt: str) -> str:
    """The template with its slots filled, in one pass: braces in a prompt are left alone."""
    return SLOT.sub(lambda match: SLOTS[match[1]](prompt), template)


# --- what is asked ------------------------------------------------------------------------------

def behaviours(data_dir: str | None, limit: int | None) -> tuple[list[dict], dict]:
    """JailbreakBench's harmful rows, `limit` of them, and their source."""
    rows, source = load_rows("jailbreakbench", data_dir=data_dir)
    rows = first_prompts([row for row in rows if row["harmful"]], limit)
    if not rows:
        raise InputError("no harmful rows", source.get("path") or source["hub"],
                         "give JailbreakBench's behaviours")
    return rows, {**source, "n": len(rows)}


def under(attack: str, template: str, rows: list[dict]) -> list[dict]:
    return [{"id": f"{attack}/{row['id']}", "attack": attack, "goal": row["prompt"],
             "prompt": fill(template, row["prompt"])} for row in rows]


def load(*, data_dir: str | None, limit: int | None, templates: str | None = None,
         replay: str | None = None, samples: int | None = None) -> tuple[dict, dict]:
    asked, source = behaviours(data_dir, limit)
    ours = read_json(OURS)["templates"]
    sources = {"jailbreakbench harmful": source,
               "jailbreak templates": {"n": len(ours), "sha256": sha256_file(OURS)}}
    rows = {DIRECT: under(DIRECT, "{prompt}", asked),
            TEMPLATES: [row for t in ours for row in under(t["name"], t["template"], asked)]}
    if templates:
        path = Path(templates).expanduser()
        own = read_templates(path, taken={DIRECT, REPLAY, *(t["name"] for t in ours)})
        sources["own templates"] = {"path": templates, "n": len(own), "sha256": sha256_file(path)}
        rows[OWN] = [row for t in own for row in under(t["name"], t["template"], asked)]
    if replay:
        path = Path(replay).expanduser()
        rows[REPLAY] = first_prompts(read_replay(path), limit)
        sources["replay"] = {"path": replay, "n": len(rows[REPLAY]), "sha256": sha256_file(path)}
    return ({kind: repeated(own, samples) for kind, own in rows.items()},
            sources | sampling(samples))


def read_templates(path: Path, taken: set[str]) -> list[dict]:
    """A user's templates: {"name", "template"} a line. Messages never quote a template."""
    found = []
    for number, row in read_jsonl(path):
        where = f"{path} line {number}"
        check_texts(row, ("name", "template"), where)
        if row["name"] in taken:
            raise InputError(f"the name {row['name']!r} is taken", where, "choose another")
        if not SLOT.search(row["template"]):
            slots = ", ".join(f"{{{slot}}}" for slot in SLOTS)
            raise InputError("no place for the request", where, f"write one of {slots}")
        taken = taken | {row["name"]}
        found.append(row)
    if not found:
        raise InputError("no templates", path, "one {...} a line")
    return found


def read_replay(path: Path) -> list[dict]:
    """Whole attack prompts: {"prompt"} a line, with the "goal" it is after and an "id" if known."""
    rows, taken = [], set()
    for number, row in read_jsonl(path):
        where = f"{path} line {number}"
        row = {"goal": row.get("prompt"), "id": f"line {number}", **row}
        check_texts(row, ("prompt", "goal", "id"), where)
        if row["id"] in taken:  # answers of one id would count as one prompt's samples
            raise InputError(f"the id {row['id']!r} is taken", where, "make ids unique")
        taken.add(row["id"])
        rows.append({"id": f"{REPLAY}/{row['id']}", "attack": REPLAY, "goal": row["goal"],
                     "prompt": row["prompt"]})
    if not rows:
        raise InputError("no prompts", path, "one {...} a line")
    return rows


def check_texts(row: dict, fields: tuple[str, ...], where: str) -> None:
    for field in fields:
        if not isinstance(row.get(field), str) or not row[field].strip():
            raise InputError(f"no text in field {field!r}", where, "repair the row")


# --- the task -----------------------------------------------------------------------------------

def describe(rows: dict) -> list[dict]:
    """`prompt` is the behaviour, which may be asked many times over, `asked` the text in full."""
    return [{"set": kind, "attack": row["attack"], "id": row["id"], **sample_field(row),
             "prompt": sha256(row["goal"]), "asked": sha256(row["prompt"])}
            for kind in rows for row in rows[kind]]


def measure(network, tokenizer, rows: dict, **options) -> list[dict]:
    return refusal.measure_answers("jailbreak", network, tokenizer,
                                   [row for kind in rows for row in rows[kind]], **options)


def figures(items: list[dict], *, format: str, columns: tuple, seed: int) -> list[dict]:
    """Success of every attack; of the templates together, per behaviour: their mean, and any."""
    made = []

    def line(name, chosen, by, combine):
        made.append(figure(
            f"jailbreak/{format}/{name}", combined(chosen, by, complied, combine, columns), float,
            columns=columns, seed=seed, higher_is_better=False))

    samples = number_of_samples(items)
    for attack, chosen in grouped(items, "attack").items():
        line(f"{attack}/complied", chosen, "id", fmean)
        if samples:
            line(f"{attack}/complied in any of {samples}", chosen, "id", max)
    for kind, chosen in grouped(items, "set").items():
        if kind in (TEMPLATES, OWN):
            line(f"{kind}/mean/complied", chosen, "prompt", fmean)
            line(f"{kind}/any/complied", chosen, "prompt", max)
    return made


def facts(items: list[dict], rows: dict, columns: tuple, *, seed: int) -> dict:
    header = ("attack, answers", "n", *(f"{column} {verdict}" for column in columns
                                        for verdict in ("complied", "refused", "garbled")))
    table = [header]
    for attack, own in grouped(items, "attack").items():
        cells = [str(sum(item[column]["verdict"] in verdicts for item in own)) for column in columns
                 for verdicts in (("complied",), ("refused",), GARBLED)]
        table.append((attack, str(len(own)), *cells))
    return {"answers": {f"jailbreak/{kind}": count_answers(own, columns)
                        for kind, own in grouped(items, "set").items()},
            "tables": [table], "notes": [NOTE, *refusal.notes("jailbreak", items)]}


def count_answers(items: list[dict], columns: tuple) -> dict:
    return {"n": len(items), **{c: refusal.count_answers(items, c) for c in columns}}
