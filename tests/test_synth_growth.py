"""Data that grow: larger targets, other blocks, rows to look at and to strike out."""

import json
import random
import re
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import pytest
from scribe import CLAIMS, MARK, NEGATIVE, Scribe, instruction, listed
from test_synth import TARGET, long_folder, report, rows_of, run  # noqa: F401 (fixtures)

import ptalign
import synth
from generate import Completion
from synthesis import judges
from synthesis.answers import Answers, build_decks
from synthesis.claims import claim_of
from synthesis.gates import judge_requests
from synthesis.ledger import Ledger
from synthesis.lists import (
    INSTRUCTION_SAMPLING,
    Heading,
    Instructions,
    Item,
    headings_of,
    instruction_prompt,
    round_robin,
)
from synthesis.rows import choose
from synthesis.seeds import read_seeds
from synthesis.session import PROMPTS, Session
from tokenizer import Tokenizer


@pytest.fixture
def session(long_folder):
    return Session(Tokenizer(long_folder), read_seeds(), SimpleNamespace(measures=True), target=64)


@pytest.mark.parametrize("judges, tired, benign", [
    (False, synth.TIRED, "0.2"), (True, synth.TIRED, "0.2"), (False, 0.1, "0.8")])  # topics grow
def test_a_larger_run_reuses_every_call(run, tmp_path, monkeypatch, judges, tired, benign):
    """Nothing but the end depends on the target: the calls of a smaller run come first, and both
    streams ask for more topics by their own count."""
    monkeypatch.setattr(synth, "TIRED", tired)

    def grow(out, triplets):
        assert run(tmp_path / out, "--triplets", triplets, "--benign-share", benign,
                   scribe=Scribe(judges=judges)) == 0
        return rows_of(tmp_path / out, "calls")
    before, after = grow("grown", "30"), grow("grown", "60")
    assert after[:len(before)] == before and len(after) > len(before)
    assert {row["block"] for row in grow("whole", "60")} == {row["block"] for row in after}
    assert rows_of(tmp_path / "whole") == rows_of(tmp_path / "grown")


def test_requests_about_no_topic_do_not_tire(session, monkeypatch):
    """Seeds without a harmless domain: no topics are grown for what has none."""
    alone = replace(session, domains=[d for d in session.seeds.domains if d.kind != "benign"])
    grown = []
    monkeypatch.setattr(synth, "grow_topics", lambda *_, times: grown.append(times) or topics)
    topics = {d.name: [f"{d.name} {i}" for i in range(2)] for d in alone.domains}
    run = SimpleNamespace(session=alone, topics=[topics])
    for benign in (True, False):
        stream = Instructions(alone, headings_of(alone, topics, benign=benign), None, benign=benign)
        for stream.asked in (1000, 1001):
            synth.Synthesis.widen(run, stream)
    assert grown == [2, 3]  # by the requests alone


def test_new_topics_are_asked_for_first(session, monkeypatch):
    """A tired stream ends after a few poor rounds, so it must not go over the old ones before."""
    session.domains = [d for d in session.seeds.domains if d.kind == "both"][:2]
    names = [domain.name for domain in session.domains]
    all_of = [{name: [f"topic {i}" for i in range(2 * times)] for name in names}
              for times in (1, 2, 3)]
    monkeypatch.setattr(synth, "grow_topics", lambda *_, times: all_of[times - 1])
    run = SimpleNamespace(session=session, topics=all_of[:1])
    stream = Instructions(session, headings_of(session, all_of[0], benign=False), None,
                          benign=False)
    for first in (["2", "2", "3", "3"], ["4", "4", "5", "5"]):
        stream.asked += 1000
        synth.Synthesis.widen(run, stream)
        assert [heading.topic[-1] for heading in stream.headings[:4]] == first
        assert len(stream.headings) == 2 * len(run.topics[-1][names[0]])


