"""Claims in frames, as synth writes requests that take something hurtful for true."""

import random

import pytest
from test_synth import long_folder, rows_of, run  # noqa: F401 (fixtures)

from synthesis.claims import FRAMES, claim_of, request_of
from synthesis.seeds import read_seeds
from tokenizer import Tokenizer


@pytest.fixture
def tokenizer(long_folder):
    return Tokenizer(long_folder)


def test_there_and_back(tokenizer):
    """A claim stands in its frame as a clause, and comes out of it as the sentence it was."""
    seen = set()
    for seed in range(200):
        request = request_of("The old are a burden.", tokenizer, random.Random(seed))
        assert request.endswith("the old are a burden.") and claim_of(request) == (
            "The old are a burden.")
        seen.add(request)
    assert len(seen) == len(FRAMES)


@pytest.mark.parametrize("text", [
    "Why are the old a burden?", "Old people are slow. 2. Young people are not.", "Lazy.",
    "Sugar cures it. (This is wrong.)", "It is [a lie].", ""])
def test_what_is_no_plain_sentence(tokenizer, text):
    assert request_of(text, tokenizer, random.Random(0)) is None


def test_a_name_keeps_its_capital(tokenizer, monkeypatch):
    """It takes more tokens in small letters."""
    monkeypatch.setattr(tokenizer, "encode", lambda text, special: [0] * (
        1 + (text == " muslims") + (text == " The")))
    for claim, clause in (("Muslims lie.", "Muslims lie."), ("The old lie!", "the old lie.")):
        assert request_of(claim, tokenizer, random.Random(0)).endswith(clause)


def test_people_wrote_theirs_in_frames():
    claims = list(map(claim_of, read_seeds().asked("claims")))
    assert len(claims) == 4 and all(claim[0].isupper() and claim[-1] == "." for claim in claims)
    assert claim_of("Why are the old a burden?") is None


def test_a_run_frames_claims(run, tmp_path):
    assert run(tmp_path / "run") == 0
    items = rows_of(tmp_path / "run", "instructions")
    claims = [item for item in items if item["ask"] == "claims"]
    assert claims and {item["domain"] for item in claims} <= {"hate", "misinformation"}
    assert all(claim_of(item["prompt"]) for item in claims)
