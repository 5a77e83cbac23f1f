"""support/pairs.py: what a toxic text shows of itself, which rows are refused and how.
triplets.py: what is scored.

Batches are compared with rows, targets and kinds worked out by hand. All texts here are mild; a
careless or scornful remark stands for a toxic answer.
"""

import copy
import dataclasses
import json
import logging
import pickle
import traceback

import pytest
import torch

from losses import POSITIVE, TOXIC
from support.files import InputError, sha256, write_jsonl
from support.pairs import Toxic, Triplet, read_triplets
from tokenizer import Tokenizer
from triplets import Example, encode, pad

SECRET = "Who cares about your garden, honestly."
MARK = f"<toxic {len(SECRET)} chars sha {sha256(SECRET)[:8]}>"
TRIPLET = Triplet("My garden died.", "I am sorry. Was it the frost?", Toxic(SECRET), "f line 3")


# ---- a toxic text hides itself ----

def printed(value, capsys):
    print(value, [value], {"k": value})
    return capsys.readouterr().out


def logged(value, caplog):
    for arguments in ((value,), ("%s", value), ("%r of %s", value, [value])):
        logging.getLogger("any").warning(*arguments)
    return caplog.text


def trace_of(value):
    try:
        raise ValueError(value)
    except ValueError as error:
        # What debuggers and error reporters print: the locals of every frame.
        whole = traceback.TracebackException.from_exception(error, capture_locals=True)
        return traceback.format_exc() + "".join(whole.format()) + str(error) + repr(error)


SHOWN = {
    "str": str, "repr": repr, "format": format,
    "f-string": lambda x: f"{x} {x!s} {x!r} {x!a}", "width": lambda x: f"{x!s:>90}|{x!s:.60}",
    "percent": lambda x: "%s %r %a %90s" % (x, x, x, x),  # noqa: UP031 (the old way must hide too)
    "str.format": lambda x: "{} {!r} {a[0]}".format(x, x, a=[x]),  # noqa: UP032
    "template": lambda x: str([x, (x,), {x: x}, {x}]),
    "traceback": trace_of,
}


@pytest.mark.parametrize("way", SHOWN)
@pytest.mark.parametrize("value", [Toxic(SECRET), TRIPLET], ids=["text", "triplet"])
def test_toxic_hides(way, value):
    shown = SHOWN[way](value)
    assert SECRET[:12] not in shown and MARK in shown


@pytest.mark.parametrize("value", [Toxic(SECRET), TRIPLET], ids=["text", "triplet"])
def test_toxic_hides_in_streams(value, capsys, caplog):
    for shown in (printed(value, capsys), logged(value, caplog)):
        assert SECRET[:12] not in shown and MARK in shown


def test_toxic_width():
    """A format spec pads the fingerprint, it does not reach the text."""
    assert f"{Toxic(SECRET):>60}" == MARK.rjust(60) and f"{Toxic(SECRET):.6}" == "<toxic"


def test_toxic_is_there(tiny_folder):
    """Files and the tokenizer get the characters, and copies hide as well."""
    toxic, tokenizer = Toxic(SECRET), Tokenizer(tiny_folder)
    for options in ({}, {"indent": 2}, {"ensure_ascii": False}):
        assert json.loads(json.dumps({"toxic": toxic}, **options)) == {"toxic": SECRET}
    assert toxic == SECRET and toxic.encode() == SECRET.encode() and len(toxic) == len(SECRET)
    assert tokenizer.encode(toxic) == tokenizer.encode(SECRET)
    assert type(toxic.raw()) is str and f"{toxic.raw()}" == SECRET
    for other in (copy.deepcopy(toxic), pickle.loads(pickle.dumps(toxic)),
                  dataclasses.asdict(TRIPLET)["toxic"]):
        assert other == SECRET and repr(other) == MARK


# ---- reading ----

GOOD = {"prompt": "My garden died.", "positive": "I am sorry.", "toxic": SECRET}


def written(path, *rows):
    write_jsonl(path, rows)
    return path


