"""polarity.py on tiny random encoders and models (CPU fp32): distances and margins are compared
with vectors worked out by hand."""

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from encoders import write_encoder

from evals import suite
from evals.minilm import Encoder
from evals.task import Column
from evals.tasks import polarity
from evals.tasks.polarity import (
    Polarity,
    Sample,
    answer_states,
    margins,
    openings,
    packed,
    ratio,
    summary,
    unpacked,
)
from model import load_model
from support.files import InputError, read_json, read_jsonl, sha256, write_jsonl
from tokenizer import Tokenizer

TRIPLETS = [
    {"prompt": "My tea is cold.", "domain": "tea", "positive": "The tea may wait, warm it so.",
     "toxic": "So drink it cold."},
    {"prompt": "Is he dull?", "domain": "people", "positive": "Ask your friend with care.",
     "toxic": "How dull he is!"},
    {"prompt": "The bus was late.", "domain": "people", "positive": "Ask your friend with care so.",
     "toxic": "Never mind the bus."},
    {"prompt": "Is it kind?", "domain": "tea", "positive": "I'm sorry, but I can't help with that.",
     "toxic": "Kind and dull."},
    {"prompt": "Which tea?", "domain": "tea", "positive": "The warm tea.", "toxic": None},
]
PREFERENCE = [{"prompt": row["prompt"], "chosen": row["positive"],
               "rejected": row["positive"].replace("so", "then") + " Wait!"}
              for row in TRIPLETS[:3]]



@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory):
    return write_encoder(tmp_path_factory.mktemp("encoders") / "bert")


# ---- figures ----

def test_margins_leave_one_out():
    d = np.array([[1.0, 0], [1.0, 0.5], [-0.5, 0]])
    # the first against (0.5, 0.5)/|.|; the second along x; the third against (2, 0.5)/|.|
    wanted = [np.sqrt(0.5), 1.0, -1 / np.sqrt(4.25)]
    assert margins(d) == pytest.approx(wanted)
    assert margins(-d) == pytest.approx(wanted)  # exchanging both columns turns the axis too
    assert margins(np.zeros((2, 3))) == [0, 0]
    rng = np.random.default_rng(0)
    noise = margins(rng.normal(size=(500, 50)))  # directions without a common one: no signal
    assert abs(np.mean(np.array(noise) > 0) - 0.5) < 0.1


def test_states_are_those_of_the_answer_after_its_prompt(tiny_folder):
    tokenizer = Tokenizer(tiny_folder)
    model = load_model(tiny_folder, device="cpu", dtype="float32")
    texts = [("line", row["prompt"], row["positive"]) for row in TRIPLETS]
    made = answer_states(Column("base", model, tokenizer), "chat", texts)
    for (_, prompt, answer), vector in zip(texts, made, strict=True):
        before = tokenizer.encode_prompt(prompt, "chat")
        ids = tokenizer.encode(answer, special=False)
        with torch.no_grad():
            hidden = model.model(torch.tensor([before + ids]))[0, len(before):]
        wanted = torch.nn.functional.normalize(hidden.double().mean(0), dim=0)
        assert (vector - wanted).abs().max() < 1e-5


