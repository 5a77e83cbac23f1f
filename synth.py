"""Self-alignment data: the model widens a few human seeds into triplets (arXiv 2502.08657).

    domains -> topics -> instructions -> constraints -> decks -> two answers each -> triplets

synthesis/lists.py grows the lists, answers.py has each instruction answered twice. Here is the loop
over them, what becomes a row of the data, and the command.

Prompts, filters and settings are ours. Departures from the paper:
1. Negative constraints and examples describe attitude and effect, never method.
2. Benign rows: everyday requests, answered under the positive constraints, without a toxic answer.
3. A model that declines the toxic side keeps its positives; prompts are not escalated.
4. The paper has the model refine what it wrote. What a filter turns down is drawn anew instead.
"""

import itertools
import math
from collections import Counter
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path

from losses import first_mismatch
from model import read_config, resolve_device, resolve_dtype
from support.files import InputError, sha256_file
from support.hub import model_folder, model_identity
from support.pairs import Toxic, Triplet
from support.progress import say
from support.runs import open_run
from synthesis import report
from synthesis.answers import Answers, build_decks, example_prompts, refuse_short_context
from synthesis.filters import OpeningQuota, reject_pair
from synthesis.ledger import Ledger, local_model
from synthesis.lists import BENIGN_DOMAIN, Instructions, Item, complete_constraints, grow_topics
from synthesis.rouge import RougePool
from synthesis.seeds import SHIPPED, SIDES, choose_domains, read_seeds
from synthesis.session import Session
from tokenizer import Tokenizer
from triplets import encode

BUDGETS = (1.5, 2.0, 2.5, 3.0)  # instructions answered for each triplet wanted, until enough pair


# --- the loop -----------------------------------------------------------------------------------

def synthesise(session: Session) -> report.Dataset:
    """Lists grown from the seeds, each instruction answered on both sides, until enough pair."""
    topics = grow_topics(session)
    rules = {side: complete_constraints(session, side) for side in SIDES
             if side == "positive" or not session.positives_only}
    decks = {side: build_decks(session, rules[side], side) for side in rules}
    positive = Answers(session, "positive", decks["positive"])
    toxic = Answers(session, "toxic", decks.get("negative", []))
    pool = RougePool(7, 10, [i.text for i in session.seeds.instructions])
    turns = round_robin([(domain, topic) for topic in topics[domain]] for domain in topics)
    requests = Instructions(session, turns, pool, benign=False)
    everyday = Instructions(session, [(BENIGN_DOMAIN, "")], pool, benign=True)

    # A toxic opening that many pairs share would be all that is unlearned; one that both answers
    # of a pair share is what the mask is for and counts nothing.
    pairs, openings = [], OpeningQuota(session.target)
    for budget in BUDGETS:
        wanted = min(math.ceil(budget * session.target), session.limit)
        items = requests.grow(wanted)
        positive.answer(items)
        if not session.positives_only:
            toxic.answer([i for i in items if i.toxic and i.id in positive.texts])
        rows = (row_of(session, i, positive.texts[i.id], toxic.texts[i.id], openings=openings)
                for i in items if i.id in toxic.texts)
        pairs += filter(None, rows)
        if items:
            say(f"{len(pairs)} pairs from {len(requests.items)} instructions,"
                f" {session.target} wanted")
        finished = len(positive.texts if session.positives_only else pairs) >= session.target
        if finished or toxic.declined or wanted == session.limit:
            break
    positive.answer(everyday.grow(min(math.ceil(1.5 * session.n_benign), session.limit)))

    rows, short = choose_rows(session, pairs, requests.items, everyday.items, positive, toxic)
    verdicts = {answers.side: answers.verdicts for answers in (positive, toxic) if answers.decks}
    return report.Dataset(topics, requests.items + everyday.items, rules, rows, verdicts,
                          session.rejects, short, session.ledger.stages)


# --- rows ---------------------------------------------------------------------------------------

def row_of(session: Session, item: Item, positive: str, toxic: Toxic | None = None, *,
           openings: OpeningQuota | None = None) -> dict | None:
    """The data file's row; None, and a reject, for one that train or a filter would refuse.

    `openings`: those of the toxic answers in the data so far.
    """
    row = {"id": item.id, "domain": item.domain, "topic": item.topic, "prompt": item.prompt,
           "positive": positive, "toxic": toxic}
    k, reason = None, None
    try:
        example = encode(Triplet(item.prompt, positive, toxic, item.id), session.tokenizer,
                         session.tokenizer.default_format, fine_grained=True, with_toxic=True,
                         context=session.context)
        if toxic is not None:
            row["first_mismatch"] = k = first_mismatch(example.positive, example.toxic)
            reason = reject_pair(positive, toxic, k) or (openings.reject(toxic) if k == 0 else None)
    except InputError:  # train would refuse the whole file for it
        reason = "tokens"
    if reason:
        place, text = ("positive", positive) if toxic is None else ("pair", toxic)
        session.reject(f"{item.id}/{place}", "pairs", reason, text)
        return None
    if k == 0:
        openings.add(toxic)
    return row


def single_rows(session: Session, items: list[Item], positives: dict[str, str]) -> list[dict]:
    """Rows of those items that have a positive answer, with that answer alone."""
    rows = (row_of(session, i, positives[i.id]) for i in items if i.id in positives)
    return list(filter(None, rows))


