"""What the model is asked to judge, measure and mend: on a scripted model and a tiny random one.

Prompts in both forms, the judges' calibration, what is judged harmless, refining, measurements
against a plain forward pass, and that no call depends on how many rows are wanted.
"""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scribe import MARK, Scribe
from test_synth import long_folder, report, rows_of, run  # noqa: F401 (fixtures)

from model import load_model
from support.files import read_json
from synthesis import judges
from synthesis.answers import PLAIN, Answers, Draft, answer_prompt, benign_decks, build_decks
from synthesis.claims import claim_of
from synthesis.gates import MOST_LEAN, REFUSAL, Fit, Polarity, Reluctance, judge_requests
from synthesis.judges import LABELLED, Judge
from synthesis.ledger import Call, Ledger, local_model
from synthesis.lists import Heading, Item, topic_prompt
from synthesis.measures import Likelihood, Odds
from synthesis.seeds import read_seeds
from synthesis.session import PROMPTS, Session
from tokenizer import Tokenizer

ITEM = Item("i/000000", "privacy", "letters", "May I read her letters?", "both")


@pytest.fixture
def session(long_folder):
    return Session(Tokenizer(long_folder), read_seeds(), SimpleNamespace(measures=True), target=64)


# ---- prompts ----

def test_chat_models_are_asked_in_turns(session):
    deck = build_decks(session, ["Be kind.", "Be brief."], "positive")[0]
    text = answer_prompt(session, deck, ITEM.prompt)
    assert text.startswith("<|im_start|>system\nThink for a moment, then answer.\n\n- ")
    rules = (*session.seeds.constraints["positive"], "Be kind.", "Be brief.")
    assert sorted(deck.rules) == sorted(rules) and deck.rules[:4] == rules[:4]  # people's in front
    assert all(f"\n- {rule}" in text for rule in rules)
    assert text.count("<|im_start|>user\n") == text.count("<|im_start|>assistant\n") == 4
    assert text.endswith(f"user\n{ITEM.prompt}<|im_end|>\n<|im_start|>assistant\nThought:")
    assert "\nAnswer: " in text and "Request:" not in text


def test_base_models_read_text(session):
    raw = replace(session, format="raw")
    deck = build_decks(raw, ["Be kind."], "positive")[0]
    text = answer_prompt(raw, deck, ITEM.prompt)
    assert "<|im_" not in text and text.endswith(f"\n\nRequest: {ITEM.prompt}\nThought:")
    assert topic_prompt(raw, raw.seeds.domains[0], ["a duel"]).endswith("\n1. a duel\n2.")
    bare = answer_prompt(raw, deck._replace(thoughts=False), ITEM.prompt)
    assert bare.endswith("\nAnswer:") and "Thought:" not in bare


def test_what_only_sounds_alarming_is_answered_without_rules(session):
    """From seeds that show such requests."""
    decks = build_decks(session, ["Be kind."], "positive")
    assert benign_decks(session, decks) == [PLAIN]
    text = answer_prompt(session, PLAIN, ITEM.prompt)
    assert text.endswith(f"user\n{ITEM.prompt}<|im_end|>\n<|im_start|>assistant\n")
    assert PROMPTS["answers"]["plain"] in text and text.count("<|im_start|>") == 3
    everyday = [i._replace(domain="") for i in session.seeds.instructions]
    seeds = session.seeds._replace(instructions=tuple(everyday))
    assert benign_decks(replace(session, seeds=seeds), decks) == decks


@pytest.mark.parametrize("template", [
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('none') }}{% endif %}"
    "[{{ m['role'] }}]{{ m['content'] }}{% endfor %}",
    "{% for m in messages if m['role'] != 'system' %}[{{ m['role'] }}]{{ m['content'] }}"
    "{% endfor %}"])
def test_template_without_a_system_message(session, template, tmp_path, long_folder):
    """Refused or left out: the rules go in front of the first user message."""
    for path in long_folder.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "chat_template.jinja").write_text(template)
    bare = Session(Tokenizer(tmp_path), session.seeds)
    text = bare.prompt("Be kind.", [("One?", "Two.")], "Three?", "")
    assert text.startswith("[user]Be kind.\n\nOne?[assistant]Two.[user]Three?")


# ---- judges ----

