"""Synthesis as a whole, from the command line down, with a scripted model and a tiny random one.

An interrupted run is compared byte by byte with an unbroken one. The scripted model's toxic texts
carry a mark, and every file and stream is searched for it.
"""

import json
import shutil
from collections import Counter
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import write_model
from scribe import MARK, NEGATIVE, Scribe

import generate
import ptalign
from generate import Completion, Sampling
from support.files import InputError
from support.pairs import read_triplets
from synthesis import answers, filters, judges, lists
from synthesis import report as report_module
from synthesis.answers import Answers, build_decks
from synthesis.ledger import Call, Ledger, local_model
from synthesis.lists import Item
from synthesis.seeds import SHIPPED, read_seeds
from synthesis.session import Session
from tokenizer import Tokenizer

TARGET = 36
GRAVE = "self-harm and dangerous acts"  # the domain without a toxic side
TOXIC = {"calls.toxic.jsonl", "constraints.jsonl", "triplets.jsonl"}  # files with such text
PRIVATE = TOXIC | {"calls.jsonl"}


@pytest.fixture(scope="module")
def long_folder(tmp_path_factory) -> Path:
    """A tiny model whose context holds the prompts, nearly a token a byte."""
    return write_model(tmp_path_factory.mktemp("models") / "long", max_position_embeddings=8192)


@pytest.fixture
def run(long_folder, monkeypatch):
    """Runs `synth` on a scripted model in blocks of 8 calls; returns the exit code."""
    def run(out: Path, *options: str, scribe: Scribe | None = None) -> int:
        monkeypatch.setattr("synthesis.ledger.local_model", lambda *_, **__: scribe or Scribe())
        return ptalign.main(["synth", "--model", str(long_folder), "--out", str(out),
                             "--triplets", str(TARGET), "--block", "8", *options])
    return run


def rows_of(out: Path, name: str = "triplets") -> list[dict]:
    # Not splitlines: random text has other line ends in it.
    return [json.loads(line) for line in (out / f"{name}.jsonl").read_text().split("\n") if line]


def report(out: Path) -> dict:
    return json.loads((out / "report.json").read_text())


def final(out: Path) -> dict[str, bytes]:
    """All files of a run but what a resumed run says about itself: dates and its own calls."""
    files = {p.name: p.read_bytes() for p in out.iterdir() if p.name != "config.json"}
    told = report(out)
    assert set(told.pop("this_start")) == set(told["calls"])
    return {**files, "report.json": json.dumps(told).encode()}


# ---- a run that reaches its target ----

def test_whole_run(run, tmp_path, capsys):
    assert run(tmp_path / "run") == 0
    rows = rows_of(tmp_path / "run")
    pairs = [row for row in rows if row["toxic"] is not None]
    assert len(pairs) == report(tmp_path / "run")["triplets"] == TARGET
    assert len(read_triplets(tmp_path / "run" / "triplets.jsonl")) == len(rows)
    for field in ("id", "prompt", "positive"):
        assert len({row[field] for row in rows}) == len(rows)
    assert all(MARK in row["toxic"] for row in pairs)
    assert not [row for row in rows if MARK in row["prompt"] + row["positive"]]
    assert all(row["first_mismatch"] >= 0 for row in pairs)

    # Spread over the domains; that without a toxic side has positive rows only.
    count = Counter(row["domain"] for row in pairs)
    assert len(count) == 9 and max(count.values()) - min(count.values()) <= 2
    singles = [row for row in rows if row["toxic"] is None and row["kind"] != "benign"]
    assert {row["domain"] for row in singles} == {GRAVE} and 0 < len(singles) <= 4
    benign = [row for row in rows if row["kind"] == "benign"]
    assert len(benign) == TARGET * 0.2 / 0.8 and len({row["topic"] for row in benign}) > 4
    assert [row["toxic"] is None for row in rows] == sorted(row["toxic"] is None for row in rows)


