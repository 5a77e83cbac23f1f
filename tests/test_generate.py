"""generate.py: one item at a time, batches and uncached re-scoring must tell the same story.

Sampling is checked against a naive nucleus, a softmax and stored numbers. fp32 on the CPU. How an
answer ends: test_generate_ends.py.
"""

import pytest
import torch
from conftest import write_model

import generate as module
from generate import Completion, Sampling, generate, sample, stream, uniform
from kernels import packed
from kernels.prefix import prefix_attention
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


@pytest.mark.parametrize("sampling", [HOT, Sampling(max_new_tokens=24)], ids=["hot", "greedy"])
@pytest.mark.parametrize("slots", [1, 3, 5])
@pytest.mark.parametrize("shared", [0, 30])
def test_refill(model, monkeypatch, shared, slots, sampling):
    """Eight prompts in fewer slots, in two orders: each text is as alone."""
    tokenizer, widths = Numbers(*range(0, 320, 8)), []
    prompts = some_prompts(LENGTHS, shared=shared)
    expected = alone(model, tokenizer, prompts, sampling)
    limited(monkeypatch, slots)
    handle = model.model.register_forward_pre_hook(lambda _, args: widths.append(args[0].shape))
    assert generate(model, tokenizer, prompts, sampling, list(range(8))) == expected
    assert generate(model, tokenizer, prompts[::-1], sampling,
                    list(range(8))[::-1]) == expected[::-1]
    handle.remove()
    assert max(B for B, T in widths) == slots
    assert max(B for B, T in widths if T == 1) <= slots


def limited(monkeypatch, slots: int) -> None:
    """Batches of so many rows, whatever room there is."""
    class Narrow(module.Batch):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            self.most_rows = slots

    monkeypatch.setattr(module, "Batch", Narrow)


def test_slots_fit_the_memory(model, monkeypatch):
    """As many rows as the bytes allow, one at least, and no more than there are prompts."""
    prompts, config = some_prompts(LENGTHS), model.config
    row = 2 * 4 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 48
    row += 12 * config.vocab_size
    for limit, slots in ((0, 1), (row, 1), (3 * row - 1, 2), (3 * row, 3), (99 * row, 8)):
        monkeypatch.setattr(module, "cache_bytes", lambda device, limit=limit: limit)
        assert module.Batch(model, prompts, 8, 0).most_rows == slots


def test_ended_rows_leave_their_slot_to_the_last(model):
    """The cache is neither copied nor replaced: rows move one at a time."""
    batch = module.Batch(model, some_prompts((3, 4, 5, 6)), 8, 0)
    rows = [module.Row(prompt, 0, Numbers(), Sampling(8)) for prompt in some_prompts((3, 4, 5, 6))]
    batch.admit(rows[::-1])
    keys = [layer.clone() for layer in batch.cache.keys]
    pointers = [layer.data_ptr() for layer in batch.cache.keys]
    rows[0].finish = rows[2].finish = "eos"
    batch.drop_ended()
    assert batch.rows == [rows[3], rows[1]]
    for new, old in zip(batch.cache.keys, keys, strict=True):
        assert torch.equal(new[:2], old[[3, 1]])
    assert [layer.data_ptr() for layer in batch.cache.keys] == pointers


@pytest.mark.parametrize("shared", [0, 5, 30])  # a window of 7 hides some of 5 from later tokens
def test_next_logits(model, monkeypatch, shared):
    """After prompts of several lengths, in passes of few tokens: what an uncached pass gives."""
    monkeypatch.setitem(module.PASS_TOKENS, "cpu", 40)
    prompts = some_prompts(LENGTHS, shared=shared)
    got = module.next_logits(model, prompts, 0)
    expected = torch.stack([model(torch.tensor([prompt]))[0, -1] for prompt in prompts])
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


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


@pytest.mark.slow
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


@pytest.mark.parametrize("settings", [
    {"top_p": 0.95}, {"top_p": 0.5}, {"top_p": 0.999}, {}, {"top_p": 0.9, "top_k": 40},
    {"top_k": 40}], ids=str)