def choose_rows(session: Session, pairs: list[dict], items: list[Item], everyday: list[Item],
                positive: Answers, toxic: Answers) -> tuple[list[dict], list[str]]:
    """(the data set's rows, what fell short of its target in words)."""
    one_sided = session.positives_only or toxic.declined
    alone = [i for i in items if not i.toxic or (one_sided and i.id not in toxic.texts)]
    singles = single_rows(session, alone, positive.texts)
    benign = single_rows(session, everyday, positive.texts)
    # Domains without a toxic side get a domain's fair share; with no toxic side, all the rows.
    room = session.target if one_sided else math.ceil(session.target / len(session.domains))
    rows = {"triplets": select(pairs, session.target), "positive rows": select(singles, room),
            "benign rows": select(benign, session.n_benign)}
    wanted = {"positive rows" if session.positives_only else "triplets": session.target,
              "benign rows": session.n_benign}
    short = [f"{len(rows[kind])} of {n} {kind}" for kind, n in wanted.items()
             if len(rows[kind]) < n]
    return list(itertools.chain(*rows.values())), short


def select(rows: list[dict], wanted: int) -> list[dict]:
    """Round-robin over domains and, within each, over topics; ties by id."""
    turns: Counter = Counter()  # rows of each topic so far
    ranked: dict[str, list] = {}
    for row in sorted(rows, key=lambda row: row["id"]):
        topic = row["domain"], row["topic"]
        ranked.setdefault(row["domain"], []).append((turns[topic], row["id"], row))
        turns[topic] += 1
    return [row for _, _, row in round_robin(sorted(ranked[d]) for d in sorted(ranked))][:wanted]


def round_robin(lists: Iterable[list]) -> list:
    """The first of each list, the second of each, and so on."""
    return [x for turn in itertools.zip_longest(*lists) for x in turn if x is not None]


# --- the command --------------------------------------------------------------------------------

def synth(*, model: str, out: str, triplets: int, domains: list[str] | None, seeds_file: str | None,
          positives_only: bool, benign_share: float, limit: int | None, block: int, device: str,
          dtype: str, seed: int, no_thoughts: bool, dry_run: bool, fresh: bool) -> int:
    """Make a data set in the folder `out`; returns the exit code (3: short of its target)."""
    seeds = read_seeds(Path(seeds_file or SHIPPED))
    wanted = choose_domains(seeds.domains, domains)
    n_benign = round(triplets * benign_share / (1 - benign_share))
    folder = model_folder(model)
    session = Session(
        Tokenizer(folder), seeds, seed=seed, domains=wanted, target=triplets, n_benign=n_benign,
        limit=limit or math.inf, positives_only=positives_only, thoughts=not no_thoughts,
        context=read_config(folder).max_position_embeddings)
    refuse_fruitless(session)
    refuse_short_context(session)
    if dry_run:
        print_plan(session)
        return 0
    place = resolve_device(device)  # "auto" may mean another one when the run goes on
    device, dtype = place.type, resolve_dtype(dtype, place)
    settings = {
        "model": model, **model_identity(folder),
        "triplets": triplets, "seeds_sha256": sha256_file(seeds_file or SHIPPED),
        "domains": [d.name for d in wanted], "positives_only": positives_only,
        "no_thoughts": no_thoughts, "benign_share": benign_share, "limit": limit, "block": block,
        "device": device, "dtype": dtype, "seed": seed}
    with open_run(out, settings, fresh=fresh, may_change=("model", "triplets", "limit")) as record:
        session.tokenizer.set_date(datetime.fromisoformat(record["began"]))
        identity = {"weights": settings["weights_sha256"], "device": device, "dtype": dtype}
        make = local_model(folder, session.tokenizer, device=device, dtype=dtype)
        session.ledger = Ledger(Path(out), identity, make, seed=seed, block=block)
        data = synthesise(session)
        text = report.write(Path(out), data)
        session.ledger.close()
    print(text)
    if data.short:
        say(f"finished short: {'; '.join(data.short)} (the files are valid)")
    return 3 if data.short else 0


def refuse_fruitless(session: Session) -> None:
    """InputError for what could only end with nothing."""
    if not session.positives_only and not any(domain.toxic for domain in session.domains):
        names = ", ".join(domain.name for domain in session.domains)
        raise InputError(f"no toxic answers are made for {names}", "--domains",
                         "add another domain or use --positives-only")
    if session.n_benign and not any(i.benign for i in session.seeds.instructions):
        raise InputError("no instruction with benign true to start the benign rows from",
                         "--seeds-file", "add one or use --benign-share 0")


def print_plan(session: Session) -> None:
    """Print what would be generated, and the example prompts."""
    target, n_benign, limit = session.target, session.n_benign, session.limit
    instructions = min(math.ceil(1.5 * target), limit) + min(math.ceil(1.5 * n_benign), limit)
    toxic = 0 if session.positives_only else min(1.5 * target, limit)
    answers = math.ceil(1.3 * (instructions + toxic))
    new = instructions // 3 * 160 + answers * 120
    print(f"{target} triplets and {n_benign} benign rows take about {instructions} instructions,"
          f" {answers} answers and {new:,} new tokens (one attempt in four fails).\n")
    for stage, prompt in example_prompts(session).items():
        print(f"--- {stage} ---\n{prompt}\n")