def test_nothing_toxic_shows(run, tmp_path, capsys):
    out = tmp_path / "run"
    assert run(out) == 0
    assert {p.name for p in out.iterdir() if MARK in p.read_text()} == TOXIC
    assert {p.name for p in out.iterdir() if p.stat().st_mode & 0o077 == 0} == PRIVATE
    assert MARK not in "".join(capsys.readouterr())
    assert (out / ".gitignore").read_text() == "*\n"
    assert "do not train" in (out / "CONTENT-WARNING.txt").read_text()


def test_rejects(run, tmp_path):
    """What was turned down is told by reason and fingerprint; the text is not kept."""
    run(tmp_path / "run")
    rejects = rows_of(tmp_path / "run", "rejects")
    assert all(set(r) == {"id", "stage", "reason", "value", "sha256", "length"} for r in rejects)
    reasons = {(r["stage"], r["reason"]) for r in rejects}
    assert {("instructions", "too-short"), ("benign", "needs-media"),
            ("instructions", "no-end-mark"), ("answers", "no-answer"), ("answers", "cut"),
            ("answers", "too-short")} <= reasons
    told = report(tmp_path / "run")
    assert sum(n for own in told["rejects"].values() for n in own.values()) == len(rejects)
    for side in ("positive", "toxic"):
        attempts = sum((Counter(n) for n in told["attempts"][side].values()), Counter())
        if side == "positive":
            attempts += sum((Counter(n) for name in ("claims", "benign", "spilled")
                             for n in told["attempts"].get(name, {}).values()), Counter())
        failed = [r for r in rejects if r["stage"] == "answers" and f"/{side}/" in r["id"]]
        assert sum(attempts.values()) - attempts["accepted"] == len(failed) > 0


def test_prompts(run, tmp_path):
    """Demonstrations are the human ones; constraints and examples of one side never mix."""
    scribe = Scribe()
    run(tmp_path / "run", scribe=scribe)
    positive, negative = "the program in the list", NEGATIVE[0]  # of the third example
    answers = [p for p in scribe.seen if positive in p or negative in p]
    assert len(answers) > 2 * TARGET
    assert not [p for p in answers if positive in p and negative in p]
    assert not [p for p in answers if positive in p and MARK in p]
    assert not [p for p in scribe.seen if p not in answers and MARK in p]


def test_seed(run, tmp_path):
    for name, seed in (("a", "0"), ("b", "0"), ("c", "1")):
        run(tmp_path / name, "--seed", seed)
    assert rows_of(tmp_path / "a") == rows_of(tmp_path / "b") != rows_of(tmp_path / "c")


# ---- interrupted ----

@pytest.fixture(scope="module")
def unbroken():
    return {}  # filled by the first test that needs it: `run` belongs to a test, not to the module


def whole_run(run, folder: Path, kept: dict) -> dict:
    if not kept:
        scribe = Scribe()
        assert run(folder / "whole", scribe=scribe) == 0
        kept.update(files=final(folder / "whole"), blocks=scribe.blocks)
    return kept


def test_killed_anywhere(run, tmp_path, capsys, unbroken):
    """Killed once, after every third block in turn: no block is made twice, the end is the same."""
    whole = whole_run(run, tmp_path, unbroken)
    for k in range(0, whole["blocks"], 3):
        out = tmp_path / f"killed-{k}"
        assert run(out, scribe=Scribe(stop_at=k)) == 130
        error = capsys.readouterr().err
        assert "run the same command again" in error and "Traceback" not in error
        rest = Scribe()
        assert run(out, scribe=rest) == 0
        assert rest.blocks == whole["blocks"] - k and final(out) == whole["files"]