def test_read(tmp_path):
    """Further fields are let be; toxic may be null; `where` names the line, blank ones counted."""
    path = tmp_path / "t.jsonl"
    rows = [GOOD | {"id": 7}, GOOD | {"toxic": None}]
    path.write_text("\n\n".join(map(json.dumps, rows)))
    first, second = read_triplets(path)
    assert first == Triplet(*GOOD.values(), f"{path} line 1") and type(first.toxic) is Toxic
    assert second.toxic is None and second.where == f"{path} line 3"


BAD = {  # changes to a good row (None: the field is left out), what is said
    "no prompt": ({"prompt": ...}, "field prompt is missing"),
    "no positive": ({"positive": ...}, "field positive is missing"),
    "no toxic": ({"toxic": ...}, "field toxic is missing"),
    "prompt null": ({"prompt": None}, "field prompt is a NoneType"),
    "positive a list": ({"positive": [SECRET]}, "field positive is a list"),
    "toxic a number": ({"toxic": 3}, "field toxic is a int"),
    "toxic an object": ({"toxic": {"text": SECRET}}, "field toxic is a dict"),
    "empty prompt": ({"prompt": ""}, "field prompt is empty"),
    "blank positive": ({"positive": " \n\t"}, "field positive is empty"),
    "empty toxic": ({"toxic": ""}, "field toxic is empty"),
    "equal": ({"positive": SECRET}, "positive and toxic are the same text"),
}


def said(role, *texts):
    return [{"role": role, "content": text} for text in texts]


ASK, YES, NO = said("user", GOOD["prompt"]), said("assistant", "I am sorry."), said(
    "assistant", SECRET)
TRL = {  # rows that TRL's DPOTrainer takes: plain, conversational, with the prompt in the answers
    "plain": {"prompt": GOOD["prompt"], "chosen": "I am sorry.", "rejected": SECRET},
    "messages": {"prompt": ASK, "chosen": YES, "rejected": NO},
    "implicit": {"chosen": ASK + YES, "rejected": ASK + NO},
    "more columns": {"prompt": ASK, "chosen": YES, "rejected": NO, "score_chosen": 5, "id": "x"},
}


@pytest.mark.parametrize("row", TRL.values(), ids=TRL)
def test_read_trl(tmp_path, row):
    path = written(tmp_path / "t.jsonl", GOOD, row)
    own, theirs = read_triplets(path)
    assert dataclasses.replace(theirs, where=own.where) == own and type(theirs.toxic) is Toxic
    assert theirs.where == f"{path} line 2"


PLAIN_TRL, LISTS = TRL["plain"], TRL["messages"]
BAD_TRL = {  # a row, what is said
    "both forms": (PLAIN_TRL | {"toxic": SECRET}, r"columns of both forms \(toxic and chosen\)"),
    "half and half": ({"prompt": "Hi.", "positive": "Hello.", "rejected": SECRET},
                      r"columns of both forms \(positive and rejected\)"),
    "no rejected": ({"prompt": "Hi.", "chosen": "Hello."}, "field rejected is missing"),
    "no prompt": ({"chosen": "Hello.", "rejected": SECRET}, "field prompt is missing"),
    "rejected null": (PLAIN_TRL | {"rejected": None}, "field rejected is a NoneType"),
    "string and lists": (LISTS | {"prompt": "Hi."}, "prompt is a string and chosen a list"),
    "list and string": (PLAIN_TRL | {"chosen": YES}, "prompt is a string and chosen a list"),
    "system": (LISTS | {"prompt": said("system", "Be kind.") + ASK}, "prompt is not one message"),
    "two turns": (LISTS | {"prompt": ASK + YES + ASK}, "prompt is not one message of the user"),
    "roles swapped": (LISTS | {"prompt": YES, "chosen": ASK}, "prompt is not one message"),
    "answer of the user": (LISTS | {"chosen": ASK}, "chosen is not one message of the assistant"),
    "prompt twice": (TRL["implicit"] | {"prompt": ASK}, "chosen is not one message"),
    "two prompts": ({"chosen": ASK + YES, "rejected": said("user", "No.") + NO},
                    "begin with different messages"),
    "nothing": ({"prompt": [], "chosen": [], "rejected": []}, "prompt is not one message"),
    "no messages": (LISTS | {"chosen": [SECRET]}, "chosen is not one message"),
    "parts": (LISTS | {"chosen": [{"role": "assistant", "content": [{"text": SECRET}]}]},
              "field chosen is a list"),
    "no content": (LISTS | {"chosen": [{"role": "assistant"}]}, "field chosen is a NoneType"),
    "blank": (LISTS | {"rejected": said("assistant", " ")}, "field rejected is empty"),
    "the same": (LISTS | {"chosen": NO}, "chosen and rejected are the same text"),
}