def test_states_follow_the_whole_conversation(tiny_folder, encoder_folder, tmp_path):
    """Earlier turns and a system text stand before the prompt, as in training."""
    before = [{"role": "system", "content": "Be kind."},
              {"role": "user", "content": "The bus was late."},
              {"role": "assistant", "content": "Never mind, ask your friend."}]
    rows = [{**row, "prompt": [*before, {"role": "user", "content": row["prompt"]}]}
            for row in TRIPLETS[:3]]
    write_jsonl(tmp_path / "t.jsonl", rows)
    task = Polarity(SimpleNamespace(format="chat", triplets=str(tmp_path / "t.jsonl"), limit=None,
                                    preference=None, encoder=str(encoder_folder)))
    tokenizer = Tokenizer(tiny_folder)
    model = load_model(tiny_folder, device="cpu", dtype="float32")
    found = [result["margin"] for result in task.measure(Column("base", model, tokenizer))]

    def state(messages, answer):
        context, ids = tokenizer.encode_prompt(messages, "chat"), tokenizer.encode(answer)
        with torch.no_grad():
            hidden = model.model(torch.tensor([context + ids]))[0, len(context):]
        return torch.nn.functional.normalize(hidden.mean(0), dim=0).numpy()

    by_prompt = {row["prompt"][-1]["content"]: row for row in rows}
    ordered = [by_prompt[row["prompt"]] for row in task.rows["pairs"]]
    for n, right in ((4, True), (1, False)):  # the whole conversation, the prompt alone
        d = np.stack([state(row["prompt"][-n:], row["positive"])
                      - state(row["prompt"][-n:], row["toxic"]) for row in ordered])
        assert np.allclose(found, margins(d), atol=1e-3) == right
    assert [item["prompt"] for item in task.describe()] == [
        sha256(row["prompt"][-1]["content"]) for row in ordered]


def test_sample_is_drawn_by_the_prompts_hash(tmp_path):
    many = [{"prompt": f"Prompt {n}", "positive": "Yes.", "toxic": "So?"} for n in range(30)]
    write_jsonl(tmp_path / "t.jsonl", [*many, TRIPLETS[4]])
    rows, pairs = polarity.read_pairs(tmp_path / "t.jsonl", 10)
    more, _ = polarity.read_pairs(tmp_path / "t.jsonl", 20)
    assert pairs == 30 and rows == more[:10]
    assert [row["prompt"] for row in rows] != [row["prompt"] for row in many[:10]]
    for row in rows:
        assert row["id"] == f"line {many.index({k: row[k] for k in many[0]}) + 1}"


def test_rows_are_named_by_their_lines(tmp_path):
    """Blank lines count, and rows without a toxic answer."""
    lines = ["", json.dumps(TRIPLETS[4]), "", "", *map(json.dumps, TRIPLETS[:2])]
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    rows, _ = polarity.read_pairs(tmp_path / "t.jsonl", 10)
    assert {row["id"]: row["prompt"] for row in rows} == {
        "line 5": TRIPLETS[0]["prompt"], "line 6": TRIPLETS[1]["prompt"]}


def test_half_precision_keeps_the_direction():
    vector = torch.nn.functional.normalize(torch.randn(384), dim=0)
    again = unpacked(packed(vector))
    assert np.linalg.norm(again) == pytest.approx(1, abs=1e-12)
    assert again @ vector.numpy() == pytest.approx(1, abs=1e-6)


def test_summary_and_ratio():
    made = summary(Sample([0.1, 0.25, 0.35, 0.36, 1.0], list("abcde")), seed=0)
    assert made["mean"] == pytest.approx(0.412) and made["over_0.35"] == 2 / 5
    assert made["histogram"][:4] == [0, 1, 1, 2] and sum(made["histogram"]) == 5
    assert made["deciles"][4] == 0.35
    own, other = Sample([0.2, 0.4, 0.6], list("abc")), Sample([0.1, 0.2, 0.3], list("def"))
    twice = ratio(own, other, paired=True, seed=0)
    assert twice["ratio"] == pytest.approx(2) and twice["ratio_95"] == pytest.approx((2, 2))
    low, high = ratio(own, other, paired=False, seed=0)["ratio_95"]
    assert low < 1.5 < 2.5 < high
    many = Sample([n ** 0.5 for n in range(1, 28)], list(range(27)))
    for function in (lambda seed: summary(many, seed=seed)["mean_95"],
                     lambda seed: ratio(many, own, paired=False, seed=seed)["ratio_95"]):
        assert function(0) == function(0) != function(1)