def test_killed_again_and_again(run, tmp_path, unbroken):
    whole = whole_run(run, tmp_path, unbroken)
    codes = [run(tmp_path / "run", scribe=Scribe(stop_at=4))
             for _ in range(-(-whole["blocks"] // 4))]
    assert set(codes[:-1]) == {130} and codes[-1] == 0 and final(tmp_path / "run") == whole["files"]


def test_killed_while_writing(run, tmp_path, monkeypatch, unbroken):
    """The stage files are derived: whichever is missing or old is written again."""
    whole = whole_run(run, tmp_path, unbroken)

    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(report_module, "write_json", stop)
        assert run(tmp_path / "run") == 130
    (tmp_path / "run" / "topics.jsonl").write_text("{")
    none = Scribe(stop_at=0)
    assert run(tmp_path / "run", scribe=none) == 0 and final(tmp_path / "run") == whole["files"]


def test_changed_model_files(run, long_folder, tmp_path):
    """Another template would go on with other prompts under the same weights."""
    folder = shutil.copytree(long_folder, tmp_path / "model")
    assert run(tmp_path / "run", "--model", str(folder), scribe=Scribe(stop_at=3)) == 130
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "chat_template.jinja").write_text(config["chat_template"] + " ")
    assert run(tmp_path / "run", "--model", str(folder)) == 2


# ---- options ----

def test_positives_only(run, tmp_path):
    out = tmp_path / "run"
    assert run(out, "--positives-only", "--benign-share", "0") == 0
    rows = rows_of(out)
    assert len(rows) == TARGET and {row["toxic"] for row in rows} == {None}
    assert (out / "calls.toxic.jsonl").read_bytes() == b""
    assert {row["side"] for row in rows_of(out, "constraints")} == {"positive"}


@pytest.mark.parametrize("share,n", [("0", 0), ("0.5", TARGET)])
def test_benign_share(run, tmp_path, share, n):
    assert run(tmp_path / "run", "--benign-share", share) == 0
    benign = [row for row in rows_of(tmp_path / "run") if row["kind"] == "benign"]
    assert len(benign) == n and {row["toxic"] for row in benign} <= {None}


@pytest.mark.parametrize("options, shown", [((), True), (("--no-thoughts",), False)])
def test_dry_run(run, tmp_path, capsys, options, shown):
    """It shows the prompts that the run will have, and asks nothing of the model."""
    assert run(tmp_path / "run", "--dry-run", *options, scribe=Scribe(stop_at=0)) == 0
    printed = capsys.readouterr().out
    assert "--- positive answers ---" in printed and f"{TARGET} triplets and 9 benign" in printed
    assert "minutes on this cpu" in printed and ("Thought:" in printed) == shown
    assert not (tmp_path / "run").exists()


def test_domains(run, tmp_path):
    assert run(tmp_path / "run", "--domains", f"privacy,{GRAVE}", "--benign-share", "0") == 0
    rows = rows_of(tmp_path / "run")
    sides = {(row["domain"], row["toxic"] is None) for row in rows}
    assert sides == {("privacy", False), (GRAVE, True)}


@pytest.mark.parametrize(("options", "sizes", "benign"), [
    ((), [10, 10], 8),  # whole turns of the ten domains
    (("--round-calls", "25"), [30], 7)])  # a quarter for the benign domain alone
def test_round_calls(run, tmp_path, options, sizes, benign):
    """How many calls ask for instructions before any is answered."""
    assert run(tmp_path / "run", *options) == 0
    stages = [call["id"].split("/")[0] for block in rows_of(tmp_path / "run", "calls")
              for call in block["calls"]]
    stages = [stage for stage in stages if stage in ("instructions", "benign", "answers")]
    rounds = [(stage, len(list(own))) for stage, own in groupby(stages) if stage != "answers"]
    assert [n for stage, n in rounds if stage == "instructions"][:len(sizes)] == sizes
    assert next(n for stage, n in rounds if stage == "benign") == benign


def test_limit(run, tmp_path, capsys):
    assert run(tmp_path / "run", "--limit", "5") == 3
    items = rows_of(tmp_path / "run", "instructions")
    answered = {row["id"] for row in rows_of(tmp_path / "run")}
    assert {item["id"] for item in items} >= answered and len(answered) <= 10
    assert f"of {TARGET} triplets" in capsys.readouterr().err
    # A trial can be widened: what it paid for stays.
    assert run(tmp_path / "run") == 0 and len(rows_of(tmp_path / "run")) > TARGET


def test_declines(run, tmp_path, capsys):
    """A model that declines keeps its positives, is not asked on and on, and the report says so."""
    assert run(tmp_path / "run", scribe=Scribe(declines=True)) == 3
    rows, told = rows_of(tmp_path / "run"), report(tmp_path / "run")
    assert {row["toxic"] for row in rows} == {None}
    assert sum(row["kind"] != "benign" for row in rows) == TARGET
    asked = told["attempts"]["toxic"]
    assert set(asked["drawn"]) == {"refused"} and 12 < asked["drawn"]["refused"] < 48
    assert asked["refined"] == {}  # nobody asks again
    assert told["triplets"] == 0 and f"0 of {TARGET} triplets" in told["short"]
    assert "declines" in capsys.readouterr().err
    assert "declines the toxic side" in (tmp_path / "run" / "report.md").read_text()


def test_short(run, tmp_path, capsys):
    """A model with nothing new to say: exit code 3, the reason told, the files valid."""
    assert run(tmp_path / "run", scribe=Scribe(dull=True)) == 3
    assert f"of {TARGET} triplets" in capsys.readouterr().err
    assert len(rows_of(tmp_path / "run", "instructions")) < 20
    assert read_triplets(tmp_path / "run" / "triplets.jsonl")


@pytest.mark.parametrize("options, told", [
    (("--domains", GRAVE), f"no toxic answers are made for {GRAVE}, everyday life, --domains"),
    (("--seeds-file", "SEEDS"), "no instruction with benign true"),
])
def test_fruitless(run, tmp_path, capsys, options, told):
    """Refused before a prompt is made; each with its remedy is fine."""
    raw = json.loads(SHIPPED.read_text())
    raw["instructions"] = [i | {"benign": False} for i in raw["instructions"]]
    (tmp_path / "SEEDS").write_text(json.dumps(raw))
    options = [str(tmp_path / o) if o == "SEEDS" else o for o in options]
    assert run(tmp_path / "run", *options, scribe=Scribe(stop_at=0)) == 2
    assert told in capsys.readouterr().err and not (tmp_path / "run").exists()
    assert run(tmp_path / "run", *options, "--positives-only", "--benign-share", "0") == 0
    harmless = "--domains", "everyday life", "--positives-only"
    assert run(tmp_path / "none", *harmless, scribe=Scribe(stop_at=0)) == 2
    assert "no harmful requests are made for everyday life, --dom" in capsys.readouterr().err


def test_prompt_too_long(tmp_path, long_folder):
    """It alone is left out of its block; the others are as without it."""
    folder = shutil.copytree(long_folder, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 60}))
    made = []
    long = "x" * 90
    for name, block in (("a", [long, "My tea.", f"y{long}"]), ("b", ["My tea."]), ("c", [long])):
        (tmp_path / name).mkdir()
        model = local_model(folder, Tokenizer(folder), device="cpu", dtype="float32")
        ledger = Ledger(tmp_path / name, {}, model, seed=0, block=8)
        done = ledger.complete([Call(prompt[0], prompt) for prompt in block],
                               Sampling(8, temperature=1.0), stage="test")
        made.append([(c.finish, c.text) for c in done.values()])
        ledger.close()
    assert made[0] == [("context", ""), made[1][0], ("context", "")] and made[1][0][1]
    assert made[2] == [("context", "")]


