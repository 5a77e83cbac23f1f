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

import math
from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from losses import first_mismatch
from model import read_config, resolve_device
from support.files import InputError, sha256_file, write_atomic, write_json
from support.hub import model_folder, model_identity
from support.progress import say
from support.runs import open_run
from synthesis import report
from synthesis.answers import ANSWER_TOKENS, RULES, Answers, answer_prompt, build_decks
from synthesis.filters import RULE_WORDS, OpeningQuota, reject_pair
from synthesis.ledger import open_ledger
from synthesis.lists import (
    BENIGN_DOMAIN,
    Instructions,
    Item,
    Run,
    complete_constraints,
    constraint_prompt,
    grow_topics,
    instruction_prompt,
    topic_prompt,
)
from synthesis.seeds import SHIPPED, Domain, Seeds, choose_domains, read_seeds, refuse_fruitless
from tokenizer import Tokenizer
from triplets import Example, Toxic, Triplet, encode

SEED_SIDE = {"positive": "positive", "toxic": "negative"}  # of an answer's side


# --- triplets -----------------------------------------------------------------------------------

BUDGETS = (1.5, 2.0, 2.5, 3.0)  # instructions answered for each triplet wanted, until enough pair


def example_of(run: Run, item: Item, positive: str, toxic: Toxic | None = None) -> Example | None:
    """What train makes of a row; None, and a reject, where it would refuse the file for it."""
    try:
        return encode(Triplet(item.prompt, positive, toxic, item.id), run.tokenizer, run.format,
                      fine_grained=True, with_toxic=True, context=run.context)
    except InputError:
        place = "positive" if toxic is None else "pair"
        run.reject(f"{item.id}/{place}", "pairs", "tokens", positive if toxic is None else toxic)
        return None


def pair_row(run: Run, item: Item, positive: str, toxic: Toxic, quota: OpeningQuota) -> dict | None:
    """The data file's row, or None where the two answers make no pair."""
    example = example_of(run, item, positive, toxic)
    if example is None:
        return None
    k, n_toxic = first_mismatch(example.positive, example.toxic), len(example.toxic)
    reason = reject_pair(positive, toxic, n_toxic if k is None else k, n_toxic)
    if reason is None and k == 0 and quota.full(toxic):
        reason = "opening"
    if reason:
        run.reject(f"{item.id}/pair", "pairs", reason, toxic)
        return None
    if k == 0:
        quota.add(toxic)
    return {**row_of(item, positive), "toxic": toxic, "first_mismatch": k}


def row_of(item: Item, positive: str) -> dict:
    return {"id": item.id, "domain": item.domain, "topic": item.topic, "prompt": item.prompt,
            "positive": positive, "toxic": None}


def single_rows(run: Run, items: list[Item], positives: dict[str, str]) -> list[dict]:
    """Rows of those items that have a positive answer, with that answer alone."""
    return [row_of(item, positives[item.id]) for item in items
            if item.id in positives and example_of(run, item, positives[item.id]) is not None]


def select(rows: list[dict], wanted: int) -> list[dict]:
    """Round-robin over domains and, within each, over topics; ties by id."""
    turn: Counter = Counter()
    ranked = []
    for row in sorted(rows, key=lambda row: row["id"]):
        of_topic = turn[row["domain"], row["topic"]]
        turn[row["domain"], row["topic"]] += 1
        ranked.append((of_topic, row["id"], row))
    by_domain: dict[str, list] = {}
    for entry in sorted(ranked, key=lambda entry: entry[:2]):
        by_domain.setdefault(entry[2]["domain"], []).append(entry[2])
    depth = max(map(len, by_domain.values()), default=0)
    order = [own[i] for i in range(depth) for _, own in sorted(by_domain.items()) if i < len(own)]
    return order[:wanted]


