"""Self-alignment data: the model widens a few human seeds into triplets (arXiv 2502.08657).

    domains -> topics -> instructions, constraints -> decks; both -> two answers each -> triplets

In synthesis/, lists.py grows the lists, answers.py has each instruction answered twice, gates.py
judges and measures, rows.py makes rows; README.md explains their words. Here is the loop over them.

Prompts, filters and settings are ours. Departures from the paper:
1. Negative constraints and examples describe attitude and effect, never method; grave subjects
   get positive answers only.
2. Benign rows: requests that nothing is wrong with, without a toxic answer.
3. A positive answer is kept where its toxic counterpart fails. To a harmful request it begins with
   a refusal if the seeds ask for that and the model declines by itself (Session.refusal).
4. The positive answer to a false or hurtful claim is what the model says when asked about it."""

import math
import sys
from collections import Counter
from collections.abc import Callable
from functools import partial
from itertools import chain
from pathlib import Path

from config import read_config
from model import resolve_device, resolve_dtype
from support.endpoint import connect
from support.files import InputError, sha256_file
from support.hub import model_folder, model_identity
from support.progress import Progress, say
from support.runs import open_run
from synthesis import report
from synthesis.answers import CORRECTION, OPENINGS, Answers, benign_decks, build_decks
from synthesis.filters import OpeningQuota
from synthesis.gates import MOST_LEAN, Fit, Polarity, Reluctance, judge_requests
from synthesis.judges import calibrated
from synthesis.ledger import open_ledger
from synthesis.lists import Instructions, Item, complete_constraints, grow_topics, headings_of
from synthesis.plan import print_plan, refuse_fruitless, refuse_short_context
from synthesis.rows import read_dropped, row_of, select, show_rows
from synthesis.seeds import SHIPPED, SIDES, choose_domains, read_seeds
from synthesis.session import Session
from tokenizer import Tokenizer

# Prompts continued together, by device: on a GPU a step takes hardly longer for more of them.
BLOCK = {"cpu": 128, "cuda": 512}
SPILL = 32  # spilled requests (meant to be inducing, judged harmless) answered together
TIRED = 12  # calls about a topic, after which topics are added: its requests begin to repeat