def test_context_is_a_reason(tmp_path, long_folder):
    session = Session(Tokenizer(long_folder), read_seeds(), target=64)
    deck = build_decks(session, ["Be kind."], "positive")
    answers = Answers(session, "positive", deck, None)
    item = Item("i/000000", "privacy", "bills", "May I?", "both")
    assert answers._read(item, "", "context", deck[0]) == ("", "context")


def test_list_without_room_ends_the_run():
    done = {"a": Completion("", "context", 0)}
    session = SimpleNamespace(ledger=SimpleNamespace(complete=lambda *_, **__: done))
    with pytest.raises(InputError, match="use a model with a longer one"):
        lists.complete_lists(session, [Call("a", "")], Sampling(8), stage="topics")


# ---- a real, if random, model in bf16 ----

TRIAL = ("--triplets", "3", "--limit", "6", "--domains", "hate,theft and burglary",
         "--benign-share", "0", "--dtype", "bfloat16", "--quiet")


@pytest.fixture
def few_labels(tmp_path, monkeypatch):
    """A random model judges at chance anyway, and it reads a token a byte."""
    raw = json.loads(judges.LABELLED.read_text())
    few = {name: rows[::12] for name, rows in raw.items()}
    (tmp_path / "labelled.json").write_text(json.dumps(few))
    monkeypatch.setattr(judges, "LABELLED", tmp_path / "labelled.json")
    monkeypatch.setattr(lists, "TOPICS", 4)


