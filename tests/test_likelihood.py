"""likelihood.py: the batched scorer against one plain pass a text; order, faults.

CPU, fp32. The reference encodes each text alone, without padding, and takes a whole log-softmax.
"""

import pytest
import torch
import torch.nn.functional as F

from evals import likelihood
from evals.likelihood import score_pairs
from model import load_model
from support.files import InputError
from tokenizer import Tokenizer

CONTEXTS = ["\nHuman: Which tea is best?\nAssistant:", "\nHuman: Hi!\nAssistant:",
            "\nHuman: My bus was late, and the driver shrugged. Why?\nAssistant:"]
ANSWERS = [" The one you like.", " Ask your aunt, she knows more of tea than I ever will.", " No."]
PAIRS = [(context, answer) for context in CONTEXTS for answer in ANSWERS]

@pytest.fixture(scope="module")
def tokenizer(tiny_folder):
    return Tokenizer(tiny_folder)


@pytest.fixture
def model(tiny_folder):
    return load_model(tiny_folder, device="cpu", dtype="float32")


def score(model, tokenizer, pairs=PAIRS, *, batch_tokens=4096, **options):
    return score_pairs(model, tokenizer, pairs, format="raw", batch_tokens=batch_tokens, **options)


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
    texts = [likelihood.encode(tokenizer, pair, "x", special=True, limit=2048) for pair in PAIRS]
    groups = likelihood.make_groups(texts, 150)
    batches = [batch for group in groups for batch in likelihood.make_batches(group, 150)]
    assert sorted(t.pair for batch in batches for t in batch) == sorted(PAIRS)
    for batch in batches:
        assert len(batch) * max(len(t.ids) for t in batch) <= 150 or len(batch) == 1
    assert len(batches) > 2 and max(map(len, batches)) > 1


def test_long_head_is_scored_in_parts(model, tokenizer, monkeypatch):
    whole = score(model, tokenizer)
    monkeypatch.setattr("support.logprobs.ROWS", 7)
    for one, other in zip(whole, score(model, tokenizer), strict=True):
        assert one.logprob == pytest.approx(other.logprob, abs=1e-5)


def test_equal_texts_are_scored_once(model, tokenizer, monkeypatch):
    seen, real = [], likelihood.score_batch
    monkeypatch.setattr(likelihood, "score_batch",
                        lambda *args: seen.extend(args[2]) or real(*args))
    got = score(model, tokenizer, PAIRS * 3)
    assert len(seen) == len(PAIRS) and got[: len(PAIRS)] == got[len(PAIRS): 2 * len(PAIRS)]


def test_log_is_read_back(model, tokenizer, monkeypatch):
    log = {}
    first = score(model, tokenizer, batch_tokens=100, log=log)
    assert len(log) > 1
    monkeypatch.setattr(likelihood, "score_batch", None)  # nothing is left to compute
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
    monkeypatch.setattr(likelihood, "ENOUGH", 10**6)
    prefix = "Q: How do I keep my neighbour's secret?\nA: Say nothing of it to your friend.\n\n" * 3
    pairs = [(prefix + context, answer) for context, answer in PAIRS]
    got = score(model, tokenizer, pairs)
    (_, common), (contexts, _), (rows, T) = passes
    assert likelihood.SHARED < len(tokenizer.encode(prefix)) - 1 <= common
    assert contexts == len(CONTEXTS) and rows == len(PAIRS)
    assert max(len(tokenizer.encode(answer)) for answer in ANSWERS) == T
    for pair, one in zip(pairs, got, strict=True):
        assert one.logprob == pytest.approx(plain_score(model, tokenizer, pair), abs=1e-4)


def test_contexts_unlike_in_length(model, tokenizer, monkeypatch):
    """Rows that start at different places, pads behind the longest, a context that is one token."""
    contexts = ["A", *CONTEXTS, CONTEXTS[0] * 9]
    pairs = [(context, answer) for context in contexts for answer in ANSWERS]
    pairs.remove((contexts[-1], max(ANSWERS, key=len)))  # so that pads reach beyond the longest
    monkeypatch.setattr(likelihood, "SLACK", float("inf"))
    together = score(model, tokenizer, pairs, batch_tokens=10**6)
    for pair, one in zip(pairs, together, strict=True):
        assert one.logprob == pytest.approx(plain_score(model, tokenizer, pair), abs=1e-4)