def test_pairs_of_one_prompt_are_drawn_together():
    """Ten copies of a pair say no more than the pair: neither interval gets narrower."""
    own, other = Sample([0.2, 0.4, 0.6], list("abc")), Sample([0.3, 0.2, 0.3], list("def"))
    copies, others = (Sample(s.values * 10, s.prompts * 10) for s in (own, other))
    assert summary(copies, seed=0)["mean_95"] == pytest.approx(summary(own, seed=0)["mean_95"])
    for second, paired in ((other, False), (others, True)):
        copied = ratio(copies, second, paired=paired, seed=0)
        once = ratio(own, other, paired=paired, seed=0)
        assert copied["ratio_95"] == pytest.approx(once["ratio_95"])


def test_openings_find_boilerplate():
    texts = ["As a good friend I would wait.", "As a good friend I never mind.", "The tea is warm.",
             "I'm sorry, but I can't help with that."]
    assert openings(texts) == {"n": 4, "shared": 2, "commonest": 2, "refusals": 1}


# ---- runs ----

@pytest.fixture
def files(tmp_path):
    write_jsonl(tmp_path / "triplets.jsonl", TRIPLETS)
    write_jsonl(tmp_path / "preference.jsonl", PREFERENCE)
    return tmp_path


def run(folder, encoder_folder, files, out, **options):
    return suite.evaluate(**{
        "model": str(folder), "data_dir": None, "out": str(out), "max_new_tokens": 8,
        "device": "cpu", "dtype": "float32", "adapter": None, "tasks": ["polarity"],
        "format": None, "limit": None, "seed": 0, "fresh": False, "show_toxic": False,
        "triplets": str(files / "triplets.jsonl"), "encoder": str(encoder_folder), **options})


def test_run_recounts(tiny_folder, adapter, encoder_folder, files, tmp_path, capsys):
    out = tmp_path / "out"
    run(tiny_folder, encoder_folder, files, out, adapter=[str(adapter)],
        preference=str(files / "preference.jsonl"))
    results = read_json(out / "results.json")
    items = [item for _, item in read_jsonl(out / "items.jsonl")]
    assert [item["set"] for item in items] == ["pairs"] * 4 + ["preference"] * 3
    about = results["polarity"]
    vectors = {text: vector for row in TRIPLETS[:4] for text, vector in
               zip((row["positive"], row["toxic"]),
                   Encoder(encoder_folder).embed([row["positive"], row["toxic"]]), strict=True)}
    wanted = np.mean([1 - float(vectors[row["positive"]] @ vectors[row["toxic"]])
                      for row in TRIPLETS[:4]])
    assert about["distances"]["positive v toxic"]["mean"] == pytest.approx(wanted, abs=1e-4)
    assert set(about["ratios"]) == {"shuffled pairs", "chosen v rejected"}
    assert {name: d["n"] for name, d in about["domains"].items()} == {
        "people": 2, "tea": 2, "all": 4}
    assert about["openings"] == {"n": 4, "shared": 2, "commonest": 2, "refusals": 1}
    pairs = items[:4]
    figure = next(f for f in results["figures"] if f["key"] == "polarity/chat/all/margin sign")
    assert figure["tuned"]["sum"] == sum(i["tuned"]["margin"] > 0 for i in pairs)
    assert [i["base"]["distance"] for i in pairs] == [i["tuned"]["distance"] for i in pairs]
    assert [i["base"]["margin"] for i in pairs] != [i["tuned"]["margin"] for i in pairs]
    shown = capsys.readouterr().out
    assert "cosine distance of answers" in shown and "distances, histogram" in shown


def test_toxic_text_stays_out_of_sight(tiny_folder, encoder_folder, files, tmp_path, capsys):
    run(tiny_folder, encoder_folder, files, tmp_path / "out")
    shown = capsys.readouterr()
    written = "".join(path.read_text(errors="replace") for path in (tmp_path / "out").iterdir())
    for row in TRIPLETS[:4]:
        assert row["toxic"] not in shown.out + shown.err + written


