"""What becomes a row of the data, which rows are chosen, and how a person looks at them."""

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from losses import first_mismatch
from support.files import InputError, read_jsonl, read_text, refusing
from support.pairs import Toxic, Triplet
from synthesis.answers import OPENINGS
from synthesis.claims import claim_of
from synthesis.filters import OpeningQuota, reject_pair
from synthesis.lists import Item, round_robin
from synthesis.rouge import RougePool
from synthesis.session import Session
from triplets import encode


def row_of(session: Session, item: Item, positive: str, toxic: Toxic | None = None, *,
           openings: OpeningQuota | None = None) -> dict | None:
    """The data file's row; None, and a reject, for one that train or a filter would refuse.
    `openings`: those of the toxic answers in the data so far."""
    # The refusal that the file has in front of an answer takes room as well.
    refusal = session.refusal and session.tokenizer.encode(f"{session.refusal} ", special=False)
    row = {"id": item.id, "kind": item.kind, "domain": item.domain, "topic": item.topic,
           "prompt": item.prompt, "positive": positive, "toxic": toxic}
    k = reason = None
    try:
        example = encode(Triplet(item.prompt, positive, toxic, item.id), session.tokenizer,
                         session.tokenizer.default_format,
                         context=session.context - len(refusal))
        if toxic is not None:
            row["first_mismatch"] = k = first_mismatch(example.positive, example.toxic)
            reason = reject_pair(positive, toxic, k) or (openings.reject(toxic) if k == 0 else None)
    except InputError:  # train would refuse the whole file for it
        reason = "tokens"
    if reason:
        what, text = ("positive", positive) if toxic is None else ("pair", toxic)
        session.reject(f"{item.id}/{what}", "pairs", reason, text)
        return None
    if k == 0:
        openings.add(toxic)
    return row


ID = r"[a-z]/\d+"  # of a row, as Instructions gives it; one cut short is told as unknown
WORST = 0.1  # share of the pairs, those of least margin, that is left out where enough remain


def select(rows: list[dict], wanted: int, margin: Callable[[str], float | None] | None = None, *,
           apart: Sequence[dict] = ()) -> list[dict]:
    """The rows chosen, `apart` from those of other kinds. Those of least margin (of an id, None
    where it has none) stay out, unless the quotas need them as well."""
    margins = {row["id"]: m for row in rows if margin and (m := margin(row["id"])) is not None}
    worst = max(0, min(len(rows) - wanted, math.ceil(WORST * len(rows))))
    out = set(sorted(margins, key=margins.get)[:worst])
    chosen = choose([row for row in rows if row["id"] not in out], wanted, apart)
    return chosen if len(chosen) == wanted or not out else choose(rows, wanted, apart)


def choose(rows: list[dict], wanted: int, apart: Sequence[dict] = ()) -> list[dict]:
    """Round-robin over domains and, within each, over topics; ties by id. A request near a chosen
    one, or one of `apart`, stays out, and so does an answer whose opening enough of the chosen ones
    have."""
    ranks: Counter = Counter()  # rows of each topic so far
    ranked: dict[str, list] = {}
    for row in sorted(rows, key=lambda row: row["id"]):
        topic = row["domain"], row["topic"]
        ranked.setdefault(row["domain"], []).append((ranks[topic], row["id"], row))
        ranks[topic] += 1
    chosen, pool = [], RougePool(7, 10, map(compared, apart))
    openings = OpeningQuota(0, least=max(4, OPENINGS * wanted))
    for _, _, row in round_robin(sorted(ranked[d]) for d in sorted(ranked)):
        prompt, positive = compared(row), row["positive"]
        if (len(chosen) < wanted and not openings.reject(positive)
                and not pool.nearest_hit(prompt)):
            chosen.append(row)
            pool.add(prompt)
            openings.add(positive)
    return chosen


def compared(row: dict) -> str:
    """What of a row's request is compared: in one frame claims would look alike."""
    return claim_of(row["prompt"]) or row["prompt"]


def read_dropped(path: Path) -> frozenset[str]:
    """Ids of rows that a person struck out, however set off: they stay out of every rerun."""
    return frozenset(re.findall(ID, read_text(path))) if path.exists() else frozenset()


def show_rows(path: Path, n: int, *, toxic: bool) -> None:
    """Print some rows, evenly spread over the file; the toxic text only if it is asked for."""
    rows = [row for _, row in read_jsonl(path)]
    with refusing((KeyError, TypeError), "not what synth wrote", path, "run synth again"):
        n = min(n, len(rows))
        for row in (rows[i * len(rows) // n] for i in range(n)):
            text = row["toxic"] and (row["toxic"] if toxic else Toxic(row["toxic"]))
            print(f"[{row['id']}] {row['domain']}: {row['topic']}\n> {row['prompt']}\n"
                  f"positive: {row['positive']}\ntoxic: {text}\n")