def trial(folder: Path, out: Path, *, stop_at: int | None = None) -> tuple[int, int]:
    """(exit code, tokens drawn); interrupted after `stop_at` tokens, in the middle of a block."""
    drawn, sample = 0, generate.sample

    def counted(*arguments):
        nonlocal drawn
        if drawn == stop_at:
            raise KeyboardInterrupt
        drawn += 1
        return sample(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(generate, "sample", counted)
        # Random text passes no filter: without them the later stages run as well.
        patch.setattr(filters, "parse_list",
                      lambda text, *, cut: [" ".join(text.split())[:40] or "x"])
        patch.setattr(filters, "reject_instruction", lambda text, **_: None)
        patch.setattr(filters, "parse_answer", lambda text: text + "x")
        patch.setattr(filters, "reject_answer", lambda text, **_: None)
        # It never ends by itself, and what is cut is turned down.
        patch.setattr(answers, "answer_sampling", lambda *_: Sampling(
            30, temperature=0.7, stop=tuple("aeiou")))
        code = ptalign.main(["synth", "--model", str(folder), "--out", str(out), *TRIAL])
    return code, drawn


def test_random_model(long_folder, tmp_path, few_labels):
    """In bf16 rounding depends on a block's make-up: one killed half-way is made again whole."""
    code, drawn = trial(long_folder, tmp_path / "whole")
    blocks = rows_of(tmp_path / "whole", "calls") + rows_of(tmp_path / "whole", "calls.toxic")
    stages = [block["calls"][0]["id"].rpartition("/i/")[0] for block in blocks]
    assert code in (0, 3) and {"answers/positive", "answers/toxic"} <= set(stages)
    for stop_at in (100, drawn // 2, drawn - 10):
        out = tmp_path / str(stop_at)
        assert trial(long_folder, out, stop_at=stop_at) == (130, stop_at)
        assert trial(long_folder, out)[0] == code
        assert final(out) == final(tmp_path / "whole")


def test_random_model_is_short(long_folder, tmp_path, few_labels):
    """With its filters on, junk gives no rows: exit code 3, and every file is there and valid."""
    assert ptalign.main(["synth", "--model", str(long_folder), "--out", str(tmp_path / "run"),
                         *TRIAL]) == 3
    assert rows_of(tmp_path / "run") == [] and report(tmp_path / "run")["triplets"] == 0
    assert {p.stem for p in (tmp_path / "run").glob("*.jsonl")} == {
        "calls", "calls.toxic", "constraints", "instructions", "rejects", "topics", "triplets"}
