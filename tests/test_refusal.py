"""refusal.py: sets, samples and the base model's surprise, on a tiny random model (CPU fp32).

Batches and interruptions change nothing; figures are recounted from the items.
"""

import json
import random

import numpy as np
import pytest
import torch
from test_evals import PROMPT_ROWS, files_of, results_of, run, task_of

import evals.answers as answering
from evals import likelihood, verdicts
from evals.answers import answers, count_answers
from evals.data import load_rows
from evals.figures import combined
from evals.task import Column
from evals.tasks.refusal import SETS, Refusal
from generate import Completion
from lora import load_adapter
from model import load_model
from support.files import AppendLog, InputError, read_jsonl, sha256, write_jsonl
from tokenizer import Tokenizer

ROWS = [{"id": f"r{n}", "prompt": prompt, "category": "mild", "harmful": False}
        for n, prompt in enumerate(["Hi.", "How do I say no to my neighbour?", "Hi.", "Milk?",
                                    "What is a kind word for a slow worker, dear reader?"])]


@pytest.fixture(scope="module")
def parts(tiny_folder):
    return load_model(tiny_folder, device="cpu", dtype="float32"), Tokenizer(tiny_folder)


def ask(parts, rows=ROWS, **options):
    return answers(*parts, rows, **{"format": "chat", "max_new_tokens": 6, "batch": 64, **options})


def test_answers_stand_in_the_rows_order(parts):
    got = ask(parts)
    assert [a["prompt"] for a in got] == [sha256(row["prompt"]) for row in ROWS]
    assert got[0] == got[2]  # one prompt, one answer
    alone = [ask(parts, [row])[0] for row in ROWS]
    assert got == alone


def test_batches_are_fixed_and_read_back(parts, monkeypatch):
    sizes, real = [], answering.generate
    monkeypatch.setattr(answering, "generate", lambda *a: sizes.append(len(a[2])) or real(*a))
    log = {}
    first = ask(parts, log=log, batch=2)
    assert sizes == [2, 2]  # four distinct prompts, shortest first
    assert ask(parts, log=log, batch=2) == first and sizes == [2, 2]
    log.popitem()
    assert ask(parts, log=log, batch=2) == first and sizes == [2, 2, 2]


def test_raw_answers_end_at_the_next_turn(parts, monkeypatch):
    seen = []

    def spy(model, tokenizer, prompts, sampling, seeds):
        seen.append(sampling)
        return real(model, tokenizer, prompts, sampling, seeds)

    real = answering.generate
    monkeypatch.setattr(answering, "generate", spy)
    ask(parts, format="raw")
    ask(parts, format="chat")
    assert [s.stop for s in seen] == [("\nHuman:",), ()]
    assert all(s.temperature == 0 for s in seen)


def test_prompt_beyond_the_context_is_refused(parts):
    rows = [{**ROWS[0], "id": "deep", "prompt": "and so on " * 800}]
    with pytest.raises(InputError, match="exceed a context of 2048, item deep"):
        ask(parts, rows)


# ---- the base model's surprise ----

SAID = ["Bring flowers, say that you forgot, and cook on Sunday.", "", "I can't.",
        "I cannot help with that. Here is how: wait until noon.", "very " * 30]


def ask_logged(parts, rows, tmp_path, column="base", name="log", *, format="chat", samples=(None,),
               seed=0):
    """Refusal's results of `rows`, with logs in a folder of their own."""
    task = Refusal.__new__(Refusal)  # without the data of its own
    task.format = format
    asked = [row if sample is None else {**row, "sample": sample}
             for sample in samples for row in rows]
    with AppendLog(tmp_path / f"{name}.answers") as answered, \
            AppendLog(tmp_path / f"{name}.scores") as scores:
        return task.measure_answers(Column(column, *parts, seed, 30, {
            "answers": answered, "scores": scores}), asked)


@pytest.fixture
def said(monkeypatch):
    """The model is made to answer the n-th prompt of a batch by the n-th of SAID."""
    monkeypatch.setattr(answering, "generate", lambda model, tokenizer, prompts, *_: [
        Completion(text, "eos", 9) for text in SAID[: len(prompts)]])


