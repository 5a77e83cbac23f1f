"""generate.py: how an answer ends, rules of sampling, and an answer told in pieces.

Against a model whose next token follows a written table, or one that spells given bytes.
"""

import json
from types import SimpleNamespace

import pytest
import torch
from conftest import write_model
from test_generate import HOT, LENGTHS, Numbers, alone, model, some_prompts  # noqa: F401 (fixture)

from generate import Completion, Sampling, generate, stream
from model import load_model
from support.decoding import Decoding
from support.files import InputError
from tokenizer import Tokenizer

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
    (LINES, A, {"min_new_tokens": 3, "stop": ("a",)}, ("\n", "stop", 2)),
    (LINES, A, {"min_new_tokens": 3}, ("\na\n", "eos", 3)),
    (ITEMS, ITEM, {}, ("a\n1. a\n1. a\n1. ", "length", 6)),
    (ITEMS, ITEM, {"opening_penalty": 0.5}, ("a\n1. a\n1. a\n1. ", "length", 6)),
    (ITEMS, ITEM, {"opening_penalty": 2.0}, ("a\n1. b\n1. a\n1. ", "length", 6)),
]


@pytest.mark.parametrize("ends", [1, [1, 7], [40, 7, 99, 250]], ids=str)
@pytest.mark.parametrize(("least", "ngram"), [(0, 0), (9, 0), (0, 2), (9, 3)])
def test_as_transformers(tmp_path, ends, least, ngram):
    """Prompts of several lengths in one batch, each alone, and by transformers: the same answers,
    which end at any of the ends that generation_config.json lists."""
    auto = pytest.importorskip("transformers").AutoModelForCausalLM
    folder = write_model(tmp_path / "m", eos_token_id=2)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    tokenizer, model = Tokenizer(folder), load_model(folder, device="cpu", dtype="float32")
    asks = ("Hi", "How do I keep my neighbour's secret while I am away?", "The lazy dog. Why?")
    prompts = [tokenizer.encode_prompt(ask, "chat") for ask in asks]
    sampling = Sampling(24, min_new_tokens=least, no_repeat_ngram=ngram)
    batch = generate(model, tokenizer, prompts, sampling)
    assert batch == [generate(model, tokenizer, [p], sampling)[0] for p in prompts]
    peer = auto.from_pretrained(folder, dtype=torch.float32)
    for prompt, got in zip(prompts, batch, strict=True):
        ids = peer.generate(torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)),
                            max_new_tokens=24, do_sample=False, pad_token_id=0,
                            min_new_tokens=least or None, no_repeat_ngram_size=ngram or None)
        ids = ids[0, len(prompt):].tolist()
        ended = ids[-1] in tokenizer.eos_ids
        assert (got.text, got.finish) == (tokenizer.decode(ids[:len(ids) - ended]),
                                          "eos" if ended else "length")


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(("table", "last", "settings", "completion"), ENDS)
def test_end(table, last, settings, completion, batch):
    prompts = [[B, last], [last], [A, A, last]][:batch]
    got = generate(Table(table), Words(), prompts, Sampling(max_new_tokens=6, **settings))
    assert got == [Completion(*completion)] * batch


@pytest.mark.parametrize(("prompt", "n", "text"), [
    ([A], 2, "ba"), ([B, A], 2, "b"), ([A], 3, "bab"), ([B, A, B, A], 3, ""), ([A], 9, "bababa")])
def test_no_repeat_ngram(prompt, n, text):
    """The run that would come again is left out, and the model ends instead."""
    sampling = Sampling(max_new_tokens=6, no_repeat_ngram=n)
    got = generate(Table(AB), Words(), [prompt, prompt], sampling)
    assert [done.text for done in got] == [text] * 2
    assert "".join(stream(Table(AB), Words(), prompt, sampling)) == text


@pytest.mark.parametrize("temperature", [0, 0.7])
def test_no_token_is_drawn_from_nan(temperature):
    """argmax would take token 0 without a word, and a draw fall behind the vocabulary's end."""
    model = Table({A: {B: float("nan")}})
    with pytest.raises(InputError, match="the model's output has NaN"):
        generate(model, Words(), [[B], [A]], Sampling(3, temperature=temperature, top_p=0.9))


def whole_bytes(ids):
    return bytes(ids).decode("utf-8", "replace")


def words_without_first_space(ids):
    """As sentencepiece: every word brings its space, and a text's first loses it."""
    return "".join(f" {i}" if i % 3 else str(i) for i in ids).removeprefix(" ")


def bytes_or_nothing(ids):
    """As a decoder with byte fallback: one bad byte spoils its whole run."""
    try:
        return bytes(ids).decode()
    except UnicodeDecodeError:
        return "\ufffd" * len(ids)


@pytest.mark.parametrize(("decode", "tokens"), [
    (whole_bytes, [*("aé€😀 \nb" * 9).encode()]),
    (whole_bytes, [*("é€" * 9).encode(), 0xFF, *("ab" * 20).encode(), 0xE2, 0x82]),
    (bytes_or_nothing, [*("aé€😀 \nb" * 9).encode()]),
    (bytes_or_nothing, [*("ab" * 20).encode(), 0xFF, *("ab" * 20).encode()]),
    (words_without_first_space, list(range(99))),
])
def test_decoding(decode, tokens):
    """The text of the tail behind what stands is at each token that of all tokens."""
    read, lengths = [], []

    def counted(ids):
        lengths.append(len(ids))
        return decode(ids)

    decoding = Decoding(counted)
    for n in range(1, len(tokens) + 1):
        read.append(decoding.latest(tokens[:n]))
    assert read == [decode(tokens[:n]) for n in range(1, len(tokens) + 1)]
    if decode is words_without_first_space:
        assert max(lengths) <= 32


@pytest.mark.parametrize("stop", ["\n\nab", "b\n", "😀b", "€😀b\n"])
def test_stop_across_tokens(stop):
    """A byte a token: every stop string and many characters cross their borders."""
    text = "xyz é" * 12 + "€😀b\n\nab"
    spelled = Spelled(text.encode())
    (got,) = generate(spelled, spelled, [[1]], Sampling(max_new_tokens=98, stop=(stop,)))
    whole = text.encode()
    assert got.text == text[:text.index(stop)] and got.finish == "stop"
    assert got.n_tokens == whole.index(stop.encode()) + len(stop.encode())


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