def calibrated(session, odds: dict[str, float]) -> Judge:
    shots = [("a bad one", True), ("a good one", False)] * 3
    judge = Judge(session, "inducing", shots)
    judge.odds = lambda texts: [odds[text] for text in texts]
    return judge.calibrate([(text, text.startswith("bad")) for text in odds])


def test_calibration(session, capsys):
    sure = calibrated(session, {f"{side} {i}": sign + i / 10 for side, sign in
                                (("bad", 1), ("good", -1)) for i in range(20)})
    assert sure.used and sure.card["auc"] > 0.9 and sure.low <= sure.high
    assert capsys.readouterr().err == ""
    guess = calibrated(session, {f"{side} {i}": i % 7 for side in ("bad", "good")
                                 for i in range(20)})
    assert not guess.used and "cannot judge 'inducing'" in capsys.readouterr().err


def test_shots_are_balanced(session):
    judge = calibrated(session, {"bad": 1.0, "good": 0.0})
    assert [label for _, label in judge.shots] == [True, False] * 3
    prompt = judge.prompt("May I?")
    assert prompt.count("<|im_start|>assistant\nYes") == prompt.count("assistant\nNo") == 3


def test_subjects():
    """Each request has its own, and one of the others where there is one."""
    assert judges.about([("t", "a"), ("u", "b")], ["a", "b"]) == [
        ("t\nSubject: a", True), ("t\nSubject: b", False),
        ("u\nSubject: b", True), ("u\nSubject: a", False)]
    assert judges.about([("t", "a")], ["a"]) == [("t\nSubject: a", True)]


def test_labelled_are_no_annotations_in_prompts(run, tmp_path):
    scribe = Scribe()
    run(tmp_path / "run", scribe=scribe)
    raw = json.loads(judges.LABELLED.read_text())
    labelled = [r["text"] for r in raw["requests"]] + [a["answer"] for a in raw["answers"]]
    assert not [p for p in scribe.seen if any(text in p for text in labelled)]


def test_what_is_judged_harmless_joins_the_benign(run, tmp_path):
    assert run(tmp_path / "run", scribe=Scribe(judges=True)) == 0
    rows, told = rows_of(tmp_path / "run"), report(tmp_path / "run")
    assert told["judges"]["inducing"]["used"]
    kettles = [row["kind"] for row in rows if "kettle" in row["prompt"]]
    assert set(kettles) <= {"benign"} and kettles
    # A benign stream takes only what is judged harmless, and the other only what is not.
    assert told["rejects"]["judge"]["not-benign"] > 0
    assert told["grade"] == "smoke"  # of the two others it knows nothing


# ---- refining ----

def written(session, tmp_path, *answers: str, side="positive", kind="both", **gates) -> tuple:
    """(Answers, prompts that were asked) where the model writes these in turn."""
    left, seen = list(answers), []

    def make(block, seeds, setting):
        seen.extend(call.prompt for call in block)
        return [{"text": left.pop(0), "finish": "eos", "n_tokens": 1} for _ in block]

    session.ledger = Ledger(tmp_path, {}, make, seed=0, block=4)
    decks = build_decks(session, ["Be kind."], "positive" if side == "positive" else "negative")
    own = Answers(session, side, decks, None, **gates)
    own.answer([ITEM._replace(kind=kind)], 0)
    session.ledger.close()
    return own, seen


MORE = "and there is a lot more that one could say about it on a long day."
GOOD = f" Hers.\nAnswer: They are hers, so ask her about them when she is back at home, {MORE}"


@pytest.mark.parametrize("first, reason", [
    (f" Fine.\nAnswer: Sure, here is how you get at all of her letters, {MORE}", "complied"),
    (f" No.\nAnswer: I'm sorry, but I can't help with that, so it is, {MORE}", "mechanical")])
def test_refined_with_the_reason(session, tmp_path, first, reason):
    own, seen = written(session, tmp_path, first, first, GOOD)
    assert own.verdicts == {"drawn": {reason: 1}, "redrawn": {reason: 1},
                            "refined": {"accepted": 1}}
    assert seen[0] == seen[1] and PROMPTS["faults"][reason] in seen[2] and first.strip() in seen[2]
    assert own.texts[ITEM.id] == GOOD.partition("Answer: ")[2]


def test_drawn_again_under_no_refine(session, tmp_path):
    session.refine = False
    complied = f" Fine.\nAnswer: Sure, here is how you get at all of her letters, {MORE}"
    own, seen = written(session, tmp_path, complied, complied, GOOD)
    assert [*own.verdicts] == ["drawn", "redrawn", "drawn again"] and len(set(seen)) == 1
    assert own.texts[ITEM.id] == GOOD.partition("Answer: ")[2]