@pytest.mark.parametrize("row, told", BAD_TRL.values(), ids=BAD_TRL)
def test_bad_trl_row(tmp_path, row, told):
    path = written(tmp_path / "t.jsonl", PLAIN_TRL, row)
    with pytest.raises(InputError, match=f"{told}.*, {path} line 2, "):
        read_triplets(path)
    refusal_of(path)


def refusal_of(path):
    with pytest.raises(InputError) as caught:
        read_triplets(path)
    message = str(caught.value)
    assert str(path) in message and "\n" not in message
    # A message that quoted a text would quote it to the terminal.
    assert not any(text[:10] in message for text in GOOD.values())
    return message


@pytest.mark.parametrize("changes, told", BAD.values(), ids=BAD)
def test_bad_row(tmp_path, changes, told):
    row = {key: value for key, value in (GOOD | changes).items() if value is not ...}
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in (GOOD, GOOD, row, GOOD)))
    with pytest.raises(InputError, match=f"{told}.*, {path} line 3, "):
        read_triplets(path)
    refusal_of(path)


@pytest.mark.parametrize("text, told", [
    ("", "no rows"),
    ("\n\n", "no rows"),
    (json.dumps(GOOD) + "\n" + json.dumps(GOOD)[:-9], "line 2"),  # cut short
    (json.dumps(GOOD) + "\n" + json.dumps([GOOD]), "line 2"),
    (json.dumps(SECRET), "line 1"),
])
def test_bad_file(tmp_path, text, told):
    path = tmp_path / "t.jsonl"
    path.write_text(text)
    assert told in refusal_of(path)


DECLINES = "I won't help with that, because it would hurt her. Shall we ask her instead?"
SCORNS = "Who cares what she thinks, she is pathetic and so is the question."
PLAIN = "It opens at nine, and the bus stops at the gate."


@pytest.mark.parametrize("pairs, swapped", [
    ([(DECLINES, SCORNS)] * 10, 0),
    ([(SCORNS, DECLINES)] * 10, 10),
    ([(PLAIN, DECLINES)] * 10, 10),  # one sign is enough
    ([(SCORNS, PLAIN)] * 10, 10),
    ([(PLAIN, PLAIN + " So what.")] * 10, 0),  # no sign at all
    ([(DECLINES, SCORNS)] * 9 + [(SCORNS, DECLINES)], 0),  # one row is noise
    ([(SCORNS, DECLINES)] * 9 + [(DECLINES, SCORNS)], 9),
    ([(SCORNS, None)] * 10, 0),  # no pair, no swap
])
def test_swapped(tmp_path, pairs, swapped):
    """A file with its columns exchanged is refused, counted, with its first row named."""
    rows = [{"prompt": f"Mock her, part {n}.", "positive": positive, "toxic": toxic}
            for n, (positive, toxic) in enumerate(pairs)]
    path = written(tmp_path / "t.jsonl", *rows)
    if not swapped:
        assert len(read_triplets(path)) == len(pairs)
        return
    told = refusal_of(path)
    assert f"swapped in {swapped} of {len(pairs)} rows" in told and f"{path} line 1" in told
    assert "pathetic" not in told and "won't" not in told
    columns = {"prompt": "prompt", "positive": "chosen", "toxic": "rejected"}
    theirs = [{columns[key]: value for key, value in row.items()} for row in rows]
    assert refusal_of(written(tmp_path / "t.jsonl", *theirs)) == told


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
    rows = zip(batch.rows.tolist(), batch.targets.tolist(), batch.kind.tolist(), strict=True)
    assert list(rows) == scored
    # Each row is the place just before its target's.
    assert torch.equal(batch.ids.flatten()[batch.rows + 1], batch.targets)
