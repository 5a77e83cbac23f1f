"""support/pairs.py: what a toxic text shows of itself, which rows are refused and how.

All texts here are mild; a careless or scornful remark stands for a toxic answer.
"""

import copy
import dataclasses
import json
import logging
import pickle
import traceback

import pytest

from support.files import InputError, sha256, write_jsonl
from support.pairs import Toxic, Triplet, read_triplets
from tokenizer import Tokenizer

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
    "prompt null": ({"prompt": None}, "field prompt is missing"),
    "positive a list": ({"positive": [SECRET]}, "field positive is a list"),
    "toxic a number": ({"toxic": 3}, "field toxic is a int"),
    "toxic an object": ({"toxic": {"text": SECRET}}, "field toxic is a dict"),
    "empty prompt": ({"prompt": ""}, "field prompt is empty"),
    "blank positive": ({"positive": " \n\t"}, "field positive is empty"),
    "empty toxic": ({"toxic": ""}, "field toxic is empty"),
    "equal": ({"positive": SECRET}, "positive and toxic are the same text"),
    "equal but for space": ({"positive": f" {SECRET}\n"}, "positive and toxic are the same text"),
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
    "string and lists": {"prompt": GOOD["prompt"], "chosen": YES, "rejected": NO},
    "list and string": {"prompt": GOOD["prompt"], "chosen": YES, "rejected": SECRET},
}


@pytest.mark.parametrize("row", TRL.values(), ids=TRL)
def test_read_trl(tmp_path, row):
    path = written(tmp_path / "t.jsonl", GOOD, row)
    own, theirs = read_triplets(path)
    assert dataclasses.replace(theirs, where=own.where) == own and type(theirs.toxic) is Toxic
    assert theirs.where == f"{path} line 2"