def test_nll_is_a_plain_pass_of_the_base(tiny_folder, adapter, said, tmp_path):
    tokenizer = Tokenizer(tiny_folder)
    rows = [{"id": f"r{n}", "prompt": "?" * (n + 1)} for n in range(len(SAID))]  # shortest first
    for format in ("chat", "raw"):
        base = load_model(tiny_folder, device="cpu", dtype="float32")
        wanted = {}
        for i in (0, 3):  # of a text with a fault of its own it is not asked
            context = tokenizer.prompt_text(rows[i]["prompt"], format)
            text = (" " if format == "raw" else "") + SAID[i]
            ids, first = tokenizer.encode_pair(context, text, special=format == "raw")
            with torch.no_grad():
                logprobs = base(torch.tensor([ids]))[0].double().log_softmax(-1)
            own = [-logprobs[k - 1, ids[k]].item() for k in range(first, len(ids))]
            wanted[i] = pytest.approx(np.mean(own), abs=1e-4)
        found = ask_logged((base, tokenizer), rows, tmp_path, name=f"{format} base", format=format)
        assert [r["nll"] for r in found] == [wanted.get(i) for i in range(len(SAID))]

        load_adapter(base, adapter)
        with torch.no_grad():
            before = base(torch.tensor([ids]))
        tuned = ask_logged((base, tokenizer), rows, tmp_path, "tuned", f"{format} tuned",
                           format=format)
        assert [r["nll"] for r in tuned] == [r["nll"] for r in found]
        with torch.no_grad():  # the adapter is on again
            assert torch.equal(base(torch.tensor([ids])), before)


@pytest.mark.parametrize("most, wanted", [
    (float("inf"), ["complied", "empty", "declined", "complied", "looping"]),
    (0, ["incoherent", "empty", "declined", "incoherent", "looping"]),
])
def test_nll_decides_the_verdict(parts, said, tmp_path, monkeypatch, most, wanted):
    monkeypatch.setattr(verdicts, "MAX_NLL", most)
    rows = [{"id": f"r{n}", "prompt": "?" * (n + 1)} for n in range(len(SAID))]
    found = ask_logged(parts, rows, tmp_path)
    assert [r["fault"] or r["verdict"] for r in found] == wanted
    counts = count_answers([{"base": r} for r in found], ("base",))["base"]
    assert [counts[fault] for fault in verdicts.FAULTS] == [
        wanted.count(fault) for fault in verdicts.FAULTS]
    assert counts["evaded"] == sum(fault in verdicts.FAULTS for fault in wanted)
    assert counts["declined"] == 1 and sum(counts[v] for v in verdicts.VERDICTS) == len(SAID)


# ---- samples ----

def drawn(found) -> list[tuple]:
    return [(r["answer_sha256"], r["nll"]) for r in found]


def test_samples_are_a_function_of_seed_and_prompt(parts, tmp_path, monkeypatch):
    first = ask_logged(parts, ROWS, tmp_path, name="a", samples=range(3))
    assert sum(r["nll"] is not None for r in first) > 5  # long enough to be asked about
    one, two, three = (first[i : i + 5] for i in (0, 5, 10))
    assert drawn(one) != drawn(two) != drawn(three) != drawn(one)
    assert one[0] == one[2]  # one prompt, one sample, one answer
    assert drawn(ask_logged(parts, ROWS, tmp_path, name="b")) != drawn(one)  # greedy
    other = ask_logged(parts, ROWS, tmp_path, name="c", samples=range(3), seed=1)
    assert drawn(other) != drawn(first)
    # neither the order, nor more samples, nor the size of a batch
    backwards = ask_logged(parts, ROWS[::-1], tmp_path, name="d", samples=(2, 1, 0))
    assert backwards[::-1] == first
    assert ask_logged(parts, ROWS, tmp_path, name="e", samples=range(2)) == one + two
    monkeypatch.setattr(Refusal, "batch", 2)
    monkeypatch.setattr(answering, "BATCH_TOKENS", 60)
    found = ask_logged(parts, ROWS, tmp_path, name="f", samples=range(3))
    assert [r["answer_sha256"] for r in found] == [r["answer_sha256"] for r in first]
    for a, b in zip(found, first, strict=True):
        assert a["nll"] == pytest.approx(b["nll"], abs=1e-4)


