"""Preference data as the world has it: forms, containers, rows that cannot be used (CPU).

The first of each kind is a case that was met with (UltraFeedback, HH-RLHF, a system text, an array,
bad rows, refusals as the worse answers); the others are of the same kind. TRL and `datasets` are
the peers where they are installed.
"""

import gzip
import json
import sys

import pytest
from conftest import write_model
from test_pairs import said, written

import ptalign
from export.command import export_data
from support.adapters import WEIGHTS
from support.files import InputError, read_jsonl
from support.pairs import Toxic, read_rows, read_triplets
from tokenizer import Tokenizer
from triplets import encode

ASK, YES, NO = "Which tea for a cold?", "Thyme or ginger.", "Thorny question, who cares."
ROW = {"prompt": ASK, "positive": YES, "toxic": NO}


def talk(*texts, system=None):
    """Messages of user and assistant in turn, behind a system text if there is one."""
    turns = [said(("user", "assistant")[n % 2], text)[0] for n, text in enumerate(texts)]
    return said("system", system) * bool(system) + turns


def read(tmp_path, *rows):
    found = [(t.messages, t.positive, t.toxic.raw())
             for t in read_triplets(written(tmp_path / "rows.jsonl", *rows), columns_right=True)]
    return found if len(found) > 1 else found[0]


HI, KIND = ("Hi", "Hello! What is it?"), "Be kind."
HH = "\n\nHuman: Hi\n\nAssistant: Hello! What is it?\n\nHuman: Which tea for a cold?\n\nAssistant:"
LONG = ("\n\nHuman: Hi\n\nHuman here. Assistant: who?\n\nAssistant: Me!\n\nWhat is it?"
        f"\n\nHuman: {ASK}\n\nAssistant:")
FORMS = {  # a row, what stands before its answers, does TRL split it alike
    "UltraFeedback": ({"prompt": ASK, "prompt_id": "7", "chosen": talk(ASK, YES), "score_chosen": 8,
                       "rejected": talk(ASK, NO), "messages": talk(ASK, YES)}, talk(ASK), True),
    "Capybara": ({"chosen": talk(*HI, ASK, YES), "rejected": talk(*HI, ASK, NO), "source": "x"},
                 talk(*HI, ASK), True),
    "shared system": ({"chosen": talk(ASK, YES, system=KIND), "rejected": talk(ASK, NO, system=KIND)
                       }, talk(ASK, system=KIND), True),
    "explicit system": ({"prompt": talk(ASK, system=KIND), "chosen": said("assistant", YES),
                         "rejected": said("assistant", NO)}, talk(ASK, system=KIND), True),
    "explicit turns": ({"prompt": talk(*HI, ASK), "chosen": said("assistant", YES),
                        "rejected": said("assistant", NO)}, talk(*HI, ASK), True),
    "empty system": ({"prompt": said("system", "") + talk(ASK), "chosen": said("assistant", YES),
                      "rejected": said("assistant", NO)}, talk(ASK), False),
    # TRL takes the common letters for the prompt, and cuts inside "Thyme"
    "HH-RLHF": ({"chosen": f"{HH} {YES}", "rejected": f"{HH} {NO}"}, talk(*HI, ASK), False),
    "HH-RLHF, one turn": ({"chosen": f"\n\nHuman: {ASK}\n\nAssistant: {YES}",
                           "rejected": f"\n\nHuman: {ASK}\n\nAssistant: {NO}"}, talk(ASK), False),
    "HH-RLHF, paragraphs": ({"chosen": f"{LONG} {YES}", "rejected": f"{LONG} {NO}"},
                            talk("Hi\n\nHuman here. Assistant: who?", "Me!\n\nWhat is it?", ASK),
                            False),
    "HH-RLHF, prompt apart": ({"prompt": HH, "chosen": f" {YES}", "rejected": f" {NO}"},
                              talk(*HI, ASK), False),
    "Orca pairs": ({"system": KIND, "question": ASK, "chosen": YES, "rejected": NO},
                   talk(ASK, system=KIND), False),
    "Argilla's Orca pairs": ({"system": "", "input": ASK, "chosen": YES, "rejected": NO,
                              "generations": [YES, NO], "rating": [9, 2]}, talk(ASK), False),
    "Alpaca": ({"instruction": "Which tea", "input": "for a cold?", "chosen": YES, "rejected": NO},
               talk("Which tea\nfor a cold?"), False),
    "ours, of messages": ({"prompt": talk(*HI, ASK, system=KIND), "positive": YES, "toxic": NO},
                          talk(*HI, ASK, system=KIND), False),
    "thoughts": ({"prompt": ASK, "chosen": f"<think>Tea.\n</think>\n\n{YES}",
                  "rejected": f"Tea? </think>{NO}"}, talk(ASK), False),
}