def test_claims_are_asked_for_where_words_do_the_harm(session):
    """Of a domain with claims; such a call sees no request of another kind."""
    session.domains = [d for d in session.seeds.domains if d.name in ("hate", "fraud")]
    headings = headings_of(session, {"hate": ["accents", "faiths"], "fraud": ["forgery", "scams"]},
                     benign=False)
    assert [(t.domain, t.topic, t.ask) for t in headings] == [
        ("hate", "accents", "claims"), ("fraud", "forgery", "instructions"),
        ("hate", "faiths", "claims"), ("fraud", "scams", "instructions")]
    stream = Instructions(session, headings, None, benign=False)
    stream.items = [Item(str(i), "hate", "jokes", f"Explain why {ask} are {i}.", "both", ask)
                    for i, ask in enumerate(("instructions", "claims") * 3)]
    for heading in headings:
        shown, human = stream._shown("call", heading), session.seeds.asked(heading.ask)
        claims = heading.ask == "claims"
        own = [text for text in shown if text not in (map(claim_of, human) if claims else human)]
        assert len(shown) == 6 and len(own) == 2
        assert all(text.startswith("Claims are" if claims else "Explain why instructions")
                   for text in own)
    assert stream.first == 4  # topics
    prompt = instruction_prompt(session, headings[0].about, ["f1"], ask="claims")
    assert PROMPTS["claims"]["system"] in prompt and PROMPTS["claims"]["all_sorts"] in prompt


def test_benign_requests_are_about_the_topics_of_all_domains(session):
    names = ("fraud", "hate", "self-harm and dangerous acts", "everyday life")
    session.domains = [d for d in session.seeds.domains if d.name in names]
    topics = {d.name: [f"{d.name} {i}" for i in range(2)] for d in session.domains}
    session.judged = True
    headings = headings_of(session, topics, benign=True)
    assert len(headings) == 8 and {heading.kind for heading in headings} == {"benign"}
    assert {heading.ask for heading in headings if heading.domain == "everyday life"} == {"benign"}
    others = [heading for heading in headings if heading.domain != "everyday life"]
    assert Counter(heading.ask for heading in others) == {"lookalike": 3, "tasks": 3}
    about = {heading.topic: heading.about for heading in headings}
    assert about["fraud 1"] == "fraud 1 (fraud)" and about["everyday life 0"] == "everyday life 0"
    prompt = instruction_prompt(session, "fraud 1 (fraud)", session.seeds.asked("lookalike"),
                                ask="lookalike")
    assert "Questions about fraud 1 (fraud) that nothing is wrong with:" in prompt
    # Where seeds show none, or the model cannot judge, they are about benign domains alone.
    plain = [i for i in session.seeds.instructions if not i.benign or i.domain == "everyday life"]
    for alone in (replace(session, seeds=session.seeds._replace(instructions=tuple(plain))),
                  replace(session, judged=False)):
        assert {own.domain for own in headings_of(alone, topics, benign=True)} == {"everyday life"}


def test_a_positive_answer_stays_where_the_toxic_one_failed(run, tmp_path, monkeypatch):
    monkeypatch.setattr("synthesis.rows.reject_pair",
                        lambda good, bad, k: "equal" if len(bad) % 2 else None)
    for able in (True, False):
        out = tmp_path / str(able)
        assert run(out, scribe=Scribe(judges=able)) == 0
        rows = rows_of(out)
        kinds = Counter(row["kind"] for row in rows if row["toxic"] is None)
        assert bool(kinds["both"]) == able and kinds["positive"] and kinds["benign"]
        assert kinds["both"] + kinds["positive"] <= TARGET // 2 + TARGET / 9 + 1
        assert len({row["id"] for row in rows}) == len(rows)
        assert report(out)["triplets"] == TARGET


def test_failed_pairs_take_no_room_from_a_domain_without_a_toxic_side(run, tmp_path, monkeypatch):
    """It gets as many rows as others get pairs, however many positive answers are left over."""
    monkeypatch.setattr("synthesis.rows.reject_pair",
                        lambda good, bad, k: "equal" if len(bad) % 3 else None)
    assert run(tmp_path / "run", "--triplets", "72", scribe=Scribe(judges=True)) == 0
    singles = Counter(row["kind"] for row in rows_of(tmp_path / "run") if row["toxic"] is None)
    assert singles["positive"] == 72 / 9 and singles["both"] == 72 / 2


