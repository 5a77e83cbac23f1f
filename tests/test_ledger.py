"""ledger.py: calls are made once and come back in order, whatever was torn.

The model is a function that counts how often it is asked.
"""

import json

import pytest

from generate import Completion, Sampling
from support.pairs import Toxic
from synthesis.ledger import Call, Ledger

SAMPLING = Sampling(8, temperature=0.7)
BLOCK = 5
SCORN = "let them wait, who cares"


class Model:
    """Answers with the prompt and the seed; `asked` holds the prompts of each block."""

    def __init__(self, *, fail_at: int | None = None):
        self.asked, self.fail_at = [], fail_at

    def __call__(self, prompts, seeds, sampling):
        if len(self.asked) == self.fail_at:
            raise KeyboardInterrupt
        self.asked.append(prompts)
        return [Completion(f"{p} {s % 1000} {sampling.temperature}", "eos", 3)
                for p, s in zip(prompts, seeds, strict=True)]


def calls(n: int, *, stage: str = "answers") -> list[Call]:
    return [Call(f"{stage}/{i}", f"prompt {i}") for i in range(n)]


def opened(folder, model, *, identity="w1", seed=0) -> Ledger:
    return Ledger(folder, {"weights": identity}, model, seed=seed, block=BLOCK)


def complete(folder, model, groups, *, sampling=SAMPLING, toxic=False, **identity):
    book = opened(folder, model, **identity)
    try:
        return book.complete(groups, sampling, stage="test", toxic=toxic)
    finally:
        book.close()


def lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# ---- calls ----

def test_made_once(tmp_path):
    model = Model()
    first = complete(tmp_path, model, [calls(5)])
    assert complete(tmp_path, model, [calls(5)]) == first and len(model.asked) == 1


@pytest.mark.parametrize("change", [
    {"identity": "w2"}, {"seed": 1}, {"sampling": Sampling(8, temperature=0.8)},
    {"sampling": Sampling(8, temperature=0.7, stop=("\n",))}])
def test_another_call(tmp_path, change):
    """Whatever a result depends on is part of the call's identity."""
    model = Model()
    first = complete(tmp_path, model, [calls(2)])
    second = complete(tmp_path, model, [calls(2)], **change)
    assert len(model.asked) == 2
    assert ("identity" in change or "stop" in str(change)) or first != second
    assert complete(tmp_path, model, [calls(2)]) == first and len(model.asked) == 2


def test_another_id_or_prompt(tmp_path):
    model = Model()
    made = [complete(tmp_path, model, [[Call(*pair)]])
            for pair in (("a", "p"), ("b", "p"), ("a", "q"))]
    texts = [next(iter(done.values())).text for done in made]
    assert len(model.asked) == 3 and len(set(texts)) == 3  # the id alone changes the seed


def test_blocks_and_order(tmp_path):
    """Blocks of BLOCK calls that never cross groups; results in the order asked for."""
    groups = [calls(2 * BLOCK + 1, stage="a"), [], calls(3, stage="b")]
    model = Model()
    done = complete(tmp_path, model, groups)
    assert [len(block) for block in model.asked] == [BLOCK, BLOCK, 1, 3]
    assert list(done) == [call.id for group in groups for call in group]
    assert all(done[c.id].text.startswith(c.prompt + " ") for group in groups for c in group)


def test_interrupted_then_resumed(tmp_path):
    """What was made before the interrupt is kept, and the file ends like an unbroken run's."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for folder in (whole, broken):
        folder.mkdir()
    groups = [calls(4 * BLOCK)]
    wanted = complete(whole, Model(), groups)
    with pytest.raises(KeyboardInterrupt):
        complete(broken, Model(fail_at=2), groups)
    again = Model()
    assert complete(broken, again, groups) == wanted and len(again.asked) == 2
    assert (broken / "calls.jsonl").read_bytes() == (whole / "calls.jsonl").read_bytes()


def test_torn_at_every_byte(tmp_path):
    """A kill in the middle of a line loses that block and no other; half a block is never used."""
    groups = [calls(1, stage="a"), calls(2, stage="b")]
    wanted = complete(tmp_path, Model(), groups)
    path = tmp_path / "calls.jsonl"
    whole = path.read_bytes()
    start = whole.index(b"\n") + 1  # of the second line
    for end in range(start, len(whole)):
        path.write_bytes(whole[:end])
        model = Model()
        assert complete(tmp_path, model, groups) == wanted
        assert model.asked == [["prompt 0", "prompt 1"]] and path.read_bytes() == whole


def test_failed_block_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        complete(tmp_path, Model(fail_at=0), [calls(3)])
    assert (tmp_path / "calls.jsonl").read_bytes() == b""


def test_too_few_results(tmp_path):
    with pytest.raises(ValueError):
        complete(tmp_path, lambda prompts, seeds, sampling: [Completion("x", "eos", 1)], [calls(2)])
    assert (tmp_path / "calls.jsonl").read_bytes() == b""


def test_toxic(tmp_path, capsys):
    """Toxic text has its own private file and comes back, made or replayed, hiding itself."""
    for _ in range(2):
        done = complete(tmp_path, Model(), [[Call("answers/toxic/0", SCORN)]], toxic=True)
        text = done["answers/toxic/0"].text
        assert type(text) is Toxic and text.raw().startswith(SCORN)
        assert SCORN not in f"{done} {text}"
    path = tmp_path / "calls.toxic.jsonl"
    assert path.stat().st_mode & 0o777 == 0o600
    assert lines(path)[0]["calls"][0]["text"] == text.raw()
    assert (tmp_path / "calls.jsonl").read_bytes() == b""
    assert SCORN not in "".join(capsys.readouterr())


def test_counts(tmp_path):
    complete(tmp_path, Model(), [calls(4)])
    book = opened(tmp_path, Model())
    book.complete([calls(4)], SAMPLING, stage="old")
    book.complete([calls(2, stage="new")], SAMPLING, stage="new")
    old, new = book.stages["old"], book.stages["new"]
    assert (old["calls"], old["tokens"], old["tokens_now"]) == (4, 12, 0)
    assert (new["calls"], new["tokens"], new["tokens_now"]) == (2, 6, 6)
    book.close()