def test_samples_are_items_in_order(folder):
    items = task_of(Refusal, data_dir=str(folder), sets=["xstest"], samples=3).describe()
    assert [item["sample"] for item in items] == [
        number for number in range(3) for _ in PROMPT_ROWS]
    assert [item["id"] for item in items] == [row["id"] for row in PROMPT_ROWS] * 3


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    write_jsonl(folder / "xstest.jsonl", PROMPT_ROWS)
    write_jsonl(folder / "jailbreakbench.jsonl", PROMPT_ROWS[:4])
    return folder


def evaluate(tiny_folder, folder, out, **options):
    run(tiny_folder, folder, out, **{"tasks": ["refusal"], "sets": ["xstest"], "samples": 3,
                                     **options})
    return results_of(out), [item for _, item in read_jsonl(out / "items.jsonl")]


def test_sampled_figures_recount(tiny_folder, adapter, folder, tmp_path, monkeypatch, capsys):
    texts = ["I cannot do that for you.", "Yes, that can be done so.",
             "I cannot say. Here is how it is done: slowly."]
    draw = random.Random(1).choice
    monkeypatch.setattr(verdicts, "MAX_NLL", float("inf"))
    monkeypatch.setattr(answering, "generate", lambda model, tokenizer, prompts, *_: [
        Completion(draw(texts), "eos", 9) for _ in prompts])
    results, items = evaluate(tiny_folder, folder, tmp_path / "out", adapter=[str(adapter)])
    assert len(items) == 3 * len(PROMPT_ROWS)
    figures = {f["key"].removeprefix("refusal/chat/xstest/"): f for f in results["figures"]}
    assert list(figures)[:5] == [f"harmful/{name}" for name in (
        "declined", "complied", "evaded", "xstest-21 hit", "complied in any of 3")]
    for side, harmful in (("harmful", True), ("benign", False)):
        ids = [row["id"] for row in PROMPT_ROWS if row["harmful"] == harmful]
        for column in ("base", "tuned"):
            own = [[i[column] for i in items if i["id"] == name] for name in ids]
            assert [len(results) for results in own] == [3] * 3
            declined = [np.mean([r["verdict"] == "declined" for r in rs]) for rs in own]
            hits = [np.mean([r["lists"]["xstest-21"] for r in rs]) for rs in own]
            any_ = [any(r["verdict"] == "complied" for r in rs) for rs in own]
            complied = [np.mean([r["verdict"] == "complied" for r in rs]) for rs in own]
            found = {name: figures[f"{side}/{name}"] for name in (
                "declined", "xstest-21 hit", "complied", "complied in any of 3")}
            for f, values in zip(found.values(), (declined, hits, complied, any_), strict=True):
                assert (f["n"], f["prompts"]) == (3, 3)  # prompts, not answers
                assert f[column]["rate"] == pytest.approx(np.mean(values))
            assert 0 < found["declined"][column]["rate"] < found["xstest-21 hit"][column]["rate"]
            counts = results["answers"][f"xstest/{side}"]
            assert counts["n"] == 9 and counts[column]["declined"] == round(3 * sum(declined))
        better = [found[name]["higher_is_better"] for name in found]
        assert better == [harmful, harmful, not harmful, not harmful]
    assert "refusal: answers sampled at temperature 1, top-p 0.95." in capsys.readouterr().out


@pytest.mark.parametrize("log, calls", [("answers", 1), ("answers", 4), ("scores", 1)])
def test_killed_sampled_run_ends_like_an_unbroken_one(tiny_folder, adapter, folder, tmp_path,
                                                      monkeypatch, killed, log, calls):
    monkeypatch.setattr(Refusal, "batch", 4)
    monkeypatch.setattr(answering, "BATCH_TOKENS", 200)
    options = {"adapter": [str(adapter)], "samples": 2, "max_new_tokens": 30}
    evaluate(tiny_folder, folder, tmp_path / "whole", **options)
    module, name = {"answers": (answering, "generate"), "scores": (likelihood, "score_batch")}[log]
    out = tmp_path / "killed"
    with killed(module, name, calls):
        evaluate(tiny_folder, folder, out, **options)
    assert len(read_jsonl(out / f"{log}.jsonl")) == calls
    evaluate(tiny_folder, folder, out, **options)
    assert files_of(out) == files_of(tmp_path / "whole")


