"""generate.py: one item at a time, batches and uncached re-scoring must tell the same story.

Sampling is checked against a naive nucleus, a softmax and stored numbers; the rules of list stages
and the ways to finish against a model whose next token follows a written table. fp32 on the CPU.
"""

from types import SimpleNamespace

import pytest
import torch
from conftest import write_model

import generate as module
from generate import (
    Completion,
    Sampling,
    generate,
    sample,
    stream,
    uniform,
)
from model import load_model
from tokenizer import Tokenizer

torch.set_num_threads(1)  # waiting for a busy second core costs more than it gives, up to 10x
HOT = Sampling(max_new_tokens=24, temperature=1.0, top_p=0.9, top_k=40)
LENGTHS = (5, 1, 17, 40, 2, 9, 33, 12)


class Numbers:
    """Stands in for a tokenizer: the text is the tokens' numbers; by default nothing ends it."""

    def __init__(self, *eos):
        self.eos_ids, self.pad_id = frozenset(eos), 0

    def decode(self, ids):
        return " ".join(map(str, ids))


@pytest.fixture(scope="module", params=["llama", "mistral window"])
def model(request, tmp_path_factory):
    changes = {"llama": {}, "mistral window": {"model_type": "mistral", "sliding_window": 7}}
    folder = write_model(tmp_path_factory.mktemp("generate"), **changes[request.param])
    return load_model(folder, device="cpu", dtype="float32")


def some_prompts(lengths, *, shared=0):
    draw = torch.Generator().manual_seed(3)
    prefix = torch.randint(320, (shared,), generator=draw).tolist()
    return [prefix + torch.randint(320, (n,), generator=draw).tolist() for n in lengths]


def alone(model, tokenizer, prompts, sampling):
    """Every prompt as a batch of one, its seed being its place."""
    return [generate(model, tokenizer, [prompt], sampling, [seed])[0]
            for seed, prompt in enumerate(prompts)]


def keep_nucleus(probs, top_p: float, top_k: int):  # (B, V) -> (B, V)
    """Zero all but the top_k likeliest and the smallest set holding top_p of the mass.

    Equal probabilities stay or go together, so the kept set does not depend on a sort's order.
    """
    V = probs.shape[-1]
    if top_k:
        probs = probs * (probs >= probs.topk(min(top_k, V)).values[:, -1:])
        probs = probs / probs.sum(-1, keepdim=True)
    if top_p < 1:
        top = probs.topk(min(512, V)).values  # they hold the mass nearly always
        if (top.sum(-1) < top_p).any():
            top = probs.sort(-1, descending=True).values
        mass_before = top.cumsum(-1) - top
        size = (mass_before < top_p).sum(-1, keepdim=True).clamp(min=1)
        probs = probs * (probs >= top.gather(-1, size - 1))  # the set's least likely member
    return probs


def simple_sample(logits, uniforms: list[float], sampling: Sampling):  # (B, V) fp32 -> (B,)
    if sampling.temperature == 0:
        return logits.argmax(-1)
    probs = torch.softmax(logits / sampling.temperature, dim=-1)
    probs = keep_nucleus(probs, sampling.top_p, sampling.top_k)
    cumulative = probs.double().cumsum(-1)
    u = torch.tensor(uniforms, dtype=torch.float64, device=logits.device)[:, None]
    # The first token at which the cumulative mass exceeds u times the total.
    tokens = torch.searchsorted(cumulative, u * cumulative[:, -1:], right=True)[:, 0]
    return tokens.clamp(max=logits.shape[-1] - 1)


# ---- batches ----

@pytest.mark.parametrize("eos", [(), range(0, 320, 8)], ids=["no eos", "rows end early"])
@pytest.mark.parametrize("sampling", [HOT, Sampling(max_new_tokens=24)], ids=["hot", "greedy"])
@pytest.mark.parametrize("shared", [0, 30])
def test_batch_size_and_order(model, eos, sampling, shared):
    tokenizer, prompts = Numbers(*eos), some_prompts(LENGTHS, shared=shared)
    expected, seeds = alone(model, tokenizer, prompts, sampling), list(range(8))
    assert len({e.text for e in expected}) == 8  # or equality would say little
    if eos and sampling is HOT:
        assert len({e.n_tokens for e in expected}) > 3  # rows leave the batch one by one
    assert generate(model, tokenizer, prompts, sampling, seeds) == expected
    assert generate(model, tokenizer, prompts[::-1], sampling, seeds[::-1]) == expected[::-1]
    for i in (0, 3, 5):
        assert generate(model, tokenizer, prompts[i:i + 3], sampling,
                        seeds[i:i + 3]) == expected[i:i + 3]