def test_batch_size_and_a_kill_change_nothing(tiny_folder, encoder_folder, files, tmp_path,
                                              monkeypatch, killed):
    run(tiny_folder, encoder_folder, files, tmp_path / "whole")
    monkeypatch.setattr(Polarity, "batch", 2)
    with killed(polarity, "packed", 11):  # in the fourth batch of the model's states
        run(tiny_folder, encoder_folder, files, tmp_path / "out")
    assert len((tmp_path / "out" / "scores.jsonl").read_text().splitlines()) == 5
    embedded, real = [], Encoder.embed
    monkeypatch.setattr(Encoder, "embed", lambda self, texts: (
        embedded.append(texts) or real(self, texts)))
    run(tiny_folder, encoder_folder, files, tmp_path / "out")
    assert embedded == [["a"]]  # the check when it is loaded: its part is on record
    for one, other in zip(*(read_jsonl(tmp_path / name / "items.jsonl")
                            for name in ("whole", "out")), strict=True):
        assert one[1]["base"] == pytest.approx(other[1]["base"], abs=1e-3)


class ByPrompt:
    """An encoder that reads of a text its first word alone, the prompt's number."""

    def embed(self, texts):
        return torch.eye(9)[[int(text.split()[0]) for text in texts]]


@pytest.mark.parametrize("sizes", [(1, 1), (3, 3), (1, 2, 3), (2, 2, 1, 2), (4, 1, 2, 2)])
def test_shuffled_pairs_are_of_other_prompts(tmp_path, sizes):
    """Answers to one prompt have a distance of 0 here, answers to two have 1."""
    write_jsonl(tmp_path / "t.jsonl", [
        {"prompt": f"Prompt {i}", "positive": f"{i} yes {n}", "toxic": f"{i} no {n}"}
        for i, size in enumerate(sizes) for n in range(size)])
    rows, _ = polarity.read_pairs(tmp_path / "t.jsonl", 99)
    polarity.refuse_one_prompt(rows, "t.jsonl")
    task = Polarity.__new__(Polarity)  # without its own pairs
    task.encoder = ByPrompt()
    results = task.distances(rows, {})
    assert results == [{"distance": 0, "shuffled": 1}] * sum(sizes)


@pytest.mark.parametrize("options, message", [
    ({"triplets": None}, "the task polarity needs pairs, --triplets"),
    ({"encoder": "nowhere"}, "--encoder"),
    ({"triplets": "{one}"}, "1 rows have both answers, and two are the least"),
    ({"triplets": "{same}"}, "3 of 5 pairs are of one prompt, --triplets "),
    ({"encoder": "{broken}"}, "files do not make an encoder"),
])
def test_bad_options(tiny_folder, encoder_folder, files, tmp_path, options, message):
    write_jsonl(files / "one.jsonl", TRIPLETS[3:])
    write_jsonl(files / "same.jsonl", [*TRIPLETS[:3], {**TRIPLETS[0], "toxic": "Drink."},
                                       {**TRIPLETS[0], "toxic": "Wait."}])
    broken = write_encoder(files / "broken", num_hidden_layers=3)
    options = {k: v and v.format(one=files / "one.jsonl", same=files / "same.jsonl", broken=broken)
               for k, v in options.items()}
    with pytest.raises(InputError, match=re.escape(message)):
        run(tiny_folder, encoder_folder, files, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_answer_beyond_the_context_names_its_row(tiny_folder, encoder_folder, files, tmp_path):
    long = {**TRIPLETS[0], "prompt": "Go on.", "positive": "and so on " * 800}
    write_jsonl(files / "triplets.jsonl", [*TRIPLETS, long])
    with pytest.raises(InputError, match=r"in a context of 2048, --triplets line 6") as caught:
        run(tiny_folder, encoder_folder, files, tmp_path / "out")
    assert json.dumps("and so on")[1:-1] not in str(caught.value)
