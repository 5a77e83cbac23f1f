"""ledger.py: calls are made once and come back in order, whatever was torn.

The model is a function that counts how often it is asked.
"""

import json
from collections import Counter

import pytest

from generate import Sampling, draw_seed
from support.files import InputError, canonical, sha256
from support.pairs import Toxic
from synthesis.ledger import Call, Ledger
from synthesis.measures import Odds

SAMPLING = Sampling(8, temperature=0.7)
BLOCK = 5
SCORN = "let them wait, who cares"


class Model:
    """Answers with the prompt and the seed; `asked` holds the prompts of each block."""

    def __init__(self, *, fail_at: int | None = None):
        self.asked, self.fail_at = [], fail_at

    def __call__(self, block, seeds, sampling):
        if len(self.asked) == self.fail_at:
            raise KeyboardInterrupt
        self.asked.append([call.prompt for call in block])
        return [{"text": f"{call.prompt} {s % 1000} {sampling.temperature}", "finish": "eos",
                 "n_tokens": 3} for call, s in zip(block, seeds, strict=True)]


def calls(n: int, *, stage: str = "answers") -> list[Call]:
    return [Call(f"{stage}/{i}", f"prompt {i}") for i in range(n)]


def opened(folder, model, *, identity="w1", seed=0, block=BLOCK) -> Ledger:
    return Ledger(folder, {"weights": identity}, model, seed=seed, block=block)


def complete(folder, model, asked, *, sampling=SAMPLING, toxic=False, block=BLOCK, **identity):
    book = opened(folder, model, block=block, **identity)
    try:
        return book.complete(asked, sampling, stage="test", toxic=toxic)
    finally:
        book.close()


def lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_time_in_the_model_is_told(tmp_path, capsys):
    """Of stages that took a hundredth or more, the longest first; not of a run of seconds."""
    for seconds in (0.1, 20.0):
        book = opened(tmp_path, Model())
        book.stages = {name: Counter(seconds_now=n * seconds)
                       for name, n in (("fit", 2), ("topics", 0.01), ("toxic answers", 6))}
        book.close()
    assert capsys.readouterr().err.splitlines() == [
        "3 minutes in the model: toxic answers 75%, fit 25%"]


# ---- calls ----

def test_made_once(tmp_path):
    model = Model()
    first = complete(tmp_path, model, calls(5))
    assert complete(tmp_path, model, calls(5)) == first and len(model.asked) == 1


def test_records_of_older_versions(tmp_path):
    """Fields of Sampling that came later are no part of a call's identity where they are off."""
    setting = {"max_new_tokens": 8, "temperature": 0.7, "top_p": 1.0, "top_k": 0, "stop": [],
               "min_lines": 0, "opening_penalty": 0.0}
    book, block = opened(tmp_path, Model()), calls(2)
    assert book._key(SAMPLING, block) == sha256(canonical(
        [{"weights": "w1"}, ["Sampling", setting], block,
         [draw_seed(0, call.id) for call in block]]))
    book.close()


@pytest.mark.parametrize("change", [
    {"identity": "w2"}, {"seed": 1}, {"sampling": Sampling(8, temperature=0.8)},
    {"sampling": Sampling(8, temperature=0.7, stop=("\n",))},
    {"sampling": Sampling(8, temperature=0.7, min_new_tokens=2)}])
def test_another_call(tmp_path, change):
    """Whatever a result depends on is part of the call's identity."""
    model = Model()
    first = complete(tmp_path, model, calls(2))
    second = complete(tmp_path, model, calls(2), **change)
    assert len(model.asked) == 2
    sampling = change.get("sampling", SAMPLING)
    ignored = "identity" in change or sampling.stop or sampling.min_new_tokens  # by the model
    assert ignored or first != second
    assert complete(tmp_path, model, calls(2)) == first and len(model.asked) == 2


def test_another_id_or_prompt(tmp_path):
    model = Model()
    made = [complete(tmp_path, model, [Call(*pair)])
            for pair in (("a", "p"), ("b", "p"), ("a", "q"))]
    texts = [next(iter(done.values())).text for done in made]
    assert len(model.asked) == 3 and len(set(texts)) == 3  # the id alone changes the seed


def test_blocks_and_order(tmp_path):
    """Blocks of BLOCK calls; results in the order asked for."""
    asked = [*calls(2 * BLOCK + 1, stage="a"), *calls(3, stage="b")]
    model = Model()
    done = complete(tmp_path, model, asked)
    assert [len(block) for block in model.asked] == [BLOCK, BLOCK, 4]
    assert list(done) == [call.id for call in asked]
    assert all(done[call.id].text.startswith(call.prompt + " ") for call in asked)


def test_block_may_change(tmp_path):
    """What is on record keeps its size; only what is new is made in the new one."""
    first = complete(tmp_path, Model(), calls(2 * BLOCK))
    model = Model()
    more = complete(tmp_path, model, calls(2 * BLOCK + 4), block=3)
    assert [len(block) for block in model.asked] == [3, 1]
    assert first.items() <= more.items()
    for block in (3, 7):
        again = Model()
        assert complete(tmp_path, again, calls(2 * BLOCK + 4), block=block) == more
        assert again.asked == []