def test_shared_prefix(model, monkeypatch):
    """What all prompts share runs once, and leaves the text as if it had run for each."""
    prompts, widths = some_prompts((3, 9, 6), shared=30), []
    with_prefix = generate(model, Numbers(), prompts, HOT, [0, 1, 2])
    monkeypatch.setattr(module, "shared_prefix", lambda prompts: 0)
    assert generate(model, Numbers(), prompts, HOT, [0, 1, 2]) == with_prefix
    monkeypatch.undo()
    handle = model.model.register_forward_pre_hook(lambda _, args: widths.append(args[0].shape))
    generate(model, Numbers(), prompts, Sampling(max_new_tokens=2))
    handle.remove()
    assert widths == [(1, 30), (3, 9), (3, 1)]


@pytest.mark.parametrize(("prompts", "shared"), [
    ([[1, 2, 3], [1, 2, 4]], 2),
    ([[1, 2, 3], [1, 2, 3]], 2),  # each keeps its last token for itself
    ([[1, 2], [1, 2, 3]], 1),
    ([[1, 2, 3], [4, 2, 3]], 0),
    ([[1]], 0),
    ([[5, 6, 7]], 2),
])
def test_shared_prefix_length(prompts, shared):
    assert module.shared_prefix(prompts) == shared


def test_greedy_is_argmax(model):
    for prompt in some_prompts((4, 21)):
        ids = list(prompt)
        for _ in range(16):
            ids.append(model(torch.tensor([ids]))[0, -1].argmax().item())
        (got,) = generate(model, Numbers(), [prompt], Sampling(max_new_tokens=16))
        assert got == Completion(Numbers().decode(ids[len(prompt):]), "length", 16)


@pytest.mark.parametrize("sampling", [
    HOT, Sampling(max_new_tokens=24, temperature=0.7), Sampling(24, temperature=1.3, top_p=0.5)])
def test_rescored(model, sampling):
    """The tokens drawn with the cache are those that one uncached pass would have drawn."""
    prompts, seeds = some_prompts((4, 21, 10)), [11, 5, 2 ** 40]
    for prompt, seed, got in zip(prompts, seeds, generate(
            model, Numbers(), prompts, sampling, seeds), strict=True):
        answer = list(map(int, got.text.split()))
        logits = model(torch.tensor([prompt + answer]))[0, len(prompt) - 1:-1]  # (T, V)
        probs = keep_nucleus(torch.softmax(logits / sampling.temperature, dim=-1),
                             sampling.top_p, sampling.top_k)
        for step, (row, token) in enumerate(zip(probs.double(), answer, strict=True)):
            below, u = row[:token].sum(), uniform(seed, step) * row.sum()
            assert row[token] > 0 and below - 1e-5 <= u <= below + row[token] + 1e-5


def test_seeds(model):
    (prompt,) = some_prompts((6,))
    texts = [c.text for c in generate(model, Numbers(), [prompt] * 4, HOT, [1, 2, 1, 3])]
    assert texts[0] == texts[2] and len(set(texts)) == 3
    assert generate(model, Numbers(), [prompt], HOT) == generate(
        model, Numbers(), [prompt], HOT, [0])


def test_too_long(tiny_folder):
    model = load_model(tiny_folder, device="cpu", dtype="float32")
    with pytest.raises(ValueError, match="2049 tokens, the context holds 2048"):
        generate(model, Numbers(), [[1], [1] * 2000], Sampling(max_new_tokens=49))
    with pytest.raises(ValueError, match="empty prompt"):
        generate(model, Numbers(), [[1], []], Sampling(max_new_tokens=4))


def test_real(real_folder):
    model = load_model(real_folder, device="cpu", dtype="float32")
    tokenizer = Tokenizer(real_folder)
    asks = ("Hi", "Name a colour.", "Why is the sky blue?", "Say a word that rhymes with cat.",
            "1 + 1 =", "Who wrote Hamlet?", "Tell me something about tea, please.", "Bye")
    prompts = [tokenizer.encode_prompt(ask, "raw") for ask in asks]
    sampling = Sampling(max_new_tokens=16, temperature=1.0, top_p=0.9)
    expected = alone(model, tokenizer, prompts, sampling)
    assert generate(model, tokenizer, prompts, sampling, list(range(8))) == expected
    assert generate(model, tokenizer, prompts[2:5], sampling, [2, 3, 4]) == expected[2:5]


# ---- sampling ----

def naive_nucleus(row, top_p, top_k):
    """One row: walk down the sorted list until the mass is reached, then take in the ties."""
    order = sorted(row, reverse=True)
    if top_k:
        row = [p if p >= order[min(top_k, len(row)) - 1] else 0.0 for p in row]
        row = [p / sum(row) for p in row]
    if top_p < 1:
        mass, least = 0.0, 0.0
        for p in sorted(row, reverse=True):
            if mass >= top_p and least:
                break
            mass, least = mass + p, p
        row = [p if p >= least else 0.0 for p in row]
    return row


