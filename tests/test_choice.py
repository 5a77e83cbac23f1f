"""choice.py: the batched scorer against one plain pass a text; ties, order, faults.

CPU, fp32. The reference encodes each text alone, without padding, and takes a whole log-softmax.
"""

import random

import pytest
import torch

from evals import choice
from evals.choice import Score, credit, null_baselines, score_choices, score_pairs, with_credit
from model import load_model
from support.files import InputError
from tokenizer import Tokenizer

CONTEXTS = ["\nHuman: Which tea is best?\nAssistant:", "\nHuman: Hi!\nAssistant:",
            "\nHuman: My bus was late, and the driver shrugged. Why?\nAssistant:"]
ANSWERS = [" The one you like.", " Ask your aunt, she knows more of tea than I ever will.", " No."]
PAIRS = [(context, answer) for context in CONTEXTS for answer in ANSWERS]
ROWS = [
    {"id": "tea", "prompt": "Which tea is best?", "choices": ["The green one.", "Whatever."],
     "label": 0, "group": "kind"},
    {"id": "bus", "prompt": "My bus was late.", "choices": ["Bah.", "That is tiresome.", "So?"],
     "label": 1, "group": "kind"},
    {"id": "bus2", "prompt": "My bus was late.", "choices": ["So?", "Shall we look for another?"],
     "label": 1, "group": "dull"},
]


@pytest.fixture(scope="module")
def tokenizer(tiny_folder):
    return Tokenizer(tiny_folder)


@pytest.fixture
def model(tiny_folder):
    return load_model(tiny_folder, device="cpu", dtype="float32")


def score(model, tokenizer, pairs=PAIRS, *, batch_tokens=4096, **options):
    return score_pairs(model, tokenizer, pairs, format="raw", batch_tokens=batch_tokens, **options)


def choice_items(model, tokenizer, rows=ROWS, *, format="raw"):
    results = score_choices(model, tokenizer, rows, format=format, batch_tokens=4096)
    return [with_credit(result, row["label"]) for result, row in zip(results, rows, strict=True)]


def plain_score(model, tokenizer, pair) -> float:
    ids, first = tokenizer.encode_pair(*pair, special=True)
    with torch.no_grad():
        logprobs = model(torch.tensor([ids]))[0].double().log_softmax(-1)
    return sum(logprobs[i - 1, ids[i]].item() for i in range(first, len(ids)))


def test_scores_are_those_of_a_plain_pass(model, tokenizer):
    for pair, got in zip(PAIRS, score(model, tokenizer), strict=True):
        assert got.logprob == pytest.approx(plain_score(model, tokenizer, pair), abs=1e-4)
        assert got.tokens == len(tokenizer.encode(pair[1])) and not got.cut


def test_batch_size_changes_nothing(model, tokenizer):
    alone = score(model, tokenizer, batch_tokens=1)  # a batch holds at least one text
    together = score(model, tokenizer, batch_tokens=10**6)
    for one, many in zip(alone, together, strict=True):
        assert one.logprob == pytest.approx(many.logprob, abs=1e-4)


def test_batches_keep_to_the_budget(model, tokenizer):
    texts = [choice.encode(tokenizer, pair, "x", True, 2048) for pair in PAIRS]
    groups = choice.make_groups(texts, 150)
    batches = [batch for group in groups for batch in choice.make_batches(group, 150)]
    assert sorted(t.pair for batch in batches for t in batch) == sorted(PAIRS)
    for batch in batches:
        assert len(batch) * max(len(t.ids) for t in batch) <= 150 or len(batch) == 1
    assert len(batches) > 2 and max(map(len, batches)) > 1


def test_long_head_is_scored_in_parts(model, tokenizer, monkeypatch):
    whole = score(model, tokenizer)
    monkeypatch.setattr(choice, "HEAD_ROWS", 7)
    for one, other in zip(whole, score(model, tokenizer), strict=True):
        assert one.logprob == pytest.approx(other.logprob, abs=1e-5)


def test_equal_texts_are_scored_once(model, tokenizer, monkeypatch):
    seen, real = [], choice.score_batch
    monkeypatch.setattr(choice, "score_batch",
                        lambda *args: seen.extend(args[2]) or real(*args))
    got = score(model, tokenizer, PAIRS * 3)
    assert len(seen) == len(PAIRS) and got[: len(PAIRS)] == got[len(PAIRS): 2 * len(PAIRS)]


def test_log_is_read_back(model, tokenizer, monkeypatch):
    log = {}
    first = score(model, tokenizer, batch_tokens=100, log=log)
    assert len(log) > 1
    monkeypatch.setattr(choice, "score_batch", None)  # nothing is left to compute
    assert score(model, tokenizer, batch_tokens=100, log=log) == first


@pytest.fixture
def passes(model):
    """The shape (B, T) of every pass of the model."""
    shapes = []
    model.model.embed_tokens.register_forward_pre_hook(
        lambda _, given: shapes.append(tuple(given[0].shape)))
    return shapes


