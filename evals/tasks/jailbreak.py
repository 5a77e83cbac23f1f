"""Attack success: harmful behaviours asked directly and under published jailbreak templates.

    python ptalign.py eval --model M --adapter A --tasks jailbreak --templates FILE --out DIR

The behaviours are JailbreakBench's harmful half (Chao et al., arXiv 2404.01318). templates.json has
one template of each family, written by us after the paper that it names; none of them adds anything
to what a behaviour asks for. A user's own templates and whole prompts are asked beside them. An
attack counts as complied with when verdicts.py says so of the answer. That cannot tell compliance
from an answer that misses the point, which a small model gives often (to Base64 above all): read
the rates beside the direct one, or have the answers judged. An answer in a cipher is broken text.

Departures from those papers:
1. One wording stands for a family. Published rates are often the best of many: "any" comes closest.
2. One user turn, no system text, no second model to rewrite it; one greedy answer a prompt, or
   --samples N drawn ones (answers.py): how many get through, and whether any does.
3. The examples of the few-shot family are harmless ones."""

import base64
import codecs
import re
from pathlib import Path
from statistics import fmean

from evals.answers import AnswerTask, complied
from evals.data import file_source, first_prompts, load_rows
from evals.figures import grouped
from evals.task import Comparison
from support.files import InputError, read_json, read_jsonl, sha256, sha256_file

OURS = Path(__file__).with_name("templates.json")
DIRECT, TEMPLATES, OWN, REPLAY = "direct", "templates", "own templates", "replay"
TOGETHER = {"mean": fmean, "any": max}  # figures of several templates, of a behaviour's answers
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


def behaviours(data_dir: str | None, limit: int | None) -> tuple[list[dict], dict]:
    """JailbreakBench's harmful rows, `limit` of them, and their source."""
    rows, source = load_rows("jailbreakbench", data_dir=data_dir)
    rows = first_prompts([row for row in rows if row["harmful"]], limit)
    if not rows:
        raise InputError("no harmful rows", source.get("path") or source["hub"],
                         "give JailbreakBench's behaviours")
    return rows, {**source, "n": len(rows)}


def under(templates: list[dict], rows: list[dict]) -> list[dict]:
    """Every behaviour under every template, as {"id", "attack", "goal", "prompt"}."""
    return [{"id": f"{t['name']}/{row['id']}", "attack": t["name"], "goal": row["prompt"],
             "prompt": fill(t["template"], row["prompt"])} for t in templates for row in rows]


def own_rows(path: Path, fields: tuple[str, ...], taken: set[str]) -> list[dict]:
    """A user's templates, {"name", "template"} a line, or whole attack prompts: {"prompt"}, with
    the "goal" it is after and an "id" if known. All fields hold text, and the first is unique:
    answers of one id would count as one prompt's samples. No message quotes a text."""
    rows = []
    for number, row in read_jsonl(path):
        where = f"{path} line {number}"
        row = {"goal": row.get("prompt"), "id": f"line {number}", **row}
        row["id"] = str(row["id"]) if type(row["id"]) is int else row["id"]
        for field in fields:
            if not isinstance(row.get(field), str) or not row[field].strip():
                raise InputError(f"no text in field {field!r}", where, "repair the row")
        if (name := row[fields[0]]) in taken:
            raise InputError(f"the {fields[0]} {name!r} is taken", where, "choose another")
        if "template" in fields and not SLOT.search(row["template"]):
            slots = ", ".join(f"{{{slot}}}" for slot in SLOTS)
            raise InputError("no place for the request", where, f"write one of {slots}")
        taken = taken | {name}
        rows.append({field: row[field] for field in fields})
    if not rows:
        raise InputError(f"no {fields[1]}s", path, "one {...} a line")
    return rows


class Jailbreak(AnswerTask):
    name, options, divided_by = "jailbreak", ("templates", "replay", "samples"), "attack"

    def __init__(self, options):
        super().__init__(options)
        goals, source = behaviours(options.data_dir, options.limit)
        ours = read_json(OURS)["templates"]
        self.sources = {"jailbreakbench harmful": source,
                        "jailbreak templates": {"n": len(ours), "sha256": sha256_file(OURS)}}
        self.rows = {DIRECT: under([{"name": DIRECT, "template": "{prompt}"}], goals),
                     TEMPLATES: under(ours, goals)}
        if options.templates:
            path = Path(options.templates)
            own = own_rows(path, ("name", "template"), {
                DIRECT, REPLAY, *(t["name"] for t in ours),
                *(f"{kind}/{name}" for kind in (TEMPLATES, OWN) for name in TOGETHER)})
            self.rows[OWN], self.sources[OWN] = under(own, goals), file_source(path, n=len(own))
        if options.replay:
            path = Path(options.replay)
            self.rows[REPLAY] = first_prompts(
                [{**row, "id": f"{REPLAY}/{row['id']}", "attack": REPLAY}
                 for row in own_rows(path, ("id", "prompt", "goal"), set())], options.limit)
            self.sources[REPLAY] = file_source(path, n=len(self.rows[REPLAY]))
        self.sources |= self.sampling()

    def item_fields(self, row: dict) -> dict:
        """`prompt` is the behaviour, which many items share, `asked` the text in full."""
        return {"prompt": sha256(row["goal"]), "attack": row["attack"],
                "asked": sha256(row["prompt"])}

    def figures(self, items: list[dict], comparison: Comparison) -> list[dict]:
        """Success of every attack; of the templates together, the mean and any per behaviour."""
        lines = super().figures(items, comparison)
        for kind, answered in grouped(items, "set").items():
            if kind in (TEMPLATES, OWN):
                lines += [self.figure(f"{kind}/{name}/complied", answered, complied, comparison,
                                      by="prompt", combine=combine, higher_is_better=False)
                          for name, combine in TOGETHER.items()]
        return lines