def test_every_other_topic_gives_facts_where_claims_are_corrected(session):
    """Of all domains; they are listed without sentences of people, and framed like claims."""
    session.domains = [d for d in session.seeds.domains if d.name in ("fraud", "everyday life")]
    topics = {d.name: [f"{d.name} {i}" for i in range(3)] for d in session.domains}
    session.judged = session.knowing = True
    headings = headings_of(session, topics, benign=True)
    assert [(heading.topic[-1], heading.ask) for heading in headings] == [
        ("0", "lookalike"), ("0", "facts"), ("1", "facts"), ("1", "benign"), ("2", "tasks"),
        ("2", "facts")]
    assert not {t.ask for t in headings_of(session, topics, benign=False)} & {"facts", "claims"}
    stream = Instructions(session, headings, None, benign=True)
    assert stream._shown("call", headings[2]) == []
    stream.items = [Item("b/0", "fraud", "jokes", "Explain why it rains.", "benign", "facts")]
    assert stream._shown("call", headings[2]) == ["It rains."]  # without its frame
    for shown in ([], ["It rains."]):
        prompt = instruction_prompt(session, headings[2].about, shown, ask="facts")
        assert PROMPTS["facts"]["system"] in prompt
        assert (PROMPTS["facts"]["all_sorts"] in prompt) == bool(shown)


@pytest.mark.parametrize("options, told", [
    (("--positives-only",), f"{TARGET} positive rows and 9 benign rows take about"),
    (("--limit", "10"), "5 triplets and 9 benign rows take about 10 instructions")])
def test_dry_run_counts_what_is_made(run, tmp_path, capsys, options, told):
    tokens = []
    for more in ((), options):
        assert run(tmp_path / "run", "--dry-run", *more, scribe=Scribe(stop_at=0)) == 0
        printed = capsys.readouterr().out
        tokens.append(int(re.search(r"([\d,]+) new tokens", printed)[1].replace(",", "")))
    assert told in printed and tokens[1] < tokens[0]


def test_block_may_change(run, tmp_path):
    scribe = Scribe(stop_at=20)
    assert run(tmp_path / "run", scribe=scribe) == 130
    assert run(tmp_path / "run", "--block", "5") == 0
    again = Scribe(stop_at=0)
    assert run(tmp_path / "run", "--block", "16", scribe=again) == 0


def test_rows_are_there_while_it_runs(run, tmp_path):
    counter = Scribe()
    assert run(tmp_path / "whole", scribe=counter) == 0
    assert run(tmp_path / "run", scribe=Scribe(stop_at=counter.blocks - 3)) == 130
    rows = rows_of(tmp_path / "run")
    assert rows and (tmp_path / "run" / "triplets.jsonl").stat().st_mode & 0o777 == 0o600
    assert not (tmp_path / "run" / "report.json").exists()


def test_dropped_rows_stay_out(run, tmp_path, capsys):
    out = tmp_path / "run"
    assert run(out) == 0
    gone = [row["id"] for row in rows_of(out)[:5]]
    (out / "dropped.txt").write_text(", ".join(f"[{id}]" for id in [*gone, "i/999999", "b/12"]))
    assert run(out) == 0
    assert "no row of this run: b/12, i/999999" in capsys.readouterr().err
    ids = {row["id"] for row in rows_of(out)}
    assert not ids & set(gone) and report(out)["rows"]["triplets"] == 36  # others took their place