@pytest.mark.parametrize("top_k", [0, 1, 4, 2000])
@pytest.mark.parametrize("top_p", [0.0, 1e-9, 0.33, 0.9, 0.999, 1.0])
@pytest.mark.parametrize(("size", "scale"), [(12, 2.0), (700, 4.0), (700, 0.01)])
def test_nucleus(top_p, top_k, size, scale):
    """The flat rows of 700 need more than the 512 likeliest tokens."""
    logits = torch.randn(6, size, generator=torch.Generator().manual_seed(5)) * scale
    logits[:3] = logits[:3].mul(1.5).round().div(1.5)  # many ties
    probs = torch.softmax(logits.double(), dim=-1)
    for got, row in zip(keep_nucleus(probs, top_p, top_k), probs, strict=True):
        expected = torch.tensor(naive_nucleus(row.tolist(), top_p, top_k), dtype=torch.float64)
        assert torch.equal(got > 0, expected > 0)
        assert torch.allclose(got / got.sum(), expected / expected.sum())


@pytest.mark.parametrize(("seed", "step", "value"), [
    (0, 0, 0.263103878664091), (0, 1, 0.5005160540096072), (1, 0, 0.8545754348255733),
    (2 ** 63, 17, 0.7577529254148487)])
def test_uniform(seed, step, value):
    """Stored: a change here changes every text ever sampled."""
    assert uniform(seed, step) == value


@pytest.mark.parametrize(("temperature", "top_k"), [(1.0, 0), (0.5, 0), (2.0, 4)])
def test_frequencies(temperature, top_k):
    """Pearson's chi-square of 4000 draws: mean n - 1, standard deviation sqrt(2(n - 1))."""
    logits = torch.tensor([0.0, 1.0, -1.0, 2.0, 0.5, -0.5, 1.0, 0.2])
    sampling, draws = Sampling(1, temperature=temperature, top_k=top_k), 4000
    tokens = sample(logits.expand(draws, 8), [uniform(s, 0) for s in range(draws)], sampling)
    kept = logits.topk(top_k).values[-1] if top_k else -torch.inf
    wanted = torch.softmax(logits.masked_fill(logits < kept, -torch.inf) / temperature, 0) * draws
    seen = torch.bincount(tokens, minlength=8)
    assert seen[wanted == 0].sum() == 0
    n = int((wanted > 0).sum())
    chi = ((seen - wanted) ** 2 / wanted)[wanted > 0].sum()
    assert chi < n - 1 + 4 * (2 * (n - 1)) ** 0.5


@pytest.mark.parametrize(("u", "token"), [(0.0, 1), (0.249, 1), (0.251, 3), (1 - 2 ** -53, 3)])
def test_ends_of_the_unit_interval(u, token):
    """Tokens without mass are never drawn, not even at the ends."""
    logits = torch.tensor([[0.0, 1.0, 0.0, 3.0, 0.0]]).log()
    assert sample(logits, [u], Sampling(1, temperature=1.0)).item() == token


# ---- how an answer ends, and the rules of list stages ----

WORDS = ["<eos>", "a", "b", "\n", "\n1. ", "é"]
EOS, A, B, NEWLINE, ITEM, _ = range(len(WORDS))


class Table:
    """A model whose logits after a token are written down: {token: {next: logit}}."""

    def __init__(self, table):
        self.config = SimpleNamespace(max_position_embeddings=64, num_hidden_layers=0,
                                      num_key_value_heads=1, head_dim=1)
        self.lm_head = torch.nn.Linear(len(WORDS), len(WORDS), bias=False)
        self.lm_head.weight.data.fill_(-50)  # (next, token)
        for token, scores in table.items():
            for following, score in scores.items():
                self.lm_head.weight.data[following, token] = score

    def model(self, ids, positions=None, cache=None):
        return torch.nn.functional.one_hot(ids, len(WORDS)).float()


class Words:
    eos_ids, pad_id = frozenset([EOS]), EOS

    def decode(self, ids):
        return "".join(WORDS[i] for i in ids)