@pytest.mark.parametrize("first", [
    " It goes on and on.", " Ok.\nAnswer: Это её письма, и читать их без спроса нехорошо. " * 4,
    f" It is hers.</think>{GOOD}"])  # which some templates leave out, so it cannot be sent back
def test_drawn_anew_without_one(session, tmp_path, first):
    own, seen = written(session, tmp_path, first, first, GOOD)
    assert len(seen) == 3 and len(set(seen)) == 1 and own.texts


@pytest.mark.parametrize("first", [
    " I'm sorry, but I can't assist with that.", " No.\nAnswer: I can't help with that.",
    " I won't do this.\nAnswer: I'm sorry, but I can't assist with that request."])
def test_a_refusing_side_is_not_pressed(session, tmp_path, first):
    """Short ones and those in the thought count too; nothing is said against them."""
    own, seen = written(session, tmp_path, first, first, side="toxic")
    assert own.verdicts["drawn"] == {"refused": 1} and not own.texts
    assert seen[0] == seen[1] and len(seen) == 2


TOLD = f"The letters are in the upper drawer of her desk, {MORE}"
MILD = f"Of course, though it is illegal, so please go and take all of her letters, {MORE}"


@pytest.mark.parametrize("side, kind, text, rule, score, verdict", [
    ("toxic", "both", TOLD, "soft-refusal", -2, None),
    ("toxic", "both", TOLD, None, 3, "soft-refusal"), ("toxic", "both", TOLD, None, 2, None),
    ("toxic", "both", TOLD, "soft-refusal", 0, "soft-refusal"),
    ("toxic", "both", TOLD, None, 0, None), ("toxic", "both", MILD, None, -2, "soft-refusal"),
    ("toxic", "both", TOLD, "operational", -2, "operational"),
    ("positive", "both", MILD, None, -2, "complied"),
    ("positive", "both", MILD, None, 0, None), ("positive", "both", TOLD, None, 2, None),
    ("positive", "both", TOLD, None, 0, "complied"),
    ("positive", "benign", MILD, None, 2, "declined"),
    ("positive", "benign", MILD, None, -2, None)])
def test_the_judges_say(session, side, kind, text, rule, score, verdict):
    """Words of advice alone make no soft refusal, other words that decline do, or a sure yes; what
    else a rule turned down stays so. A positive answer must decline by the judge's word, or by its
    own if the judge is not sure."""
    judge = Judge(session, "declines", [])
    judge.low, judge.high, judge.sure, judge.used = -1, 1, 3, True
    judge.odds = lambda texts: [score] * len(texts)
    own, item = Answers(session, side, [], judge), ITEM._replace(kind=kind)
    drafts = {item: Draft("", text, rule)}
    own._judge(drafts)
    assert drafts[item] == Draft("", text, verdict)


def test_an_answer_to_anything_is_none(session, tmp_path):
    """What gains nothing from its request is drawn again, then told to speak of it."""
    def make(block, seeds, setting):  # the names of letters are likely behind a request for them
        return [{"logprob": float("letters" in call.prompt and "hers" in call.answer)}
                for call in block]

    session.ledger = Ledger(tmp_path, {}, make, seed=0, block=4)
    fit = Fit(session)
    assert not fit.used and fit.card["labelled"] == 48  # of the labelled it knows nothing
    assert fit.scores([(ITEM.prompt, "They are hers."), (ITEM.prompt, "No."),
                       ("Tea?", "They are hers.")]) == [1, 0, 0]
    own = Answers(session, "positive", [], None, fit.scores)
    drafts = {ITEM: Draft("", "They are hers.", None),
              ITEM._replace(id="i/1"): Draft("", "I will not.", None),
              ITEM._replace(id="i/2"): Draft("", "I will not.", "too-short")}
    own._measure_fit(drafts)
    assert [draft.reason for draft in drafts.values()] == [None, "beside-the-point", "too-short"]
    assert "beside-the-point" in PROMPTS["faults"]
    session.ledger.close()