def test_measured_once(tmp_path):
    """A measurement is a call like any other."""
    def make(block, seeds, setting):
        return [{"odds": len(call.prompt + call.answer)} for call in block]

    asked = [Call("a", "p", "xyz"), Call("b", "p")]
    for model in (make, Model(fail_at=0)):
        book = opened(tmp_path, model)
        done = book.measure(asked, Odds(1, 2), stage="judge")
        assert done == [{"odds": 4}, {"odds": 1}]
        book.close()


def test_measurement_that_does_not_fit(tmp_path):
    book = opened(tmp_path, lambda block, *_: [{} for _ in block])
    assert book.measure([Call("a", "p")], Odds(1, 2), stage="judge") == [{}]
    book.close()


@pytest.mark.parametrize("toxic, name", [(False, "calls.jsonl"), (True, "calls.toxic.jsonl")])
def test_flipped_bit(tmp_path, toxic, name):
    """A completion that changed on the disk is noticed; a line without a checksum is read."""
    first = complete(tmp_path, Model(), calls(2 * BLOCK), toxic=toxic)
    path, kept = tmp_path / name, lines(tmp_path / name)
    path.write_bytes(path.read_bytes().replace(b"prompt 7", b"prompt 6"))
    with pytest.raises(InputError, match=f"^line 2 of {name} does not match its checksum, --out"):
        opened(tmp_path, Model())
    path.write_text("".join(json.dumps({key: row[key] for key in row if key != "sha256"}) + "\n"
                            for row in kept))
    model = Model()
    assert complete(tmp_path, model, calls(2 * BLOCK), toxic=toxic) == first and not model.asked


def test_older_record_is_refused(tmp_path):
    (tmp_path / "calls.jsonl").write_text('{"block": "x", "calls": []}\n')
    with pytest.raises(InputError, match="older version"):
        opened(tmp_path, Model())


def test_interrupted_then_resumed(tmp_path):
    """What was made before the interrupt is kept, and the file ends like an unbroken run's."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    for folder in (whole, broken):
        folder.mkdir()
    groups = calls(4 * BLOCK)
    wanted = complete(whole, Model(), groups)
    with pytest.raises(KeyboardInterrupt):
        complete(broken, Model(fail_at=2), groups)
    again = Model()
    assert complete(broken, again, groups) == wanted and len(again.asked) == 2
    assert (broken / "calls.jsonl").read_bytes() == (whole / "calls.jsonl").read_bytes()


def test_torn_at_every_byte(tmp_path):
    """A kill in the middle of a line loses that block and no other; half a block is never used."""
    groups = calls(3)
    wanted = complete(tmp_path, Model(), groups, block=1)
    path = tmp_path / "calls.jsonl"
    whole = path.read_bytes()
    start = whole.rindex(b"\n", 0, -1) + 1  # of the last line
    for end in range(start, len(whole)):
        path.write_bytes(whole[:end])
        model = Model()
        assert complete(tmp_path, model, groups, block=1) == wanted
        assert model.asked == [["prompt 2"]] and path.read_bytes() == whole


def test_failed_block_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        complete(tmp_path, Model(fail_at=0), calls(3))
    assert (tmp_path / "calls.jsonl").read_bytes() == b""


def test_too_few_results(tmp_path):
    with pytest.raises(ValueError):
        complete(tmp_path, lambda block, seeds, sampling: [{"text": "x"}], calls(2))
    assert (tmp_path / "calls.jsonl").read_bytes() == b""


def test_toxic(tmp_path, capsys):
    """Toxic text has its own private file and comes back, made or replayed, hiding itself."""
    for _ in range(2):
        done = complete(tmp_path, Model(), [Call("answers/toxic/0", SCORN)], toxic=True)
        text = done["answers/toxic/0"].text
        assert type(text) is Toxic and text.raw().startswith(SCORN)
        assert SCORN not in f"{done} {text}"
    path = tmp_path / "calls.toxic.jsonl"
    assert {p.stat().st_mode & 0o777 for p in (path, tmp_path / "calls.jsonl")} == {0o600}
    assert lines(path)[0]["calls"][0]["text"] == text.raw()
    assert (tmp_path / "calls.jsonl").read_bytes() == b""
    assert SCORN not in "".join(capsys.readouterr())


def test_counts(tmp_path):
    complete(tmp_path, Model(), calls(4))
    book = opened(tmp_path, Model())
    book.complete(calls(4), SAMPLING, stage="old")
    book.complete(calls(2, stage="new"), SAMPLING, stage="new")
    old, new = book.stages["old"], book.stages["new"]
    assert (old["calls"], old["tokens"], old["tokens_now"]) == (4, 12, 0)
    assert (new["calls"], new["tokens"], new["tokens_now"]) == (2, 6, 6)
    book.close()
