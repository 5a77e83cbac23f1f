"""triplets.py: what is encoded and scored, beside rows, targets and kinds worked out by hand."""

import dataclasses

import pytest
import torch
from test_pairs import SECRET, TRIPLET

from losses import POSITIVE, TOXIC
from support.files import InputError
from support.pairs import Toxic, Triplet
from tokenizer import Tokenizer
from triplets import Example, encode, pad

# ---- token ids ----

def encoded(tokenizer, triplet, format="chat", *, fine=True, with_toxic=True, context=2048):
    return encode(triplet, tokenizer, format, fine_grained=fine, with_toxic=with_toxic,
                  context=context)


@pytest.mark.parametrize("format", ["chat", "raw"])
def test_encode(tiny_folder, format):
    """Prompt and both answers as the tokenizer has them, each answer with its end of turn."""
    tokenizer = Tokenizer(tiny_folder)
    e = encoded(tokenizer, TRIPLET, format)
    space = " " * (format == "raw")
    assert e.prompt == tokenizer.encode_prompt(TRIPLET.prompt, format)
    for ids, text in ((e.positive, TRIPLET.positive), (e.toxic, SECRET)):
        assert tokenizer.decode(ids) == space + text and ids[-1] in tokenizer.eos_ids
    assert e.answers == [e.positive, e.toxic]


def test_encode_masks(tiny_folder):
    """The answers share "Well, " and nothing after it."""
    tokenizer = Tokenizer(tiny_folder)
    triplet = Triplet("Hi.", "Well, good day.", Toxic("Well, who asked?"), "here")
    e = encoded(tokenizer, triplet)
    k = len(tokenizer.encode("Well,", special=False))
    rest = len(e.toxic) - k - 1
    assert tokenizer.decode(e.toxic[:k]) == "Well," and e.toxic[:k] == e.positive[:k]
    assert e.mask == [0] * k + [1] * rest + [0] and rest > 3
    assert encoded(tokenizer, triplet, fine=False).mask == [1] * (k + rest) + [0]


@pytest.mark.parametrize("triplet, options", [
    (dataclasses.replace(TRIPLET, toxic=None), {}),
    (TRIPLET, {"with_toxic": False}),  # the MLE-only ablation
], ids=["toxic null", "mle"])
def test_encode_positive_only(tiny_folder, triplet, options):
    tokenizer = Tokenizer(tiny_folder)
    e = encoded(tokenizer, triplet, **options)
    assert (e.toxic, e.mask, len(e.answers)) == ([], [], 1)
    batch = pad([e], 0)
    assert batch.targets.tolist() == e.positive and set(batch.kind.tolist()) == {POSITIVE}


def test_too_long(tiny_folder):
    """The longer answer counts, to the token; the row is named and not quoted."""
    tokenizer = Tokenizer(tiny_folder)
    e = encoded(tokenizer, TRIPLET)
    longest = len(e.prompt) + max(map(len, e.answers))
    assert encoded(tokenizer, TRIPLET, context=longest) == e
    told = f"^{longest} tokens, but the model's context holds {longest - 1}, f line 3, shorten"
    with pytest.raises(InputError, match=told) as caught:
        encoded(tokenizer, TRIPLET, context=longest - 1)
    assert "garden" not in str(caught.value)


# ---- batches ----

END, PAD = 2, 0
PAIR = Example([10, 11], [5, 6, END], [5, 7, END], [0, 1, 0])
SAME = Example([10, 11], [5, 6, END], [5, 6, END], [0, 0, 0])
BENIGN = Example([12], [8, END], [], [])
LATE = Example([13], [5, END], [5, 6, END], [0, 1, 0])
P, X = POSITIVE, TOXIC
BATCHES = {  # examples, ids (R, T), then (row of hidden states, target, kind) of each scored token
    "a pair": ([PAIR], [[10, 11, 5, 6, 2], [10, 11, 5, 7, 2]],
               # m = 0 at 5 (shared) and at the toxic end: those have no row
               [(1, 5, P), (2, 6, P), (3, 2, P), (7, 7, X)]),
    "identical": ([SAME], [[10, 11, 5, 6, 2]], [(1, 5, P), (2, 6, P), (3, 2, P)]),
    "no toxic": ([BENIGN], [[12, 8, 2]], [(0, 8, P), (1, 2, P)]),
    "toxic goes on": ([LATE], [[13, 5, 2, PAD], [13, 5, 6, 2]], [(0, 5, P), (1, 2, P), (5, 6, X)]),
    "together": ([BENIGN, LATE], [[12, 8, 2, PAD], [13, 5, 2, PAD], [13, 5, 6, 2]],
                 [(0, 8, P), (1, 2, P), (4, 5, P), (5, 2, P), (9, 6, X)]),
}


@pytest.mark.parametrize("examples, ids, scored", BATCHES.values(), ids=BATCHES)
def test_pad(examples, ids, scored):
    batch = pad(examples, PAD)
    assert batch.ids.tolist() == ids
    rows = zip(batch.places.tolist(), batch.targets.tolist(), batch.kind.tolist(), strict=True)
    assert list(rows) == scored
    # Each row is the place just before its target's.
    assert torch.equal(batch.ids.flatten()[batch.places + 1], batch.targets)