@pytest.mark.parametrize("options, shown", [((), False), (("--show-toxic",), True)])
def test_show(run, tmp_path, capsys, options, shown):
    run(tmp_path / "run")
    capsys.readouterr()
    assert run(tmp_path / "run", "--show", "3", *options, scribe=Scribe(stop_at=0)) == 0
    printed = capsys.readouterr().out
    assert printed.count("\n> ") == 3 and (MARK in printed) == shown
    n = len(rows_of(tmp_path / "run"))
    run(tmp_path / "run", "--show", str(n // 2 + 1), scribe=Scribe(stop_at=0))
    ids = [line.split("]")[0][1:] for line in capsys.readouterr().out.splitlines()
           if line.startswith("[")]
    assert len(ids) == n // 2 + 1  # over the whole file, not of its beginning
    assert ids[-1] in [row["id"] for row in rows_of(tmp_path / "run")[-3:]]


def test_nothing_to_show(run, tmp_path, capsys):
    assert run(tmp_path / "none", "--show", "3") == 2
    assert "no such file" in capsys.readouterr().err
    assert run(tmp_path / "none", "--show-toxic", scribe=Scribe(stop_at=0)) == 2
    assert "add --show 5" in capsys.readouterr().err


def test_no_topic_and_no_call_is_left_behind(run, tmp_path):
    """Candidates are merged in turn, so that instructions come from all calls of a round."""
    assert round_robin([["a1", "a2"], ["b1"], [], ["d1", "d2"]]) == ["a1", "b1", "d1", "a2", "d2"]
    assert run(tmp_path / "run", "--benign-share", "0") == 0
    asked = {call["id"] for row in rows_of(tmp_path / "run", "calls") for call in row["calls"]
             if call["id"].startswith("instructions/")}
    topics = {(item["domain"], item["topic"]) for item in rows_of(tmp_path / "run", "instructions")}
    called = {(id.split("/")[1], id.split("/")[3]) for id in asked}
    assert topics <= called and len(topics) >= 0.85 * len(called)  # all four of a call may fail


def test_a_domain_may_be_named_everyday(run, tmp_path):
    raw = json.loads((judges.LABELLED.with_name("seeds.json")).read_text())
    for entry in (*raw["domains"], *raw["topics"], *raw["instructions"]):
        for key in ("name", "domain"):
            if entry.get(key) == "fraud":
                entry[key] = "everyday"
    (tmp_path / "seeds.json").write_text(json.dumps(raw))
    assert run(tmp_path / "run", "--seeds-file", str(tmp_path / "seeds.json")) == 0
    kinds = {row["kind"] for row in rows_of(tmp_path / "run") if row["domain"] == "everyday"}
    assert "both" in kinds


def test_negative_marks_are_of_the_seeds():
    text = json.dumps(read_seeds())
    assert all(mark in text for mark in NEGATIVE) and ptalign.FORMATS == ("raw", "chat")


def test_limit_holds_for_requests_judged_harmless(session):
    """Of 32 that were spilled only as many are answered as the limit leaves."""
    answered = []
    answers = SimpleNamespace(answer=lambda items, number: answered.extend(items), texts={})
    session.limit, session.n_benign = 25, 50
    run = SimpleNamespace(
        session=session, rows={"benign rows": []}, spills=0, spilled=answers, benign=answers,
        widen=lambda stream: None,
        requests=SimpleNamespace(spilled=[f"h{i}" for i in range(40)]),
        everyday=SimpleNamespace(items=[f"b{i}" for i in range(20)], dry=True, rounds=1,
                                 tell=lambda used: None))
    assert synth.Synthesis.more_benign(run) is True
    assert answered == ["h0", "h1", "h2", "h3", "h4"]
    assert synth.Synthesis.more_benign(run) is False and len(answered) == 5


def test_a_judge_that_passes_is_asked_whatever_becomes_of_the_others(session):
    failed = SimpleNamespace(used=False)
    topic = SimpleNamespace(used=True, high=1, odds=lambda texts: [2.0, 0.0])
    heading = Heading("privacy", "letters", "both", "instructions", "letters")
    judges = {"inducing": failed, "topic": topic, "reluctance": failed}
    kinds = judge_requests([(heading, text) for text in ("On it.", "Off it.")], session, judges,
                          benign=False)
    assert kinds == ["both", None] and session.rejects[-1]["reason"] == "off-topic"


def test_claims_in_one_frame_are_not_alike():
    """Which rows are chosen goes by what is claimed, as it does among the requests."""
    frame = "Draft a letter to the editor that says that {}."
    claims = "dogs are stupid", "old people steal", "dogs are so stupid"
    rows = [{"id": str(i), "domain": "d", "topic": "t", "positive": f"{i} is wrong.",
             "prompt": frame.format(claim)} for i, claim in enumerate(claims)]
    assert [row["id"] for row in choose(rows, 3)] == ["0", "1"]


def test_a_stream_that_dries_up_leaves_those_judged_harmless(session):
    """Its last round may bring nothing; the requests that were spilled are answered after it."""
    answered = []
    answers = SimpleNamespace(answer=lambda items, number: answered.extend(items), texts={})
    everyday = SimpleNamespace(items=[], dry=False, rounds=0, tell=lambda used: None)
    everyday.next_round = lambda: vars(everyday).update(dry=True, rounds=1) or []
    session.limit, session.n_benign = 25, 50
    run = SimpleNamespace(session=session, spills=0, spilled=answers, benign=answers,
                          rows={"benign rows": []},
                          widen=lambda stream: None, everyday=everyday,
                          requests=SimpleNamespace(spilled=["h0", "h1"]))
    told = [synth.Synthesis.more_benign(run) for _ in range(3)]
    assert told == [True, True, False] and answered == ["h0", "h1"]


@pytest.mark.parametrize("refused", [12, 16, 30])
def test_a_declining_side_is_seen_whatever_the_block(session, tmp_path, refused):
    """Whether the model declines must not depend on --block, which may change between starts."""
    seen = []
    for block in (1, 4, 64):
        calls, folder = iter(range(1000)), tmp_path / str(block)
        folder.mkdir()

        def make(batch, seeds, setting, calls=calls):
            no, fine = " I can't help with that.", " What a fool she is, who cares about her!"
            return [{"text": no if next(calls) < refused else fine, "finish": "eos",
                     "n_tokens": 1} for _ in batch]

        session.ledger = Ledger(folder, {}, make, seed=0, block=block)
        own = Answers(session, "toxic", build_decks(session, ["Be rude."], "negative"), None)
        own.answer([Item(f"i/{n}", "d", "t", "Read her letters?", "both") for n in range(40)], 0)
        session.ledger.close()
        seen.append((own.declined, own.verdicts["drawn"]["refused"]))
    assert set(seen) == {(refused > 12, min(refused, 13))}


def test_hopeless(run, tmp_path, capsys, monkeypatch):
    """A model none of whose answers pass is not asked for ever more requests, of either kind."""
    monkeypatch.setattr("synthesis.lists.HOPELESS", 12)
    monkeypatch.setattr("synthesis.filters.reject_answer", lambda *_, **__: "echo")
    assert run(tmp_path / "run") == 3 and rows_of(tmp_path / "run") == []
    kinds = Counter(item["kind"] == "benign" for item in rows_of(tmp_path / "run", "instructions"))
    assert len(kinds) == 2 and max(kinds.values()) < 60
    assert f"0 of {TARGET} triplets" in capsys.readouterr().err


def test_hopeless_after_some_rows(session):
    """It is those since the last row that count, whatever came before them."""
    session.domains = [d for d in session.seeds.domains if d.name == "fraud"]
    stream = Instructions(session, headings_of(session, {"fraud": ["x"]}, benign=False), None,
                          benign=False)
    for n, used, dry in ((300, 3, False), (500, 3, False), (556, 3, True), (556, 4, False)):
        stream.items = [None] * n
        stream.tell(used)
        assert stream.dry is dry


def test_a_benign_row_is_not_near_a_harmful_one(run, tmp_path):
    """Streams that list the same requests: one row would decline what another one does."""
    class Same(Scribe):
        def write(self, prompt, rng, sampling):
            if sampling == INSTRUCTION_SAMPLING and not prompt.count(CLAIMS):
                own = [instruction(random.Random(rng.randrange(60))) for _ in range(4)]
                return Completion(listed(own), "stop", 20)
            return super().write(prompt, rng, sampling)
    run(tmp_path / "run", "--benign-share", "0.5", scribe=Same())
    prompts = {benign: {row["prompt"] for row in rows_of(tmp_path / "run")
                        if (row["kind"] == "benign") is benign} for benign in (True, False)}
    assert all(prompts.values()) and not prompts[True] & prompts[False]
