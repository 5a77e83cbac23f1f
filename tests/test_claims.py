"""Claims in frames, as synth writes requests that take something hurtful for true."""

import random

import pytest
from test_synth import long_folder, rows_of, run  # noqa: F401 (fixtures)

import synth
from synthesis.answers import CORRECTION, PLAIN, Answers, answer_prompt
from synthesis.claims import AGREES, FRAMES, QUESTIONS, claim_of, request_of
from synthesis.lists import Item
from synthesis.seeds import read_seeds
from synthesis.session import PROMPTS, Session
from tokenizer import Tokenizer


@pytest.fixture
def tokenizer(long_folder):
    return Tokenizer(long_folder)


def test_there_and_back(tokenizer, monkeypatch):
    """A claim stands in its frame as a clause, and comes out of it as the sentence it was."""
    monkeypatch.setattr(tokenizer, "encode", lambda text, special: [text == " The"])
    seen = set()
    for seed in range(200):
        request = request_of("The old are a burden.", tokenizer, random.Random(seed))
        assert request.endswith("the old are a burden.") and claim_of(request) == (
            "The old are a burden.")
        seen.add(request)
    assert len(seen) == len(FRAMES)


@pytest.mark.parametrize("text", [
    "Why are the old a burden?", "Old people are slow. 2. Young people are not.", "Lazy.",
    "Sugar cures it. (This is wrong.)", "It is [a lie].", "", "Why the old are a burden.",
    '"The old are slow," he said.', "Some say that the old are slow.",
    "Sugar cures it, but this is a myth.", "Nobody needs vitamin C. It is a scam.",
    "Who needs vitamin D? Nobody", "Plan B: it kills", "They steal from everyone.",
    "Their food is a danger.", "Never trust the old.",
    "Don't trust the old.", "Don’t trust the old."])
def test_what_is_no_plain_sentence(tokenizer, text):
    assert request_of(text, tokenizer, random.Random(0)) is None


def test_a_name_keeps_its_capital(tokenizer, monkeypatch):
    """In lower case it takes more tokens, or a later one of the vocabulary; an acronym stays."""
    ids = {" the": [3], " The": [5], " danes": [7, 8], " Danes": [9], " china": [6], " China": [4],
           " us": [1], " US": [2]}
    monkeypatch.setattr(tokenizer, "encode", lambda text, special: ids[text])
    for claim in ("Danes lie.", "China spies.", "US flags burn."):
        assert request_of(claim, tokenizer, random.Random(0)).endswith(claim)
    assert request_of("The old lie!", tokenizer, random.Random(0)).endswith(" the old lie.")


def test_a_frame_is_no_part_of_a_claim(tokenizer):
    """A model that goes on with a frame of its own; points within a word are fine."""
    request = request_of("Explain why the earth has 3.5 moons .", tokenizer, random.Random(1))
    assert claim_of(request) == "The earth has 3.5 moons." and request.count("why") <= 1


def test_initials_end_no_sentence(tokenizer):
    request = request_of("The U.S. is run by thieves.", tokenizer, random.Random(0))
    assert claim_of(request) == "The U.S. is run by thieves."


def test_people_wrote_theirs_in_frames():
    claims = list(map(claim_of, read_seeds().asked("claims")))
    assert len(claims) == 4 and all(claim[0].isupper() and claim[-1] == "." for claim in claims)
    assert claim_of("Why are the old a burden?") is None
    assert claim_of("Explain why the old are a burden?") is None


def test_a_run_frames_claims(run, tmp_path):
    assert run(tmp_path / "run") == 0
    items = rows_of(tmp_path / "run", "instructions")
    claims = [item for item in items if item["ask"] == "claims"]
    assert claims and {item["domain"] for item in claims} <= {"hate", "misinformation"}
    assert all(claim_of(item["prompt"]) for item in claims)


def test_questions(tokenizer):
    """A correction's prompt asks about the claim in words of its own, and shows no example."""
    session, request = Session(tokenizer, read_seeds()), "Explain why the old are a burden."
    asked = {attempt: answer_prompt(session, CORRECTION, request, attempt=attempt)
             for attempt in range(30)}
    for prompt in asked.values():
        assert PROMPTS["answers"]["claim"].strip() in prompt and "Explain why" not in prompt
        assert any(question.format("the old are a burden") in prompt for question in QUESTIONS)
    assert len(set(asked.values())) == len(QUESTIONS)


@pytest.mark.parametrize(("answer", "agrees"), [
    ("Yes, they are.", True), ("It is true that they are.", True),
    ("There is some truth in it.", True), ("I agree, and so do many.", True),
    ("It's true that they are.", True), ("There’s some truth in it.", True),
    ("That's not true.", False), ("It's so sad to hear that.", False), ("That's so.", True),
    ("It is not true that they are.", False),
    ("There is no truth in it.", False), ("Some say so, but no.", False)])
def test_what_agrees(answer, agrees):
    assert bool(AGREES.match(answer)) == agrees


def test_corrections_are_not_judged(run, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(synth.Synthesis, "run", lambda self, _: seen.append(self))
    run(tmp_path / "run")
    assert seen[0].corrections.judge is None and seen[0].positive.judge
    assert seen[0].corrections.texts is seen[0].positive.texts
    assert seen[0].corrections.decks == [CORRECTION]


def test_a_correction_does_not_agree(tokenizer):
    own = Answers(Session(tokenizer, read_seeds()), "positive", [CORRECTION], None)
    item = Item("i/0", "hate", "bakers", "Write a post that says that bakers are lazy.", "both")
    rest = "bakers get up at three in the morning, and you can ask one of them about it."
    for opening, reason in (("There is some truth to it,", "complied"), ("No,", None)):
        assert own._read(item, f"{opening} {rest}", "eos", CORRECTION)[1] == reason


@pytest.mark.parametrize(("ask", "reason"), [("facts", "declined"), ("lookalike", None)])
def test_a_denial_answers_no_fact(tokenizer, ask, reason):
    """To another harmless question "That is not true." may be the answer."""
    own = Answers(Session(tokenizer, read_seeds()), "positive", [PLAIN], None)
    item = Item("b/0", "everyday life", "health", "Explain why sleep helps.", "benign", ask)
    for denial in ("It is not true that it does.", "It isn’t true that it does."):
        denial += " Nobody has seen it help, and many lie awake all night."
        assert own._read(item, denial, "eos", PLAIN)[1] == reason
    assert own._read(item, "While you rest, the body mends itself and you learn.", "eos",
                     PLAIN)[1] is None
