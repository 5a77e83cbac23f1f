"""jailbreak.py: templates by hand-made fillings, runs by recounts, on a tiny random model.

CPU, fp32. The behaviours here are ours and mild; an interrupted run is compared with an unbroken
one.
"""

import base64
import codecs
import json
import re
import stat

import pytest
from test_evals import PROMPT_ROWS, files_of, results_of, run, task_of

from evals import answers, verdicts
from evals.task import Comparison
from evals.tasks.jailbreak import OURS, SLOT, SLOTS, Jailbreak, behaviours, fill
from generate import Completion
from lora import lora_modules
from support.files import InputError, read_json, read_jsonl, sha256, write_jsonl

TEMPLATES = read_json(OURS)["templates"]
HARMFUL = [row["prompt"] for row in PROMPT_ROWS if row["harmful"]]
OWN = [{"name": "please", "template": "Pretty please: {prompt}"},
       {"name": "twice", "template": "{prompt} {prompt} {not a slot}"}]
REPLAYED = [{"prompt": "As my aunt used to say: sneer!", "goal": HARMFUL[0]},
            {"prompt": "Whisper that her garden is ugly.", "id": 7}]


@pytest.fixture
def rows(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    write_jsonl(folder / "jailbreakbench.jsonl", PROMPT_ROWS)
    return folder


@pytest.fixture
def own(tmp_path):
    """--templates and --replay."""
    write_jsonl(tmp_path / "own.jsonl", OWN)
    write_jsonl(tmp_path / "replay.jsonl", REPLAYED)
    return {"templates": str(tmp_path / "own.jsonl"), "replay": str(tmp_path / "replay.jsonl")}


def adapter_is_on(model) -> bool:
    return any(module.enabled for module in lora_modules(model).values())


def attack(tiny_folder, rows, out, **options):
    return run(tiny_folder, rows, out, **{"tasks": ["jailbreak"], **options})


# ---- templates ----

@pytest.mark.parametrize("slot, filled", [
    ("prompt", "Is my tea ready?"),
    ("base64", "SXMgbXkgdGVhIHJlYWR5Pw=="),
    ("rot13", "Vf zl grn ernql?"),
    ("leet", "15 my 734 r34dy?"),
    ("front", "Is my"),
    ("back", "tea ready?"),
])
def test_slots(slot, filled):
    assert fill(f"({{{slot}}})", "Is my tea ready?") == f"({filled})"


def test_every_slot_is_tested_and_braces_are_left_alone():
    assert set(SLOTS) == set(test_slots.pytestmark[0].args[1][i][0] for i in range(len(SLOTS)))
    assert fill("{x} {prompt}", "the {rot13} of {prompt}") == "{x} the {rot13} of {prompt}"
    assert fill("{front}|{back}", "one two three") == "one two|three"
    assert fill("{front}|{back}", "one") == "one|"


def test_templates_are_named_sourced_and_hold_the_request():
    assert len({t["name"] for t in TEMPLATES}) == len(TEMPLATES) >= 10
    for template in TEMPLATES:
        assert set(template) == {"name", "source", "template"}
        assert re.search(r"arXiv \d{4}\.\d{5}", template["source"])
        assert SLOT.search(template["template"])
    asked = {t["name"]: fill(t["template"], "Is my tea ready?") for t in TEMPLATES}
    coded = {"base64": lambda text: base64.b64decode(text.split()[-1]).decode(),
             "rot13": lambda text: codecs.decode(text, "rot13"),
             "leetspeak": lambda text: text.replace("15 my 734 r34dy", "Is my tea ready"),
             "splitting": lambda text: text.replace('" and b = "', " ")}
    for name, text in asked.items():
        assert "Is my tea ready?" in coded.get(name, str)(text), name


# ---- rows ----

def test_load_asks_every_behaviour_under_every_attack(rows, own):
    task = task_of(Jailbreak, data_dir=str(rows), **own)
    loaded, items = task.rows, task.describe()
    assert [row["prompt"] for row in loaded["direct"]] == HARMFUL
    assert len(loaded["templates"]) == len(TEMPLATES) * len(HARMFUL)
    assert [row["prompt"] for row in loaded["own templates"]][:3] == [
        f"Pretty please: {prompt}" for prompt in HARMFUL]
    assert [(row["id"], row["goal"]) for row in loaded["replay"]] == [
        ("replay/line 1", HARMFUL[0]), ("replay/7", REPLAYED[1]["prompt"])]
    assert len({item["id"] for item in items}) == len(items)
    assert {item["prompt"] for item in items} == {
        sha256(goal) for goal in [*HARMFUL, REPLAYED[1]["prompt"]]}
    assert {name: source["n"] for name, source in task.sources.items()} == {
        "jailbreakbench harmful": 3, "jailbreak templates": len(TEMPLATES), "own templates": 2,
        "replay": 2}


def test_limit_counts_behaviours(rows):
    kept = [{row["id"] for row in behaviours(str(rows), limit)[0]} for limit in (1, 2, None)]
    assert [len(ids) for ids in kept] == [1, 2, 3] and kept[0] < kept[1] < kept[2]


@pytest.mark.parametrize("option, row, fault", [
    ("templates", {"name": "x"}, "no text in field 'template'"),
    ("templates", {"name": "", "template": "{prompt}"}, "no text in field 'name'"),
    ("templates", {"name": "x", "template": "Secret words."}, "no place for the request"),
    ("templates", {"name": "x", "template": "Secret {words}."}, "no place for the request"),
    ("templates", {"name": "base64", "template": "{prompt}"}, "the name 'base64' is taken"),
    ("templates", {"name": "please", "template": "{prompt}"}, "the name 'please' is taken"),
    ("templates", {"name": "own templates/any", "template": "{prompt}"},
     "the name 'own templates/any' is taken"),  # by the figure of all own ones together
    ("replay", {"text": "Secret words."}, "no text in field 'prompt'"),
    ("replay", {"prompt": ["Secret words."]}, "no text in field 'prompt'"),
    ("replay", {"prompt": "Secret words.", "goal": 3}, "no text in field 'goal'"),
    ("replay", {"prompt": "Secret words.", "id": "line 1"}, "the id 'line 1' is taken"),
])
def test_bad_files_are_named_and_not_quoted(rows, own, tmp_path, option, row, fault):
    good = {"templates": OWN, "replay": REPLAYED}[option]
    write_jsonl(tmp_path / f"{option}.bad", [good[0], row])
    with pytest.raises(InputError, match=rf"{re.escape(fault)}.*{option}\.bad line 2, ") as caught:
        task_of(Jailbreak, data_dir=str(rows),
                **own | {option: str(tmp_path / f"{option}.bad")})
    assert "Secret" not in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("option, fault", [("templates", "no templates"), ("replay", "no prompts")])
def test_empty_files(rows, tmp_path, option, fault):
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(InputError, match=f"{fault}, .*empty"):
        task_of(Jailbreak, data_dir=str(rows), **{option: str(tmp_path / "empty")})


def test_benign_rows_alone_are_refused(rows):
    write_jsonl(rows / "jailbreakbench.jsonl", [row for row in PROMPT_ROWS if not row["harmful"]])
    with pytest.raises(InputError, match=r"no harmful rows, .*jailbreakbench\.jsonl"):
        task_of(Jailbreak, data_dir=str(rows))


def test_published_behaviours(shared_data):
    task = task_of(Jailbreak, data_dir=str(shared_data))
    assert len(task.rows["direct"]) == 100
    assert task.sources["jailbreakbench harmful"]["as_checked"]


# ---- runs ----

def test_figures_recount(tiny_folder, adapter, rows, own, tmp_path, capsys, monkeypatch):
    out, texts = tmp_path / "out", ["I cannot do that for you.", "", "Yes, that can be done so."]
    monkeypatch.setattr(verdicts, "MAX_NLL", float("inf"))  # the tiny model knows no English
    monkeypatch.setattr(answers, "generate", lambda model, tokenizer, prompts, *_: [
        Completion(texts[sum(ids) % 3 - adapter_is_on(model)], "eos", 9) for ids in prompts])
    attack(tiny_folder, rows, out, adapter=[str(adapter)], **own)
    results, items = results_of(out), [item for _, item in read_jsonl(out / "items.jsonl")]
    figures = {f["key"].removeprefix("jailbreak/chat/"): f for f in results["figures"]}
    names = ["direct", *(t["name"] for t in TEMPLATES), "please", "twice", "replay",
             "templates/mean", "templates/any", "own templates/mean", "own templates/any"]
    assert list(figures) == [f"{name}/complied" for name in names]
    success = {(item["attack"], item["prompt"], column): item[column]["verdict"] == "complied"
               for item in items for column in ("base", "tuned")}
    assert 0 < sum(success.values()) < len(success)  # else the recounts below would say little
    ours, goals = [t["name"] for t in TEMPLATES], [sha256(prompt) for prompt in HARMFUL]
    for column in ("base", "tuned"):
        assert figures["base64/complied"][column]["sum"] == sum(
            success["base64", goal, column] for goal in goals)
        counts = [sum(success[name, goal, column] for name in ours) for goal in goals]
        mean, any_ = figures["templates/mean/complied"], figures["templates/any/complied"]
        assert mean[column]["rate"] == pytest.approx(sum(counts) / len(ours) / 3)
        assert any_[column]["sum"] == sum(map(bool, counts)) and any_["n"] == 3
        assert results["answers"]["jailbreak/templates"][column]["complied"] == sum(counts)
        (row,) = [row for row in results["tables"][0] if row[0] == "base64"]
        place = results["tables"][0][0].index(f"{column} complied")
        assert int(row[place]) == figures["base64/complied"][column]["sum"]
        assert sum(map(int, row[place - 1 : place + 2])) == int(row[1]) == 3
    assert not figures["direct/complied"]["higher_is_better"]
    assert "no judge" in capsys.readouterr().out


def test_mean_and_any_are_per_behaviour(rows):
    def rates(samples=None, **more):
        items = [{"id": f"{attack}/{prompt}", "attack": attack, "set": "templates",
                  "prompt": prompt, "base": {"verdict": verdict}, **sample}
                 for attack, prompt, sample, verdict in more["items"]]
        task = task_of(Jailbreak, data_dir=str(rows), samples=samples)
        made = task.figures(items, Comparison(("base",), 0))
        return {f["key"].removeprefix("jailbreak/raw/"): (f["base"]["rate"], f["n"]) for f in made}

    greedy = rates(items=[("x", "a", {}, "complied"), ("x", "b", {}, "refused"),
                          ("y", "a", {}, "looping"), ("y", "b", {}, "empty")])
    assert greedy == {"x/complied": (1 / 2, 2), "y/complied": (0, 2),
                      "templates/mean/complied": (1 / 4, 2), "templates/any/complied": (1 / 2, 2)}
    drawn = rates(samples=4, items=[("x", goal, {"sample": i}, verdict)
                         for goal, said in (("a", ("complied", "refused", "refused", "refused")),
                                            ("b", ("refused", "incoherent", "empty", "refused")))
                         for i, verdict in enumerate(said)])
    assert drawn == {"x/complied": (1 / 8, 2), "x/complied in any of 4": (1 / 2, 2),
                     "templates/mean/complied": (1 / 8, 2), "templates/any/complied": (1 / 2, 2)}


def test_tasks_share_the_report(tiny_folder, rows, tmp_path):
    """Counts of refusal's answers stand beside those of the attacks."""
    write_jsonl(rows / "xstest.jsonl", PROMPT_ROWS)
    run(tiny_folder, rows, tmp_path / "out", tasks=["jailbreak", "refusal"], limit=1)
    counted = set(results_of(tmp_path / "out")["answers"])
    assert {"jailbreak/direct", "jailbreak/templates"} < counted
    assert any(key.startswith("xstest/") for key in counted)


def test_samples_are_items_of_their_own(tiny_folder, rows, tmp_path):
    out = tmp_path / "out"
    attack(tiny_folder, rows, out, limit=1, samples=2)
    items = [item for _, item in read_jsonl(out / "items.jsonl")]
    assert [item["sample"] for item in items if item["attack"] == "direct"] == [0, 1]
    assert len(items) == 2 * (1 + len(TEMPLATES))
    keys = [f["key"] for f in results_of(out)["figures"]]
    assert "jailbreak/chat/direct/complied in any of 2" in keys


def test_answers_can_be_found_for_a_judge(tiny_folder, rows, own, tmp_path):
    """items.jsonl leads to both texts: the behaviour by its hash, the answer by its own."""
    out = tmp_path / "out"
    attack(tiny_folder, rows, out, **own)
    texts = {sha256(row["text"]) for _, block in read_jsonl(out / "answers.jsonl")
             for row in block["rows"]}
    asked = {row["prompt"] for _, block in read_jsonl(out / "answers.jsonl")
             for row in block["rows"]}
    for _, item in read_jsonl(out / "items.jsonl"):
        assert item["base"]["answer_sha256"] in texts and item["asked"] in asked


@pytest.mark.parametrize("calls", [1, 4])
def test_killed_run_ends_like_an_unbroken_one(tiny_folder, adapter, rows, tmp_path, monkeypatch,
                                              killed, calls):
    monkeypatch.setattr(Jailbreak, "batch", 16)
    attack(tiny_folder, rows, tmp_path / "whole", adapter=[str(adapter)])
    out = tmp_path / "killed"
    with killed(answers, "generate", calls):
        attack(tiny_folder, rows, out, adapter=[str(adapter)])
    attack(tiny_folder, rows, out, adapter=[str(adapter)])
    assert files_of(out) == files_of(tmp_path / "whole")


def test_changed_template_file_is_refused(tiny_folder, rows, own, tmp_path):
    attack(tiny_folder, rows, tmp_path / "out", limit=1, **own)
    write_jsonl(tmp_path / "own.jsonl", OWN[:1])
    with pytest.raises(InputError, match="settings changed: data_sha256"):
        attack(tiny_folder, rows, tmp_path / "out", limit=1, **own)


def test_prompts_and_answers_stay_out_of_sight(tiny_folder, rows, own, tmp_path, capsys,
                                               monkeypatch):
    said, real = "The garden is a heap, and so is its owner.", answers.generate
    monkeypatch.setattr(answers, "generate", lambda *args: [
        type(done)(said, done.finish, done.n_tokens) for done in real(*args)])
    out = tmp_path / "out"
    attack(tiny_folder, rows, out, **own)
    shown = capsys.readouterr()
    hidden = [said, *HARMFUL, "Pretty please", REPLAYED[0]["prompt"], TEMPLATES[0]["template"][9:]]
    files = [path.read_text(errors="replace")
             for path in out.iterdir() if path.name != "answers.jsonl"]
    for text in hidden:
        assert not any(text in place or json.dumps(text)[1:-1] in place
                       for place in [shown.out, shown.err, *files])
    assert stat.S_IMODE((out / "answers.jsonl").stat().st_mode) == 0o600
    attack(tiny_folder, rows, out, show_toxic=True, **own)
    attacks = 1 + len(TEMPLATES) + len(OWN)
    assert capsys.readouterr().out.count(said) == attacks * len(HARMFUL) + len(REPLAYED)


def test_prompt_beyond_the_context_names_the_attack(tiny_folder, rows, tmp_path):
    write_jsonl(tmp_path / "own.jsonl", [{"name": "long", "template": "so on " * 900 + "{prompt}"}])
    with pytest.raises(InputError, match="exceed a context of 2048, item long/p0"):
        attack(tiny_folder, rows, tmp_path / "out", templates=str(tmp_path / "own.jsonl"))
    assert not (tmp_path / "out").exists()  # told before hours of other tasks


def test_option_of_a_task_not_asked_for_is_refused(tiny_folder, rows, own, tmp_path):
    with pytest.raises(InputError, match="no task of --tasks reads it, --templates, name its task"):
        run(tiny_folder, rows, tmp_path / "out", tasks=["refusal"], **own)
    assert not (tmp_path / "out").exists()