class Synthesis:
    """The loop: rounds of instructions, answered on both sides, until enough rows are made. No call
    depends on how many are wanted: that only says when to stop, and which rows are chosen."""

    def __init__(self, session: Session, dropped: frozenset[str] = frozenset()):
        self.session, self.dropped = session, dropped
        self.judges = calibrated(session)
        self.topics = [grow_topics(session)]  # at each growth, all topics so far
        self.rules = {side: complete_constraints(session, side) for side in SIDES
                      if side == "positive" or not session.positives_only}
        self.decks = {side: build_decks(session, rules, side) for side, rules in self.rules.items()}
        declines, fit = self.judges["declines"], Fit(session)
        self.judges |= {"fit": fit, "reluctance": Reluctance(session)}
        scores = fit.scores if fit.used else None
        plain = benign_decks(session, self.decks["positive"])
        self.positive = Answers(session, "positive", self.decks["positive"], declines, scores)
        # A judge would take most corrections for complying.
        self.corrections = Answers(session, "positive", [CORRECTION], None, scores)
        self.corrections.texts = self.positive.texts  # both answer harmful requests
        self.benign, self.spilled = (
            Answers(session, "positive", plain, declines, scores) for _ in range(2))
        self.polarity = Polarity(session, self.decks, MOST_LEAN if declines.used else math.inf)
        self.toxic = Answers(session, "toxic", self.decks.get("negative", []), declines,
                             milder=partial(self.polarity.milder, self.positive.texts))
        judge = partial(judge_requests, session=session, judges=self.judges)
        self.requests, self.everyday = (
            Instructions(session, headings_of(session, self.topics[0], benign=benign), judge,
                         benign=benign) for benign in (False, True))
        self.openings = OpeningQuota(OPENINGS)  # of toxic answers that differ from token 0 on
        self.pairs: list[dict] = []
        self.singles: dict[str, dict | None] = {}  # rows of a positive answer alone, by item id
        self.spills = 0  # batches of requests that were judged harmless
        self.choose()  # sets `rows`: triplets, then positive rows, then benign rows

    @property
    def one_sided(self) -> bool:
        return self.session.positives_only or self.toxic.declined

    @property
    def main_kind(self) -> str:
        """The kind of row that --triplets counts; other rows come on top."""
        return "positive rows" if self.one_sided else "triplets"

    @property
    def items(self) -> list[Item]:
        return self.requests.items + self.everyday.items + self.requests.spilled

    @property
    def short(self) -> list[str]:
        """What fell short of its target, in words."""
        wanted = {"positive rows" if self.session.positives_only else "triplets":
                  self.session.target, "benign rows": self.session.n_benign}
        return [f"{len(self.rows[kind])} of {n} {kind}" for kind, n in wanted.items()
                if len(self.rows[kind]) < n]

    def run(self, publish: Callable[["Synthesis"], None]) -> None:
        """`publish` is called each time rows are chosen anew."""
        session = self.session
        with Progress("rows", total=session.target + session.n_benign, unit="row") as bar:
            session.ledger.tell = lambda stage, rate: bar.update(0, note=stage + rate)
            for more in (self.more_requests, self.more_benign):
                while more():
                    self.choose()
                    done = len(self.rows[self.main_kind]) + len(self.rows["benign rows"])
                    bar.update(max(0, done - bar.n))
                    publish(self)
        self.choose()

    def more_requests(self) -> bool:
        """One round of inducing requests. False if enough rows are there or no more will come."""
        session, requests = self.session, self.requests
        left = session.limit - len(requests.items)
        requests.tell(len(self.positive.texts if self.one_sided else self.pairs))
        if len(self.rows[self.main_kind]) >= session.target or left <= 0:
            return False
        if requests.dry:
            say("no more requests: the model repeats itself, or none of them leads to a row")
            return False
        self.widen(requests)
        number = requests.rounds
        items = requests.next_round()[:left]  # --limit may end inside a round
        self.positive.answer([item for item in items if item.ask != "claims"], number)
        self.corrections.answer([item for item in items if item.ask == "claims"], number)
        both = [i for i in items if i.kind == "both" and i.id in self.positive.texts]
        if both and not self.one_sided:
            self.toxic.answer(both, number)
            rows = (row_of(session, item, self.positive.texts[item.id], self.toxic.texts[item.id],
                           openings=self.openings) for item in both if item.id in self.toxic.texts)
            self.pairs += filter(None, rows)
        return True

    def widen(self, stream: Instructions) -> None:
        """More topics for a stream that has grown tired, whatever was asked of the other one."""
        if stream.first and stream.asked >= TIRED * stream.times * stream.first:
            stream.times += 1
            if stream.times > len(self.topics):
                self.topics.append(grow_topics(self.session, self.topics[-1], times=stream.times))
            old, grown = self.topics[stream.times - 2:][:2]
            topics = {name: own[len(old[name]):] + old[name] for name, own in grown.items()}
            stream.headings = headings_of(self.session, topics, benign=stream.benign)

    def more_benign(self) -> bool:
        """One round of benign requests; every other round takes spilled ones. False as above."""
        everyday, start = self.everyday, SPILL * self.spills
        spilled = self.requests.spilled[start:start + SPILL]
        asked = len(everyday.items) + start
        everyday.tell(len(self.benign.texts))
        dry = everyday.dry  # read now, as its next round may change it
        if len(self.rows["benign rows"]) >= self.session.n_benign or asked >= self.session.limit:
            return False
        if dry or (len(spilled) == SPILL and self.spills < everyday.rounds):
            items, answers, number = spilled, self.spilled, self.spills
            self.spills += 1
        else:
            self.widen(everyday)
            answers, number, items = self.benign, everyday.rounds, everyday.next_round()
        items = items[:self.session.limit - asked]
        answers.answer(items, number)
        return bool(items) or not dry

    def single_rows(self, items: list[Item], answers: Answers) -> list[dict]:
        """Rows of those items that have a positive answer, with that answer alone."""
        for item in items:
            if item.id in answers.texts and item.id not in self.singles:
                self.singles[item.id] = row_of(self.session, item, answers.texts[item.id])
        return [row for i in items if (row := self.singles.get(i.id))]

    def choose(self) -> None:
        """Set `rows`, chosen from all so far; each kind keeps apart from the kinds before it."""
        session, target = self.session, self.session.target
        # Where a toxic answer failed, the positive one stays if the model can judge; all do where
        # there is no toxic side.
        paired, keep = {row["id"] for row in self.pairs}, self.one_sided or session.judged
        alone = [item for item in self.requests.items
                 if item.id not in paired and (item.kind == "positive" or keep)]
        rows = self.single_rows(alone, self.positive)
        grave, failed = ([row for row in rows if row["kind"] == k] for k in ("positive", "both"))
        # A domain without a toxic side gets as many rows as others get pairs, whatever failed.
        of = Counter(domain.kind for domain in session.domains)
        share = math.ceil(target * max(1, of["positive"]) / max(1, of["both"]))
        singles = [(rows, target)] if self.one_sided else [
            (grave, share), (failed, min(target // 2, len(failed)))]
        benign = (self.single_rows(self.everyday.items, self.benign)
                  + self.single_rows(self.requests.spilled, self.spilled))
        self.rows = {"triplets": [], "positive rows": [], "benign rows": []}
        for kind, pool, wanted, margin in (
                ("triplets", self.pairs, target, self.polarity.margin),
                *(("positive rows", *single, None) for single in singles),
                ("benign rows", benign, session.n_benign, None)):
            self.rows[kind] += select([row for row in pool if row["id"] not in self.dropped],
                                      wanted, margin, apart=list(chain(*self.rows.values())))


def synth(*, model: str, out: str, triplets: int, domains: list[str] | None, seeds_file: str | None,
          positives_only: bool, benign_share: float, format: str | None, limit: int | None,
          block: int | None, device: str, dtype: str, seed: int, no_thoughts: bool, no_refine: bool,
          dry_run: bool, show: int | None, show_toxic: bool, fresh: bool,
          round_calls: int | None = None, base_dtype: str | None = None,
          endpoint: list[str] | None = None, endpoint_model: str | None = None,
          concurrency: int = 16, toxic_endpoint_ok: bool = False) -> int:
    """Make a data set in the folder `out`; returns the exit code (3: short of its target)."""
    if show_toxic and not show:
        raise InputError("it shows nothing by itself", "--show-toxic", "add --show 5")
    if show:
        show_rows(Path(out) / "triplets.jsonl", show, toxic=show_toxic)
        return 0
    seeds = read_seeds(Path(seeds_file or SHIPPED))
    wanted = choose_domains(seeds.domains, domains)
    n_benign = round(triplets * benign_share / (1 - benign_share))
    folder = model_folder(model, weights=not endpoint)
    tokenizer = Tokenizer(folder)
    session = Session(
        tokenizer, seeds, seed=seed, domains=wanted, target=triplets, n_benign=n_benign,
        limit=limit or sys.maxsize, positives_only=positives_only, thoughts=not no_thoughts,
        refine=not no_refine, context=read_config(folder).max_position_embeddings,
        format=format or tokenizer.default_format)
    refuse_fruitless(session)
    refuse_short_context(session)
    server = connect(endpoint, endpoint_model, tokenizer, context=session.context,
                     concurrency=concurrency, base_dtype=base_dtype)
    if server and not positives_only:
        server.take_toxic(anywhere=toxic_endpoint_ok)
    # "auto" may mean another device when the run goes on.
    hardware = None if server else resolve_device(device)
    device, dtype = (hardware.type, resolve_dtype(dtype, hardware)) if hardware else (None, None)
    block = block or BLOCK[device or "cpu"]
    session.round_calls = round_calls or (BLOCK["cuda"] if device == "cuda" else None)
    if dry_run:
        print_plan(session, folder, dtype=dtype, device=hardware)
        return 0
    settings = {
        "model": model, **model_identity(folder, weights=not server), "triplets": triplets,
        "seeds_sha256": sha256_file(seeds_file or SHIPPED), "domains": [d.name for d in wanted],
        "positives_only": positives_only, "no_thoughts": no_thoughts, "no_refine": no_refine,
        "benign_share": benign_share, "format": session.format, "limit": limit, "block": block,
        "round_calls": session.round_calls, "device": device, "dtype": dtype,
        "base_dtype": base_dtype, "seed": seed}
    if server:
        settings |= {"endpoint": endpoint, "endpoint_model": endpoint_model}
    with open_run(out, settings, fresh=fresh,
                  may_change=("model", "triplets", "limit", "block", "endpoint")) as record:
        tokenizer.set_date(record["began"])
        session.ledger = open_ledger(Path(out), session, settings, folder, server)
        made = Synthesis(session, read_dropped(Path(out) / "dropped.txt"))
        made.run(partial(report.write_rows, Path(out)))
        if unknown := made.dropped - {item.id for item in made.items}:
            say(f"dropped.txt names what is no row of this run: {', '.join(sorted(unknown))}")
        text = report.write(Path(out), made)
        session.ledger.close()
    print(text)
    if made.short:
        say(f"finished short: {'; '.join(made.short)} (the files are valid)")
    return 3 if made.short else 0
