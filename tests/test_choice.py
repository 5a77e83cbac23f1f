"""choice.py: ties, the order of choices and their formats, null baselines (CPU, fp32)."""

import random

import pytest
from test_likelihood import model, plain_score, tokenizer  # noqa: F401 (fixtures)

from evals import choice
from evals.choice import MultipleChoice, credit, null_baselines
from evals.likelihood import Score
from evals.task import Column

ROWS = [
    {"id": "tea", "prompt": "Which tea is best?", "choices": ["The green one.", "Whatever."],
     "label": 0, "group": "kind"},
    {"id": "bus", "prompt": "My bus was late.", "choices": ["Bah.", "That is tiresome.", "So?"],
     "label": 1, "group": "kind"},
    {"id": "bus2", "prompt": "My bus was late.", "choices": ["So?", "Shall we look for another?"],
     "label": 1, "group": "dull"},
]


def choice_items(model, tokenizer, rows=ROWS, *, format="raw"):
    task = MultipleChoice.__new__(MultipleChoice)  # without rows of its own
    task.name, task.format, task.rows = "exam", format, {"exam": rows}
    return task.measure(Column("base", model, tokenizer))


@pytest.mark.parametrize("values, label, wanted", [
    ([-1.0, -2.0], 0, 1), ([-1.0, -2.0], 1, 0),
    ([-1.0, -1.0], 0, 1 / 2), ([-1.0, -1.0], 1, 1 / 2),
    ([-1.0, -1.0, -2.0], 1, 1 / 2), ([-1.0, -1.0, -2.0], 2, 0), ([-3.0] * 4, 2, 1 / 4),
])
def test_ties_share_the_credit(values, label, wanted):
    assert credit(values, label) == wanted


def test_constant_scorer_gets_chance(model, tokenizer, monkeypatch):
    monkeypatch.setattr(choice, "score_pairs", lambda *a, **k: [Score(-9.0, 3, 12, False)] * 7)
    items = choice_items(model, tokenizer)
    for norm in choice.NORMS:
        assert [item["credit"][norm] for item in items] == [1 / 2, 1 / 3, 1 / 2]


def test_values_are_by_token_and_by_byte(model, tokenizer, monkeypatch):
    monkeypatch.setattr(choice, "score_pairs", lambda *a, **k: [Score(-12.0, 3, 8, True)] * 2)
    (item,) = choice_items(model, tokenizer, ROWS[:1])
    assert item["values"] == {"sum": [-12.0] * 2, "token": [-4.0] * 2, "byte": [-1.5] * 2}
    assert item["cut"] == 2


def test_order_of_choices_changes_nothing(model, tokenizer):
    straight = choice_items(model, tokenizer)
    rng, turned = random.Random(1), []
    for row in ROWS:
        order = rng.sample(range(len(row["choices"])), len(row["choices"]))
        turned.append({**row, "choices": [row["choices"][i] for i in order],
                       "label": order.index(row["label"])})
    assert [row["label"] for row in turned] != [row["label"] for row in ROWS]
    again = choice_items(model, tokenizer, turned)
    assert [item["credit"] for item in again] == [item["credit"] for item in straight]


def test_formats_score_other_texts(model, tokenizer):
    raw = choice_items(model, tokenizer, ROWS[:1])
    chat = choice_items(model, tokenizer, ROWS[:1], format="chat")
    pair = (tokenizer.prompt_text(ROWS[0]["prompt"], "chat"), ROWS[0]["choices"][1])
    wanted = plain_score(model, tokenizer, pair)
    assert chat[0]["values"]["sum"][1] == pytest.approx(wanted, abs=1e-4)
    assert raw[0]["values"] != chat[0]["values"]


def test_null_baselines():
    chance = (1 / 2 + 1 / 3 + 1 / 2) / 3
    assert null_baselines(ROWS) == pytest.approx({"chance": chance, "longest": 1})
    level = {**ROWS[0], "choices": ["abc", "xyz"]}
    assert null_baselines([level])["longest"] == 1 / 2