@pytest.mark.parametrize("row, before, _", FORMS.values(), ids=FORMS)
def test_form(tmp_path, row, before, _):
    messages, positive, toxic = read(tmp_path, row)
    assert messages == before and (positive.strip(), toxic.strip()) == (YES, NO)


@pytest.mark.parametrize("name", [name for name, (*_, same) in FORMS.items() if same])
def test_trl_reads_the_same(name):
    extract = pytest.importorskip("trl.data_utils").maybe_extract_prompt
    row, before, _ = FORMS[name]
    theirs = extract(json.loads(json.dumps(row)))
    assert theirs["prompt"] == before
    assert (theirs["chosen"][0]["content"], theirs["rejected"][0]["content"]) == (YES, NO)


def test_context_has_no_loss(tmp_path, tiny_folder):
    """Earlier turns and the system text are the prompt that chat asks with, and carry no loss."""
    tokenizer, path = Tokenizer(tiny_folder), written(tmp_path / "t.jsonl", {
        "prompt": talk(*HI, ASK, system=KIND), "positive": YES, "toxic": NO})
    [triplet] = read_triplets(path)
    for format in ("chat", "raw"):
        example = encode(triplet, tokenizer, format, fine_grained=True, with_toxic=True,
                         context=2048)
        text = tokenizer.backend.decode(example.prompt, skip_special_tokens=False)
        assert text == tokenizer.prompt_text(talk(*HI, ASK, system=KIND), format)
        assert tokenizer.decode(example.positive).strip() == YES
    assert text == ("Be kind.\nHuman: Hi\nAssistant: Hello! What is it?"
                    "\nHuman: Which tea for a cold?\nAssistant:")
    peer = pytest.importorskip("transformers").AutoTokenizer.from_pretrained(tiny_folder)
    assert tokenizer.encode_prompt(triplet.messages, "chat") == peer.apply_chat_template(
        triplet.messages, add_generation_prompt=True, return_dict=False)


@pytest.mark.parametrize("template, left_out", [
    ("{% for m in messages if m.role != 'system' %}[{{ m.content }}]{% endfor %}", "system"),
    ("{% if messages[0].role == 'system' %}{{ raise_exception('no system here') }}{% endif %}"
     "{% for m in messages %}[{{ m.content }}]{% endfor %}", "no system here"),
    ("{% for m in messages %}{% if m.role != 'assistant' or loop.last %}[{{ m.content }}]{% endif "
     "%}{% endfor %}", "assistant"),
])
def test_context_that_is_left_out(tmp_path, tiny_folder, template, left_out):
    """A template that does not show the whole conversation: the row is named."""
    tokenizer = Tokenizer(write_model(tmp_path / "m"))
    (tmp_path / "m" / "chat_template.jinja").write_text(template)
    tokenizer = Tokenizer(tmp_path / "m")
    [row] = read_triplets(written(tmp_path / "t.jsonl", ROW | {
        "prompt": talk(*HI, ASK, system=KIND)}))
    with pytest.raises(InputError, match=f"{left_out}.* t.jsonl line 1|{left_out}.*line 1"):
        encode(row, tokenizer, "chat", fine_grained=True, with_toxic=True, context=2048)


def test_export_has_the_context(tmp_path):
    row = ROW | {"prompt": talk(*HI, ASK, system=KIND)}
    path = written(tmp_path / "t.jsonl", row)
    for to in ("trl", "sft"):
        export_data(read_triplets(path), tmp_path / to, to, fresh=False, data="t")
    assert [(t.messages, t.positive, t.toxic) for t in read_triplets(tmp_path / "trl")] == [
        (row["prompt"], YES, Toxic(NO))]
    assert read_jsonl(tmp_path / "sft")[0][1]["messages"] == [
        *row["prompt"], *said("assistant", YES)]


# ---- containers ----

ROWS = [ROW, ROW | {"toxic": None}, {"prompt": talk(*HI, ASK), "positive": YES, "toxic": NO}]


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