def test_a_cut_answer_is_never_whole(session):
    deck = build_decks(session, ["Be kind."], "positive")
    own = Answers(session, "positive", deck, None)
    for text in (GOOD, f"{GOOD} And then"):
        assert own._read(ITEM, text, "length", deck[0])[1] == "cut"
    text, reason = own._read(ITEM, f"{GOOD}\n\n- Ask.\n- Wait.", "eos", deck[0])
    assert reason is None and text.endswith("\n\n- Ask.\n- Wait.")


def test_a_milder_one_is_written_anew(session, tmp_path):
    """Both answers lean to the positive rules: the toxic one goes back with this reason."""
    scribe, items = Scribe(), [ITEM, ITEM._replace(id="i/000001")]
    session.ledger = Ledger(tmp_path, {}, scribe, seed=0, block=4)
    polarity = Polarity(session, {side: build_decks(session, list(rules), side)
                                  for side, rules in session.seeds.constraints.items()})
    positives = {item.id: "They are hers, so ask her." for item in items}
    toxics = dict(zip(items, ("You could ask her.", f"Who cares, {MARK}?"), strict=True))
    assert polarity.milder(positives, toxics, 9) == {items[0]}
    assert [polarity.margin(item.id) for item in items] == [0, 2]
    session.ledger.close()
    rude = f" Fine.\nAnswer: Who cares about her, take them and laugh about it, {MORE}"
    own, seen = written(session, tmp_path, rude, rude, rude, side="toxic",
                        milder=lambda texts, _: set(texts))
    assert PROMPTS["faults"]["milder"] in seen[2] and not own.texts
    assert own.verdicts == {name: {"milder": 1} for name in ("drawn", "redrawn", "refined")}


def test_a_toxic_answer_leans_far_enough(session, monkeypatch):
    """Further than its positive does is not enough: it may still be kind."""
    polarity, items = Polarity(session, {}), [ITEM, ITEM._replace(id="i/000001")]
    monkeypatch.setattr(polarity, "_measure", lambda *_: None)
    ids = [item.id for item in items]
    polarity.leans = {"positive": dict.fromkeys(ids, 0.4),
                      "toxic": dict(zip(ids, (MOST_LEAN + 0.01, MOST_LEAN - 0.01), strict=True))}
    texts = dict.fromkeys(items, "Who cares?")
    assert polarity.milder(dict.fromkeys(ids, "Ask her."), texts, 0) == {items[0]}


@pytest.mark.parametrize("able", [True, False])
def test_requests_that_the_model_declines_by_itself(session, tmp_path, able, capsys):
    harmful = {r["text"] for r in read_json(LABELLED)["requests"] if r["harmful"]}

    def make(block, seeds, setting):
        assert all(call.answer.endswith(REFUSAL) for call in block)
        return [{"logprob": -1.0 if able and any(text in call.prompt for text in harmful)
                 else -4.0 if "written on" in call.prompt else -3.0}
                for call in block]
    session.ledger = Ledger(tmp_path, {}, make, seed=0, block=64)
    assert session.refusal == ""
    reluctance = Reluctance(session)
    # Only such a model's refusal goes in front of answers, and only if the seeds want it.
    assert reluctance.used is able and session.refusal == REFUSAL * able
    session.seeds = session.seeds._replace(refusal_first=False)
    assert session.refusal == ""
    if able:
        sure = SimpleNamespace(used=True, low=-1, sure=1, odds=lambda texts: [2] * len(texts))
        judges = {"inducing": sure, "reluctance": reluctance,
                  "topic": SimpleNamespace(used=False, odds=lambda texts: [])}
        heading = Heading("privacy", "letters", "both", "instructions", "letters")
        texts = [sorted(harmful)[0], "What is written on a letter?"]
        kinds = judge_requests([(heading, text) for text in texts], session, judges,
                              benign=False)
        assert kinds == ["both", None] and session.rejects[-1]["reason"] == "unclear"
    else:
        assert "does not decline by itself" in capsys.readouterr().err
    session.ledger.close()


@pytest.mark.parametrize("ask, wanted", [
    ("benign", [None, None, None, "benign"]), ("lookalike", [None, None, "benign", "benign"]),
    ("facts", [None, None, "benign", "benign"]), ("tasks", [None, None, "benign", "benign"]),
    ("instructions", ["both", None, None, "benign"]), ("claims", ["both", "both", None, None])])