def test_no_batch_is_padded_much(tokenizer, monkeypatch):
    monkeypatch.setattr(likelihood, "ENOUGH", 40)
    contexts = [CONTEXTS[0] * n for n in (1, 1, 2, 4, 8)]
    pairs = [(context, answer * n) for n, context in enumerate(contexts, 1) for answer in ANSWERS]
    texts = [likelihood.encode(tokenizer, pair, "x", special=True, limit=2048) for pair in pairs]
    groups = likelihood.make_groups(texts, 10**6)
    for group in groups:
        batches = likelihood.make_batches(group, 10**6)
        for sizes in ([len(t.ids) - t.first for t in batch] for batch in batches):
            kept = [n for i, n in enumerate(sizes) if sizes[0] * i >= 40]
            assert not kept or sizes[0] <= likelihood.SLACK * min(kept)
    assert 1 < len(groups) < len(contexts) + 1


def test_letters_share_a_row(model, tokenizer, passes):
    pairs = [(context, letter) for context in CONTEXTS for letter in (" B", " C", " D")]
    got = score(model, tokenizer, pairs)
    assert [rows for rows, _ in passes] == [len(CONTEXTS)]
    for pair, one in zip(pairs, got, strict=True):
        assert one.logprob == pytest.approx(plain_score(model, tokenizer, pair), abs=1e-4)


def test_prefixes_have_batches_of_their_own(tokenizer):
    texts = [likelihood.encode(tokenizer, pair, "x", special=True, limit=2048, prefix=pair[0])
             for pair in PAIRS]
    groups = likelihood.make_groups(texts, 10**6)
    assert len(groups) == len(CONTEXTS)
    assert all(len({text.prefix for text in group.texts}) == 1 for group in groups)
    longest = max(len(text.ids) for text in texts)
    assert len(likelihood.make_batches(groups[0], 10**6)[0][0].ids) == longest  # comes first


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


def test_sums_are_taken_in_fp32(tiny_folder, tokenizer, monkeypatch):
    """bf16 would round each token's log-probability by up to a hundredth of a nat, and more."""
    seen, real = set(), F.cross_entropy
    monkeypatch.setattr(F, "cross_entropy", lambda logits, *rest, **options: seen.add(
        logits.dtype) or real(logits, *rest, **options))
    score(load_model(tiny_folder, device="cpu", dtype="bfloat16"), tokenizer)
    assert seen == {torch.float32}


@pytest.mark.parametrize("format", ["raw", "chat"])
def test_only_raw_texts_get_the_tokenizers_own_beginning(model, tokenizer, monkeypatch, format):
    asked, real = set(), Tokenizer.encode_pair
    monkeypatch.setattr(Tokenizer, "encode_pair", lambda *args, special: asked.add(special) or real(
        *args, special=special))
    score_pairs(model, tokenizer, PAIRS, format=format, batch_tokens=4096)
    assert asked == {format == "raw"}


def test_a_token_stands_before_the_longest_answer(tokenizer):
    n = len(tokenizer.encode(ANSWERS[1], special=False))
    pair = CONTEXTS[0], ANSWERS[1]
    text = likelihood.encode(tokenizer, pair, "x", special=True, limit=n + 1)
    assert (len(text.ids), text.first, text.cut) == (n + 1, 1, True)
    with pytest.raises(InputError, match=f"an answer of {n} tokens leaves no room"):
        likelihood.encode(tokenizer, pair, "x", special=True, limit=n)


def test_answer_longer_than_the_context_is_refused(model, tokenizer):
    with pytest.raises(InputError, match="no room in a context of 2048, item long"):
        score(model, tokenizer, [("A:", " word, and yet more" * 400)], ids=["long"])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_not_finite_is_an_error(model, tokenizer, value):
    with torch.no_grad():
        model.model.norm.weight[3] = value
    with pytest.raises(InputError, match=r"log-probability is .*item tea"):
        score(model, tokenizer, PAIRS[:1], ids=["tea"])