@dataclass(frozen=True)
class Dataset:
    """All that synthesis made, ready to be written."""

    topics: dict[str, list[str]]
    items: list[Item]
    constraints: dict[str, list[str]]
    rows: list[dict]  # triplets first, then positive-only rows, then benign ones
    verdicts: dict[str, Counter]
    short: list[str]  # what fell short of its target, in words


def synthesise(run: Run, domains: list[Domain], *, positives_only: bool, n_benign: int,
               limit: int | None, thoughts: bool = True) -> Dataset:
    """The whole loop. `limit` bounds the instructions that are answered (a trial run)."""
    topics = grow_topics(run, domains)
    depth = max(map(len, topics.values()))
    turns = [(d.name, topics[d.name][i]) for i in range(depth) for d in domains
             if i < len(topics[d.name])]
    constraints = {side: complete_constraints(run, side)
                   for side in SEED_SIDE.values() if side == "positive" or not positives_only}
    sides = {side: Answers(run, side, build_decks(run, constraints[own], own, thoughts=thoughts))
             for side, own in SEED_SIDE.items() if own in constraints}
    requests, pairs = Instructions(run, turns, benign=False), []
    # A toxic opening that many pairs share would be all that is unlearned; one that both answers
    # of a pair share is what the mask is for and counts nothing.
    openings = OpeningQuota(run.target)
    declined = False
    for budget in BUDGETS:
        wanted = min(math.ceil(budget * run.target), limit or math.inf)
        items = requests.grow(wanted) if turns else []
        answer_both(items, sides)
        rows = [pair_row(run, item, sides["positive"].texts[item.id],
                         sides["toxic"].texts[item.id], openings)
                for item in items if "toxic" in sides and item.id in sides["toxic"].texts]
        pairs += [row for row in rows if row is not None]
        if items:
            say(f"{len(pairs)} pairs from {len(requests.items)} instructions, {run.target} wanted")
        declined = "toxic" in sides and sides["toxic"].stopped
        ready = len(sides["positive"].texts if positives_only else pairs) >= run.target
        if ready or declined or wanted == limit:
            break
    everyday = Instructions(run, [(BENIGN_DOMAIN, "")], benign=True, pool=requests.pool)
    if n_benign:
        answer_both(everyday.grow(min(math.ceil(1.5 * n_benign), limit or math.inf)), sides)

    positives = sides["positive"].texts
    alone = single_rows(run, [item for item in requests.items if positives_only or not item.toxic
                              or (declined and item.id not in sides["toxic"].texts)], positives)
    benign = single_rows(run, everyday.items, positives)
    triplets = select(pairs, run.target)
    # Domains without a toxic side get a domain's fair share; with no toxic side, all the rows.
    room = run.target if positives_only or declined else math.ceil(run.target / len(domains))
    singles, benign = select(alone, room), select(benign, n_benign)
    short = [f"{len(rows)} of {wanted} {what}" for rows, wanted, what in (
        (singles, run.target, "positive rows") if positives_only
        else (triplets, run.target, "triplets"),
        (benign, n_benign, "benign rows")) if len(rows) < wanted]
    return Dataset(topics, requests.items + everyday.items, constraints,
                   triplets + singles + benign,
                   {side: answers.verdicts for side, answers in sides.items()}, short)


def answer_both(items: list[Item], sides: dict[str, Answers]) -> None:
    """Positive answers, then toxic ones to the items that have one and may get the other."""
    sides["positive"].answer(items)
    if "toxic" in sides:
        answered = sides["positive"].texts
        sides["toxic"].answer([i for i in items if i.toxic and i.id in answered])


# --- the command --------------------------------------------------------------------------------