@pytest.mark.parametrize("scale", [0.01, 1.5, 2.5, 4.0])
def test_sample_as_the_simple_way(scale, settings):
    """The same token for the same number, whether 512 candidates, 8,192 or all are needed; half of
    the rows have many ties."""
    logits = torch.randn(24, 12000, generator=torch.Generator().manual_seed(7)) * scale
    logits[::2] = logits[::2].mul(8).round().div(8)
    sampling = Sampling(1, temperature=1.0, **settings)
    for step in range(4):
        uniforms = [uniform(row, step) for row in range(24)]
        assert torch.equal(sample(logits, uniforms, sampling),
                           simple_sample(logits, uniforms, sampling))


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


# ---- weights in the order of the CPU's products ----

@pytest.fixture
def rounded(tiny_folder):
    model = load_model(tiny_folder, device="cpu", dtype="bfloat16")
    if not packed.packable(model.lm_head.weight):
        pytest.skip("this CPU has no bf16 products")
    return model


def test_packed_between_the_tokens_of_a_stream(rounded, tiny_folder):
    """Gradients and other texts are right there, and the stream's end leaves nothing behind."""
    tokenizer, prompt = Tokenizer(tiny_folder), some_prompts((9,))[0]
    sampling, ids = Sampling(4), torch.tensor([prompt])
    expected = generate(rounded, tokenizer, [prompt], sampling)[0].text
    pieces = stream(rounded, tokenizer, prompt, sampling)
    begun = next(pieces)
    assert "forward" in vars(rounded.lm_head)
    hidden = rounded.model(ids).requires_grad_()
    rounded.lm_head(hidden).sum().backward()
    assert hidden.grad.abs().sum() > 0
    assert generate(rounded, tokenizer, [prompt], sampling)[0].text == expected
    assert begun + "".join(pieces) == expected
    assert not any("forward" in vars(module) for module in rounded.modules())


@torch.no_grad()
def test_packed(rounded):
    """The same products, also once a weight has changed; and nothing of it is left outside."""
    ids = torch.tensor(some_prompts((9,)))
    before = {name: weight.clone() for name, weight in rounded.named_parameters()}
    for factor in (1, 2):
        rounded.lm_head.weight.mul_(factor)
        expected = rounded(ids)
        with packed.packed_linears(rounded):
            assert "forward" in vars(rounded.lm_head)
            torch.testing.assert_close(rounded(ids), expected, rtol=0.02, atol=0.02)
        assert not any("forward" in vars(module) for module in rounded.modules())
    rounded.lm_head.weight.div_(2)
    assert all(torch.equal(weight, before[name]) for name, weight in rounded.named_parameters())


def test_packed_is_limited(rounded, monkeypatch):
    monkeypatch.setattr(packed, "MOST_BYTES", 1000)
    with packed.packed_linears(rounded):
        assert "forward" not in vars(rounded.lm_head)


def test_unpacked_in_fp32(model):
    with packed.packed_linears(model):
        assert "forward" not in vars(model.lm_head)


@pytest.mark.parametrize("cap", [None, 5.0])
def test_prefix_attention_in_bf16(cap):
    """Beside one softmax over the whole sequence in fp32."""
    draw = torch.Generator().manual_seed(1)
    B, G, R, P, S, E = 5, 2, 3, 40, 7, 16
    q, k, v, pk, pv = (torch.randn(*shape, generator=draw) for shape in (
        (B, G, R, E), (B, G, S, E), (B, G, S, E), (1, G, P, E), (1, G, P, E)))
    bias = torch.zeros(B, 1, R, S)
    bias[1:, :, :, 4:] = -torch.inf
    keys = torch.cat((pk.expand(B, -1, -1, -1), k), dim=2)
    scores = 3 * q @ keys.mT
    scores = scores if cap is None else torch.tanh(scores / cap) * cap
    scores[..., P:] += bias
    expected = scores.softmax(-1) @ torch.cat((pv.expand(B, -1, -1, -1), v), dim=2)
    for dtype, bound in ((torch.float32, 1e-5), (torch.bfloat16, 0.08)):
        tensors = [x.to(dtype) for x in (q, k, v, bias)]
        got = prefix_attention(*tensors, (pk.to(dtype), pv.to(dtype)), None, scale=3.0, cap=cap)
        assert (got - expected).abs().max() < bound