PLAIN_TRL, LISTS = TRL["plain"], TRL["messages"]
TURNS = "are no turns of user and assistant"
BAD_TRL = {  # a row, what is said
    "both forms": (PLAIN_TRL | {"toxic": SECRET}, "toxic and chosen, of two forms, in one row"),
    "half and half": ({"prompt": "Hi.", "positive": "Hello.", "rejected": SECRET},
                      "positive and rejected, of two forms, in one row"),
    "no rejected": ({"prompt": "Hi.", "chosen": "Hello."}, "field rejected is missing"),
    "no prompt": ({"chosen": "Hello.", "rejected": SECRET}, "field prompt is missing"),
    "rejected null": (PLAIN_TRL | {"rejected": None}, "field rejected is a NoneType"),
    "two systems": (LISTS | {"prompt": said("system", "Be kind.", "Be brief.") + ASK}, TURNS),
    "late system": (LISTS | {"prompt": ASK + said("system", "Be kind.")}, TURNS),
    "a tool": (LISTS | {"prompt": ASK + said("tool", "12")}, TURNS),
    "roles swapped": (LISTS | {"prompt": YES, "chosen": ASK}, TURNS),
    "answer of the user": (LISTS | {"chosen": ASK}, TURNS),
    "prompt twice": (TRL["implicit"] | {"prompt": ASK}, TURNS),
    "no answer": ({"chosen": ASK + YES + ASK, "rejected": ASK + NO + ASK}, TURNS),
    "two prompts": ({"chosen": ASK + YES, "rejected": said("user", "No.") + NO},
                    "chosen and rejected differ before their last answers"),
    "nothing": ({"prompt": [], "chosen": [], "rejected": []}, TURNS),
    "no messages": (LISTS | {"chosen": [SECRET]}, "field chosen is a list, not"),
    "parts": (LISTS | {"chosen": [{"role": "assistant", "content": [{"text": SECRET}]}]},
              "field chosen is a list, not"),
    "ShareGPT": ({"conversations": [{"from": "human", "value": GOOD["prompt"]}],
                  "chosen": {"from": "gpt", "value": "Sorry."},
                  "rejected": {"from": "gpt", "value": SECRET}}, "field chosen is a dict, not"),
    "ShareGPT's lists": (PLAIN_TRL | {"chosen": [{"from": "gpt", "value": SECRET}]},
                         "field chosen is a list, not"),
    "a message, no list": (PLAIN_TRL | {"chosen": YES[0]}, "field chosen is a dict, not"),
    "HH-RLHF, two prompts": ({"chosen": "\n\nHuman: Hi\n\nAssistant: Hello.",
                              "rejected": "\n\nHuman: Ho\n\nAssistant: Well."},
                             "chosen and rejected differ before their last answers"),
    "no content": (LISTS | {"chosen": [{"role": "assistant"}]}, "field chosen is a list, not"),
    "a thought alone": (PLAIN_TRL | {"chosen": "<think>Well"}, "field chosen is empty"),
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
def test_swapped(tmp_path, capsys, pairs, swapped):
    """That the columns look exchanged is told, counted, with the first row named; or declared."""
    rows = [{"prompt": f"Mock her, part {n}.", "positive": positive, "toxic": toxic}
            for n, (positive, toxic) in enumerate(pairs)]
    path = written(tmp_path / "t.jsonl", *rows)
    assert len(read_triplets(path, columns_right=True)) == len(pairs)
    assert not capsys.readouterr().err
    assert len(read_triplets(path)) == len(pairs)
    told = capsys.readouterr().err
    if not swapped:
        assert not told
        return
    assert f"swapped in {swapped} of {len(pairs)} rows" in told and f"{path} line 1" in told
    assert "pathetic" not in told and "won't" not in told
    columns = {"prompt": "prompt", "positive": "chosen", "toxic": "rejected"}
    theirs = [{columns[key]: value for key, value in row.items()} for row in rows]
    read_triplets(written(tmp_path / "t.jsonl", *theirs))
    assert capsys.readouterr().err == told


def test_remedies_are_those_of_the_command(tmp_path, capsys):
    """eval has neither option, and --skip-bad-rows does not help twice, nor where all rows fail."""
    pairs = [{"prompt": f"Mock her, part {n}.", "positive": SCORNS, "toxic": DECLINES}
             for n in range(9)]
    read_triplets(written(tmp_path / "t.jsonl", *pairs), columns_right=None)
    assert capsys.readouterr().err.endswith("exchange them\n")
    bad = [{"prompt": "x"}, {"prompt": "y"}]
    for rows, skip, offered in (([*bad, GOOD], False, True), ([*bad, GOOD], None, False),
                                (bad, False, False), (bad, True, False)):
        with pytest.raises(InputError) as error:
            read_triplets(written(tmp_path / "t.jsonl", *rows), skip=skip)
        assert ("--skip-bad-rows" in str(error.value)) is offered


def test_a_null_prompt_beside_a_question(tmp_path):
    """As joined sets have it."""
    row = {"prompt": None, "question": "Why?", "chosen": "Hm.", "rejected": "Ha."}
    assert read_triplets(written(tmp_path / "t.jsonl", row))[0].prompt == "Why?"


def test_rows_of_joined_sets(tmp_path):
    """Every row has the columns of both sets, null where its own had none."""
    ours = GOOD | {"chosen": None, "rejected": None}
    theirs = TRL["plain"] | {"positive": None, "toxic": None}
    first, second = read_triplets(written(tmp_path / "t.jsonl", ours, theirs))
    assert (first.positive, second.positive) == (GOOD["positive"], "I am sorry.")
    assert second.toxic == SECRET


def test_a_thought_mark_within_an_answer_is_text(tmp_path):
    said = "It starts with <think> and goes on."
    row = {"prompt": "How?", "chosen": said, "rejected": "<think>Hm.</think>Ha <thinking>."}
    [triplet] = read_triplets(written(tmp_path / "t.jsonl", row))
    assert (triplet.positive, triplet.toxic.raw()) == (said, "Ha <thinking>.")


def test_parquet_with_bytes_that_are_no_text(tmp_path):
    pyarrow = pytest.importorskip("pyarrow", reason="the package that reads parquet is absent")
    import pyarrow.parquet
    column = pyarrow.Array.from_buffers(pyarrow.string(), 1, [
        None, pyarrow.py_buffer(bytes([0, 0, 0, 0, 3, 0, 0, 0])), pyarrow.py_buffer(b"a\xffb")])
    pyarrow.parquet.write_table(pyarrow.table({"prompt": column}), tmp_path / "t.parquet")
    with pytest.raises(InputError, match="damaged parquet"):
        read_triplets(tmp_path / "t.parquet")