def test_other_sampling_is_another_run(tiny_folder, folder, tmp_path):
    evaluate(tiny_folder, folder, tmp_path / "out")
    for changed in ({"samples": None}, {"samples": 4}, {"sets": ["jailbreakbench"]}):
        with pytest.raises(InputError, match="settings changed: data_sha256"):
            evaluate(tiny_folder, folder, tmp_path / "out", **changed)


def test_combined_is_one_observation_each():
    items = [{"id": n, "prompt": n, "base": v, **more} for n, v, more in [
        ("a", 1, {}), ("b", 0, {"trained_on": True}), ("a", 0, {}), ("b", 0, {"trained_on": True})]]
    assert combined(items, "id", float, max, ("base",)) == [
        {"prompt": "a", "base": 1.0}, {"prompt": "b", "trained_on": True, "base": 0.0}]
    assert combined(items, "prompt", float, sum, ("base",))[0]["base"] == 1.0


# ---- sets ----

def test_sets_are_chosen_by_name(folder, tmp_path):
    write_jsonl(folder / "strongreject_small.jsonl", PROMPT_ROWS[:1])

    def refusal(sets=None):
        return task_of(Refusal, data_dir=str(folder), sets=sets)

    task = refusal()
    assert list(task.rows) == list(task.sources) == ["xstest", "jailbreakbench"]
    task = refusal(["strongreject", "xstest"])
    assert list(task.rows) == ["xstest", "strongreject"] and len(task.rows["strongreject"]) == 1
    assert task.sources["strongreject"]["path"].endswith("strongreject_small.jsonl")
    write_jsonl(folder / "strongreject.jsonl", PROMPT_ROWS)  # the whole goes before its part
    assert len(refusal(["strongreject"]).rows["strongreject"]) == len(PROMPT_ROWS)
    with pytest.raises(InputError, match="unknown set 'xtest', --sets, choose from xstest, "):
        refusal(["xtest"])
    with pytest.raises(InputError, match=r"strongreject\.jsonl, write it: pip install datasets"):
        load_rows("strongreject", data_dir=str(tmp_path))
    with pytest.raises(InputError, match=r"not on the hub, vinid.*, name the folder of safety_"):
        load_rows("safety_tuned_llamas")


def test_self_instruct_from_the_hub(tmp_path, monkeypatch):
    row = {"id": "u0", "motivation_app": "Post", "instruction": "Answer the letter.",
           "instances": [{"input": "Dear aunt", "output": "Dear child"}]}
    path = tmp_path / "human-eval.jsonl"
    write_jsonl(path, [row, {**row, "instances": [{"input": "", "output": "Yes."}]}])
    monkeypatch.setattr("evals.data.dataset_file", lambda repo, file, revision: tmp_path / file)
    rows, _ = load_rows("self_instruct")
    assert [r["prompt"] for r in rows] == ["Answer the letter.\n\nDear aunt", "Answer the letter."]
    assert not any(r["harmful"] for r in rows) and "child" not in json.dumps(rows)
    write_jsonl(path, [{**row, "instances": []}])
    with pytest.raises(InputError, match=r"not in the expected form \(IndexError\)"):
        load_rows("self_instruct")


def test_published_sets(shared_data):
    task = task_of(Refusal, data_dir=str(shared_data), sets=list(SETS))
    assert {name: (len(rows), sum(row["harmful"] for row in rows))
            for name, rows in task.rows.items()} == {
        "xstest": (450, 200), "jailbreakbench": (200, 100), "strongreject": (60, 60),
        "safety_tuned_llamas": (668, 518), "self_instruct": (252, 0)}
    assert all(source["as_checked"] for source in task.sources.values())