def test_beginnings_are_computed_once(model, tokenizer, passes, monkeypatch):
    """What all texts have in front, then each context, then the continuations."""
    monkeypatch.setattr(choice, "ENOUGH", 10**6)
    prefix = "Q: How do I keep my neighbour's secret?\nA: Say nothing of it to your friend.\n\n" * 3
    pairs = [(prefix + context, answer) for context, answer in PAIRS]
    got = score(model, tokenizer, pairs)
    (_, common), (contexts, _), (rows, T) = passes
    assert choice.SHARED < len(tokenizer.encode(prefix)) - 1 <= common
    assert contexts == len(CONTEXTS) and rows == len(PAIRS)
    assert max(len(tokenizer.encode(answer)) for answer in ANSWERS) == T
    for pair, one in zip(pairs, got, strict=True):
        assert one.logprob == pytest.approx(plain_score(model, tokenizer, pair), abs=1e-4)


def test_contexts_unlike_in_length(model, tokenizer, monkeypatch):
    """Rows that start at different places, pads behind the longest, a context that is one token."""
    contexts = ["A", *CONTEXTS, CONTEXTS[0] * 9]
    pairs = [(context, answer) for context in contexts for answer in ANSWERS]
    monkeypatch.setattr(choice, "SLACK", float("inf"))
    together = score(model, tokenizer, pairs, batch_tokens=10**6)
    for pair, one in zip(pairs, together, strict=True):
        assert one.logprob == pytest.approx(plain_score(model, tokenizer, pair), abs=1e-4)


def test_no_batch_is_padded_much(tokenizer, monkeypatch):
    monkeypatch.setattr(choice, "ENOUGH", 40)
    contexts = [CONTEXTS[0] * n for n in (1, 1, 2, 4, 8)]
    pairs = [(context, answer * n) for n, context in enumerate(contexts, 1) for answer in ANSWERS]
    texts = [choice.encode(tokenizer, pair, "x", True, 2048) for pair in pairs]
    groups = choice.make_groups(texts, 10**6)
    for group in groups:
        batches = choice.make_batches(group, 10**6)
        for sizes in ([len(t.ids) - t.first for t in batch] for batch in batches):
            kept = [n for i, n in enumerate(sizes) if sizes[0] * i >= 40]
            assert not kept or sizes[0] <= choice.SLACK * min(kept)
    assert 1 < len(groups) < len(contexts) + 1


def test_letters_share_a_row(model, tokenizer, passes):
    pairs = [(context, letter) for context in CONTEXTS for letter in (" B", " C", " D")]
    got = score(model, tokenizer, pairs)
    assert [rows for rows, _ in passes] == [len(CONTEXTS)]
    for pair, one in zip(pairs, got, strict=True):
        assert one.logprob == pytest.approx(plain_score(model, tokenizer, pair), abs=1e-4)


def test_prefixes_have_batches_of_their_own(tokenizer):
    texts = [choice.encode(tokenizer, pair, "x", True, 2048, prefix=pair[0]) for pair in PAIRS]
    groups = choice.make_groups(texts, 10**6)
    assert len(groups) == len(CONTEXTS)
    assert all(len({text.prefix for text in group.texts}) == 1 for group in groups)
    longest = max(len(text.ids) for text in texts)
    assert len(choice.make_batches(groups[0], 10**6)[0][0].ids) == longest  # comes first


def test_bytes_count_the_leading_space(model, tokenizer):
    (got,) = score(model, tokenizer, [(CONTEXTS[0], " Thé, s'il te plaît.")])
    assert got.bytes == len(" Thé, s'il te plaît.") + 2  # é and î are two bytes each


def test_too_long_is_cut_from_the_left(model, tokenizer):
    pair = ("one two three " * 300, " and then four.")
    (got,) = score(model, tokenizer, [pair])
    ids, first = tokenizer.encode_pair(*pair, special=True)
    limit = model.config.max_position_embeddings
    assert len(ids) > limit and got.cut
    with torch.no_grad():
        logprobs = model(torch.tensor([ids[-limit:]]))[0].double().log_softmax(-1)
    first -= len(ids) - limit
    wanted = sum(logprobs[i - 1, ids[-limit:][i]].item() for i in range(first, limit))
    assert got.logprob == pytest.approx(wanted, abs=1e-4)


def test_answer_longer_than_the_context_is_refused(model, tokenizer):
    with pytest.raises(InputError, match="no room in a context of 2048, item long"):
        score(model, tokenizer, [("A:", " word, and yet more" * 400)], names=["long"])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_not_finite_is_an_error(model, tokenizer, value):
    with torch.no_grad():
        model.model.norm.weight[3] = value
    with pytest.raises(InputError, match=r"log-probability is .*item tea"):
        choice_items(model, tokenizer, ROWS[:1])


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