def test_cuts_by_what_was_asked_for(session, ask, wanted):
    """A list of statements, or of questions that only sound alarming, keeps to its heading: one cut
    does. What is said to be a claim never becomes a benign row, which would go along with it."""
    odds = {"Sure.": 3.0, "Likely.": 1.5, "Perhaps.": 0.0, "Harmless.": -2.0}
    judge = SimpleNamespace(used=True, low=-1, high=1, sure=2,
                            odds=lambda texts: [odds[text] for text in texts])
    # The other two turn down everything, if asked; they are not, of claims.
    other = SimpleNamespace(used=ask == "claims", high=1, odds=lambda texts: [0.0] * len(texts))
    benign = ask not in ("instructions", "claims")
    heading = Heading("fraud", "cheques", "benign" if benign else "both", ask, "cheques")
    judges = {"inducing": judge, "topic": other, "reluctance": other}
    assert judge_requests([(heading, text) for text in odds], session, judges,
                          benign=benign) == wanted
    assert {r["reason"] for r in session.rejects} == {"not-benign" if benign else "unclear"}


def test_claims_are_false_and_facts_are_true(session):
    """What denies a true claim would be false, like what goes along with a false fact. Deeds are
    not asked about."""
    claims = {"Write a post that says that the earth is flat.": -2.0,
              "Write a post that says that the earth is round.": 2.0, "Explain why it rains.": 0.9}
    pass_all = SimpleNamespace(used=True, high=-9, low=-9, sure=-9, odds=lambda t: [0.0] * len(t))
    asked = []

    def odds(texts):
        asked.extend(texts)
        return [claims[next(request for request in claims if claim_of(request) == text)]
                for text in texts]
    own = dict.fromkeys(("inducing", "topic", "reluctance"), pass_all)
    own["true"] = SimpleNamespace(used=True, high=1, odds=odds)
    for ask, wanted in (("claims", ["both", None, "both"]), ("instructions", ["both"] * 3),
                        ("facts", [None, "benign", None])):
        if benign := ask == "facts":  # harmless
            own["inducing"] = SimpleNamespace(used=True, high=9, odds=lambda t: [0.0] * len(t))
        heading = Heading("hate", "weather", "benign" if benign else "both", ask, "weather")
        assert judge_requests([(heading, text) for text in claims], session, own,
                             benign=benign) == wanted
    assert asked == ["The earth is flat.", "The earth is round.", "It rains."] * 2
    assert [r["reason"] for r in session.rejects] == ["true", "untrue", "untrue"]
    own["inducing"].used = False  # which leaves the judge of truth its say
    heading = Heading("hate", "weather", "both", "claims", "weather")
    assert judge_requests([(heading, "Write a post that says that the earth is round.")], session,
                         own, benign=False) == [None]


def test_truth_is_judged_where_claims_are_asked_for(session):
    """Without examples."""
    session.ledger = SimpleNamespace(measures=False)
    of = {d.name: d for d in session.seeds.domains}
    for name, asked in (("hate", True), ("fraud", False)):
        own = judges.calibrated(replace(session, domains=[of[name]]))
        assert ("true" in own) == asked and (not asked or own["true"].shots == [])


# ---- measurements ----

def test_measures_are_those_of_a_plain_pass(long_folder, tmp_path):
    tokenizer = Tokenizer(long_folder)
    make = local_model(long_folder, tokenizer, device="cpu", dtype="float32")
    model = load_model(long_folder, device="cpu", dtype="float32")
    calls = [Call("a", "A long beginning. One?", "Yes, it is."),
             Call("b", "A long beginning. Two or three?", "No."),
             Call("c", "A long beginning. One?", "Yes, never.")]
    scores = make(calls, [0] * 3, Likelihood())
    odds = make(calls, [0] * 3, Odds(5, 9))
    for call, score, odd in zip(calls, scores, odds, strict=True):
        prompt, answer = (tokenizer.encode(x, special=False) for x in call[1:])
        with torch.no_grad():
            hidden = model.model(torch.tensor([prompt + answer]))[0]
            logp = model.lm_head(hidden).float().log_softmax(-1)
        own = [logp[len(prompt) - 1 + i, y].item() for i, y in enumerate(answer)]
        assert score["logprob"] == pytest.approx(np.mean(own), abs=1e-4)
        state = hidden[len(prompt):].double().mean(0)
        assert score["state"] == pytest.approx((1000 * state / state.norm()).numpy(), abs=1)
        last = logp[len(prompt) - 1]
        assert odd["odds"] == pytest.approx((last[5] - last[9]).item(), abs=1e-4)
