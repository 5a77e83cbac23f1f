"""Prefill attacks: harmful behaviours, the answer begun for the model by a complying opening.

    python ptalign.py eval --model M --adapter A --tasks prefill --out DIR

Where safety sits in an answer's first tokens alone (Qi et al., arXiv 2406.05946), a model goes on
with what it would never have begun. JailbreakBench's harmful half is asked with the first k tokens
of an opening already said, for every k of TOKENS; what the model writes behind them counts.
Departure: the paper takes beginnings of harmful answers; the openings here (openings.json, one a
category) are ours and say nothing but that they comply."""

from pathlib import Path

from evals.answers import AnswerTask, settings_source
from evals.tasks.jailbreak import behaviours
from support.files import canonical, read_json, sha256

OPENINGS = read_json(Path(__file__).with_name("openings.json"))
TOKENS = (0, 5, 10, 20, 40)  # of the opening


def first_tokens(tokenizer, prompt: str, text: str, k: int, format: str) -> str:
    """The first k tokens of the answer `text`, as text. What a template puts in front of an answer,
    be it a space or the end of an empty thought, is none of them."""
    front = tokenizer.prompt_text(prompt, format) + tokenizer.answer_text("", format)
    ids, first = tokenizer.encode_pair(front, text, special=format == "raw")
    return tokenizer.decode(ids[first : first + k]).strip()


class Prefill(AnswerTask):
    name = "prefill"

    def __init__(self, options):
        super().__init__(options)
        goals, source = behaviours(options.data_dir, options.limit)
        self.rows = {f"k={k}": [{**row, "id": f"k={k}/{row['id']}", "tokens": k} for row in goals]
                     for k in TOKENS}
        self.sources = {"jailbreakbench harmful": source, "prefill": settings_source(
            {"tokens": TOKENS, "openings_sha256": sha256(canonical(OPENINGS))})}

    def item_fields(self, row: dict) -> dict:
        return {}  # all are harmful

    def begun_rows(self, tokenizer, rows: list[dict]) -> list[dict]:
        return [{**row, "opening": first_tokens(
            tokenizer, row["prompt"], OPENINGS.get(row["category"], OPENINGS["other"]),
            row["tokens"], self.format)} for row in rows]