AB = {A: {B: 5, EOS: 4}, B: {A: 5}}  # a b a b ...
LINES = {A: {EOS: 9, NEWLINE: 5}, NEWLINE: {EOS: 9, A: 5}}  # wants to end at once
ITEMS = {ITEM: {A: 5, B: 4}, A: {ITEM: 5}, B: {ITEM: 5}}  # "a" opens every item
ENDS = [  # table, last token of the prompt, settings, the completion
    (AB, A, {}, ("bababa", "length", 6)),
    (AB, A, {"stop": ("ab",)}, ("b", "stop", 3)),
    (AB, A, {"stop": ("zz", "ba", "bab")}, ("", "stop", 2)),
    (AB, A, {"stop": ("aa",)}, ("bababa", "length", 6)),
    (AB, A, {"stop": ("bababa",)}, ("", "stop", 6)),  # the last token allowed completes it
    ({A: {B: 5}, B: {EOS: 5}}, A, {}, ("b", "eos", 1)),
    ({A: {EOS: 5}}, A, {}, ("", "eos", 0)),
    (LINES, A, {}, ("", "eos", 0)),
    (LINES, A, {"min_lines": 1}, ("\n", "eos", 1)),
    (LINES, A, {"min_lines": 2}, ("\na\n", "eos", 3)),
    (LINES, A, {"min_lines": 9}, ("\na\na\na", "length", 6)),
    (ITEMS, ITEM, {}, ("a\n1. a\n1. a\n1. ", "length", 6)),
    (ITEMS, ITEM, {"opening_penalty": 0.5}, ("a\n1. a\n1. a\n1. ", "length", 6)),
    (ITEMS, ITEM, {"opening_penalty": 2.0}, ("a\n1. b\n1. a\n1. ", "length", 6)),
]


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(("table", "last", "settings", "completion"), ENDS)
def test_end(table, last, settings, completion, batch):
    prompts = [[B, last], [last], [A, A, last]][:batch]
    got = generate(Table(table), Words(), prompts, Sampling(max_new_tokens=6, **settings))
    assert got == [Completion(*completion)] * batch


# ---- one answer in pieces ----

@pytest.mark.parametrize("sampling", [HOT, Sampling(max_new_tokens=24)], ids=["hot", "greedy"])
@pytest.mark.parametrize("eos", [(), range(0, 320, 8)], ids=["no eos", "ends early"])
def test_stream(model, sampling, eos):
    """The pieces make the text that a batch of one gives."""
    tokenizer, prompts = Numbers(*eos), some_prompts(LENGTHS)
    for seed, (prompt, whole) in enumerate(zip(prompts, alone(model, tokenizer, prompts, sampling),
                                               strict=True)):
        pieces = list(stream(model, tokenizer, prompt, sampling, seed=seed))
        assert "".join(pieces) == whole.text and all(pieces)
        assert len(pieces) == whole.n_tokens


@pytest.mark.parametrize(("table", "last", "settings", "completion"), ENDS)
def test_stream_ends(table, last, settings, completion):
    """Nothing of a stop string is told before it is clear that it is none."""
    pieces = stream(Table(table), Words(), [B, last], Sampling(max_new_tokens=6, **settings))
    assert "".join(pieces) == completion[0]


class Spelled:
    """A model that says given bytes, a token each, and a tokenizer of bytes; 256 ends."""

    eos_ids, pad_id = frozenset([256]), 0

    def __init__(self, data: bytes):
        self.script = [*data, 256]
        self.config = SimpleNamespace(max_position_embeddings=99, num_hidden_layers=0,
                                      num_key_value_heads=1, head_dim=1)
        self.lm_head = torch.nn.Linear(257, 257, bias=False)
        torch.nn.init.eye_(self.lm_head.weight)

    def model(self, ids, positions=None, cache=None):  # the prompt is one token long
        place = 0 if positions is None else int(positions[0, -1])
        return torch.nn.functional.one_hot(torch.tensor([[self.script[place]]]), 257).float()

    def decode(self, ids):
        return bytes(ids).decode("utf-8", "replace")


@pytest.mark.parametrize(("data", "stop", "pieces"), [
    ("aé€😀b".encode(), (), ["a", "é", "€", "😀", "b"]),
    (b"a\xe2\x82", (), ["a", "\ufffd"]),  # ends inside a character
    (b"a\xffb", (), ["a", "\ufffdb"]),
    (b"ab\nHuman: x", ("\nHuman:",), ["a", "b"]),
    (b"a\nHat", ("\nHuman:",), ["a", "\nHa", "t"]),
    (b"a\nHu", ("\nHuman:",), ["a", "\nHu"]),
    ("aé\n".encode(), ("é\n\n",), ["a", "é\n"]),
], ids=str)
def test_stream_whole_characters(data, stop, pieces):
    spelled = Spelled(data)
    sampling = Sampling(max_new_tokens=40, stop=stop)
    assert list(stream(spelled, spelled, [1], sampling)) == pieces


def test_stream_refuses(model):
    for prompt, told in (([], "empty prompt"), ([3] * 2040, "the context holds 2048")):
        with pytest.raises(ValueError, match=told):
            next(stream(model, Numbers(), prompt, HOT))