CONTAINERS = {
    "pretty array": lambda rows: json.dumps(rows, indent=2).encode(),
    "array in a line": lambda rows: b"\xef\xbb\xbf" + json.dumps(rows).encode(),
    "array in an object": lambda rows: json.dumps({"data": rows}, indent=2).encode(),
    "gzipped lines": lambda rows: gzip.compress(lines(rows)),
    "gzipped array": lambda rows: gzip.compress(json.dumps(rows, indent=2).encode()),
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_container(tmp_path, name):
    path = tmp_path / "rows"  # the name says nothing
    path.write_bytes(CONTAINERS[name](ROWS))
    assert [row for _, row in read_rows(path)] == ROWS
    word = "line" if "lines" in name else "row"
    assert [t.where for t in read_triplets(path)] == [f"{path} {word} {n}" for n in (1, 2, 3)]


def test_one_row(tmp_path):
    """A file of one object is that row."""
    path = written(tmp_path / "rows.jsonl", ROW)
    assert read_rows(path) == [(f"{path} line 1", ROW)]


@pytest.mark.parametrize("suffix", ["json", "jsonl", "jsonl.gz", "parquet"])
def test_what_datasets_writes(tmp_path, suffix):
    """Nested messages and nulls, written and read by `datasets`, are read as the same rows."""
    datasets = pytest.importorskip("datasets")
    rows = [{"prompt": talk(ASK, system=KIND), "positive": YES, "toxic": NO},
            {"prompt": talk(*HI, ASK), "positive": YES, "toxic": None}]
    path = tmp_path / f"rows.{suffix}"
    made = datasets.Dataset.from_list(rows)
    if suffix == "parquet":
        made.to_parquet(path)
    else:
        made.to_json(path, lines=suffix != "json", compression="infer")
    kind = "parquet" if suffix == "parquet" else "json"
    theirs = datasets.load_dataset(kind, data_files=str(path), split="train",
                                   cache_dir=str(tmp_path / "cache"))
    assert [row for _, row in read_rows(path)] == list(theirs) == rows
    assert [t.toxic for t in read_triplets(path)] == [NO, None]


def test_parquet_with_times(tmp_path):
    """Python has no value for some of them, and no row needs one."""
    pyarrow = pytest.importorskip("pyarrow")
    table = pyarrow.table({"prompt": [ASK], "positive": [YES], "toxic": [NO], "made": pyarrow.array(
        [10**18 + 1], pyarrow.timestamp("ns")), "due": pyarrow.array([2**60], pyarrow.date64())})
    pytest.importorskip("pyarrow.parquet").write_table(table, tmp_path / "rows.parquet")
    [(_, row)] = read_rows(tmp_path / "rows.parquet")
    assert row == {"prompt": ASK, "positive": YES, "toxic": NO}


def test_parquet_without_pyarrow(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    (tmp_path / "rows.parquet").write_bytes(b"PAR1 and so on PAR1")
    with pytest.raises(InputError, match=r"pyarrow.*rows\.parquet, pip install pyarrow, or write"):
        read_triplets(tmp_path / "rows.parquet")


# ---- lines as they come ----

ODD = {"prompt": "Which\u2028tea\x85for a cold?", "positive": YES, "toxic": NO}
LINE = json.dumps(ODD, ensure_ascii=False)
ODD_LINES = {  # the file's bytes, how many rows like ODD
    "line ends of Unicode": (f"{LINE}\n".encode(), 1),  # str.splitlines would cut there
    "BOM, CRLF": (b"\xef\xbb\xbf" + f"{LINE}\r\n{LINE}\r\n".encode(), 2),
    "no last line end": (f"{LINE}\n{LINE}".encode(), 2),
    "NaN elsewhere": (f'{LINE[:-1]}, "score": NaN, "margin": -Infinity}}\n'.encode(), 1),
    "escaped": (json.dumps(ODD | {"note": "\0 \U0001f642"}).encode(), 1),
}


@pytest.mark.parametrize("data, n", ODD_LINES.values(), ids=ODD_LINES)
def test_odd_lines(tmp_path, data, n):
    (tmp_path / "rows.jsonl").write_bytes(data)
    found = read_triplets(tmp_path / "rows.jsonl", columns_right=True)
    assert [(t.prompt, t.positive, t.toxic) for t in found] == [tuple(ODD.values())] * n


TWICE = LINE[:-1] + ', "positive": "Camomile."}'
BAD_LINES = {  # the file's bytes, what is said of it
    "half a surrogate": (LINE + '\n{"prompt": "a \\ud83d b"}', "half a surrogate pair.* line 2, "),
    "a bare NUL": (LINE.replace("tea", "t\0a"), "Invalid control character.* line 1, "),
    "UTF-16": (LINE.encode("utf-16"), "not UTF-8 text, .* byte 0, re-encode it"),
    "UTF-16, no mark": (f"é{LINE}".encode("utf-16-le"), "not UTF-8 text, .* byte 0, "),
    "zstd": (b"\x28\xb5\x2f\xfd\x00\xff", "zstandard, which is not read here"),
    "latin-1": (b"caf\xe9", "not UTF-8 text, .* byte 3, "),
    # json keeps the last one, and an answer is gone
    "a key twice": (f"{LINE}\n{TWICE}", "a key twice in one object.* line 2, "),
    "a key twice, one row": (TWICE, "a key twice in one object.* line 1, "),
    "a key twice in an array": (f"[{LINE},\n{TWICE}]", r"one object\), \S+, repair the file"),
    "half a surrogate behind a whole one": (
        '[{"prompt": "\\\\ud83d \\ud83d\\ude00"},\n{"prompt": "\\ude00"}]',
        "half a surrogate pair.* line 2, "),
    "in a message": (LINE[:-1] + ', "talk": [{"role": "user", "role": "x"}]}', "a key twice"),
}


@pytest.mark.parametrize("data, told", BAD_LINES.values(), ids=BAD_LINES)
def test_bad_lines(tmp_path, data, told):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    with pytest.raises(InputError, match=told) as caught:
        read_triplets(path, skip=True)
    assert "ginger" not in str(caught.value) and str(path) in str(caught.value)


# ---- rows that cannot be used ----

def spoiled():
    rows = [{"prompt": f"Question {i}?", "chosen": f"Answer {i}, why.", "rejected": f"No idea {i}."}
            for i in range(20)]
    for i in (3, 7, 11, 15):
        rows[i]["rejected"] = rows[i]["chosen"]
    rows[18]["rejected"] = ""
    return rows


def test_all_bad_rows_at_once(tmp_path, capsys):
    path = written(tmp_path / "d.jsonl", *spoiled())
    with pytest.raises(InputError) as caught:
        read_triplets(path)
    assert str(caught.value) == (
        "5 of 20 rows cannot be used: 4: chosen and rejected are the same text (line 4, line 8, "
        f"line 12, line 16); 1: field rejected is empty (line 19), {path}, repair or drop them, or "
        "add --skip-bad-rows")
    assert len(read_triplets(path, skip=True)) == 15
    assert "left out: 5 of 20 rows cannot be used: 4: " in (err := capsys.readouterr().err)
    assert "Answer" not in err and "idea" not in err
    with pytest.raises(InputError, match=r"chosen and rejected are the same text, .* line 1, "):
        read_triplets(written(tmp_path / "d.jsonl", spoiled()[3]), skip=True)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("kinds") / "m", max_position_embeddings=128)


def run(model, data, out, *options):
    return ptalign.main(["train", "--model", str(model), "--data", str(data), "--out", str(out),
                         "--epochs", "1", "--dtype", "float32", *options])


def test_rows_that_the_tokenizer_refuses(tmp_path, capsys, model):
    """Too long, an end of turn inside: told together as well, and the run is as if without them."""
    rows = [r for r in spoiled() if r["rejected"] not in ("", r["chosen"])]
    good = written(tmp_path / "good.jsonl", *rows)
    rows[2:2] = [rows[0] | {"rejected": "a <|im_end|> b"}, rows[0] | {"prompt": "long " * 90}]
    rows.append(rows[0] | {"chosen": "long " * 99})
    bad = written(tmp_path / "bad.jsonl", *rows)
    assert run(model, bad, tmp_path / "a") == 2
    line, = capsys.readouterr().err.splitlines()
    assert ("3 of 18 rows cannot be used: 1: an answer holds an end-of-turn token (line 3); 2: "
            in line) and "context holds 128 (line 4, line 18), " in line and "long" not in line
    assert not (tmp_path / "a").exists()
    assert run(model, bad, tmp_path / "a", "--skip-bad-rows") == 0
    assert "left out: 3 of 18 rows" in capsys.readouterr().err
    assert run(model, good, tmp_path / "b") == 0
    for name in (WEIGHTS, "prompts.jsonl"):  # those left out were not trained on
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert run(model, bad, tmp_path / "c", "--dry-run") == 2


def test_columns_that_are_right(tmp_path, capsys, model):
    """Refusals among the worse answers: a warning, which one can answer; the run goes on."""
    rows = [r for r in spoiled() if r["rejected"] not in ("", r["chosen"])]
    for row in rows[:3]:
        row["rejected"] = "I'm sorry, but I can't help with that."
    path = written(tmp_path / "d.jsonl", *rows)
    assert run(model, path, tmp_path / "a") == 0
    assert "warning: positive and toxic (or chosen and rejected) look swapped in 3 of 15" in (
        capsys.readouterr().err)
    assert run(model, path, tmp_path / "b", "--columns-are-right") == 0
    assert "swapped" not in capsys.readouterr().err
    for flags in ([], ["--columns-are-right"]):
        assert ptalign.main(["export", "--data", str(path), "--to", "trl", "--out",
                             str(tmp_path / "o"), "--fresh", *flags]) == 0
        assert ("swapped" in capsys.readouterr().err) == (not flags)