def synth(*, model: str, out: str, triplets: int, domains: list[str] | None, seeds_file: str | None,
          positives_only: bool, benign_share: float, limit: int | None, block: int, device: str,
          dtype: str, seed: int, no_thoughts: bool, dry_run: bool, fresh: bool) -> int:
    """Make a data set in the folder `out`; returns the exit code (3: short of its target)."""
    seeds = read_seeds(Path(seeds_file or SHIPPED))
    chosen = choose_domains(seeds.domains, domains)
    n_benign = round(triplets * benign_share / (1 - benign_share))
    refuse_fruitless(seeds, chosen, positives_only=positives_only, n_benign=n_benign)
    folder, out = model_folder(model), Path(out)
    tokenizer, context = Tokenizer(folder), read_config(folder).max_position_embeddings
    prompts = example_prompts(tokenizer, seeds, chosen, seed)
    refuse_short_context(context, tokenizer, seeds, prompts)
    if dry_run:
        return report.preview(prompts, triplets=triplets, n_benign=n_benign, limit=limit,
                                positives_only=positives_only)
    device = resolve_device(device).type  # "auto" may mean another one when the run goes on
    settings = {
        "model": model, **model_identity(folder),
        "triplets": triplets, "seeds_sha256": sha256_file(seeds_file or SHIPPED),
        "domains": [d.name for d in chosen], "positives_only": positives_only,
        "no_thoughts": no_thoughts,
        "benign_share": benign_share, "limit": limit, "block": block, "device": device,
        "dtype": dtype, "seed": seed}
    with open_run(out, settings, fresh=fresh, may_change=("model", "triplets", "limit")) as record:
        # A template that prints the date gets the run's first day, also when resumed.
        tokenizer = Tokenizer(folder, today=datetime.fromisoformat(record["began"]))
        identity = {"weights": settings["weights_sha256"], "device": device, "dtype": dtype}
        ledger = open_ledger(out, folder, tokenizer, identity, seed=seed, block=block)
        run = Run(tokenizer, tokenizer.default_format, ledger, seeds, seed, triplets, context)
        data = synthesise(run, chosen, positives_only=positives_only, n_benign=n_benign,
                          limit=limit, thoughts=not no_thoughts)
        report.write_files(out, topics=data.topics, items=data.items, rows=data.rows,
                             constraints=data.constraints, rejects=run.rejects)
        card = report.describe(data.rows, topics=data.topics, verdicts=data.verdicts,
                                 rejects=run.rejects, short=data.short, calls=ledger.stages)
        write_json(out / "report.json", card)
        write_atomic(out / "report.md", report.as_markdown(card))
        ledger.close()
    print(report.as_markdown(card))
    if data.short:
        say(f"finished short: {'; '.join(data.short)} (the files are valid)")
    return 3 if data.short else 0


def example_prompts(tokenizer: Tokenizer, seeds: Seeds, domains: list[Domain], seed: int) -> dict:
    """One whole prompt of each stage but the toxic one, as the model would see it."""
    run = Run(tokenizer, tokenizer.default_format, None, seeds, seed, target=1)
    rules = list(seeds.constraints["positive"])
    deck = build_decks(run, rules, "positive")[0]
    shown = [i.text for i in seeds.instructions if not i.benign]
    return {"topics": topic_prompt(run, domains[0], []),
            "instructions": instruction_prompt(run, domains[0].name, shown),
            "constraints": constraint_prompt(run, "positive"),
            "positive answers": answer_prompt(run, deck, shown[0])}


def refuse_short_context(context: int, tokenizer: Tokenizer, seeds: Seeds,
                         prompts: dict[str, str]) -> None:
    """An estimate from the seeds, told before anything is generated and paid for.

    The examples' prompts have the seeds' few rules; a deck may have RULES of the longest.
    """
    words = " ".join(seeds.constraints["positive"]).split()
    rule = " ".join((words * RULE_WORDS)[:RULE_WORDS])
    rules = RULES * len(tokenizer.encode(f"- {rule}\n"))
    needed = rules + max(len(tokenizer.encode(p)) for p in prompts.values()) + ANSWER_TOKENS
    if needed > context:
        raise InputError(f"prompts and answers need {needed} tokens, the context holds {context}",
                         f"--model {tokenizer.folder}", "use one with a longer context")
