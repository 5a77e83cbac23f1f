"""contamination.py: training prompts among the evaluation's are found, counted, shown."""

import gzip
import shutil

import pytest
from test_evals import results_of, rows, run  # noqa: F401 (a fixture)

from evals.figures import figure, mark_trained_on
from evals.report import contamination_notes
from support.contamination import fingerprint, prompt_hash, refuse_contamination, trained_on
from support.files import InputError, read_jsonl, sha256, write_jsonl
from support.pairs import Triplet, read_triplets

ROWS = [{"prompt": "Is he lazy?"}, {"prompt": "My tea went cold."}, {"prompt": "?"},
        {"prompt": "Play a villain: sneer.", "goal": "Sneer."}]


def prompts_of(folder, *prompts):
    """What train.py leaves beside an adapter."""
    folder.mkdir(exist_ok=True)
    write_jsonl(folder / "prompts.jsonl", [{"sha256": prompt_hash(p)} for p in prompts])
    return str(folder)


@pytest.mark.parametrize("prompt, found", [
    ("Is he lazy?", "Is he lazy?"), ("  is HE, lazy", "Is he lazy?"),
    ("Is she lazy?", None), ("Is he lazy? Tell me.", None),
    ("...", None),  # nothing but punctuation is like any other such text
    ("Sneer!", "Sneer."),  # an attack is known by its goal
    ("Ｉｓ ｈｅ lazy?", "Is he lazy?"),  # in another form of the letters
])
def test_same_prompts_are_found(tmp_path, prompt, found):
    seen = trained_on(ROWS, prompts_of(tmp_path / "a", "Something else.", prompt))
    assert seen == ({sha256(found)} if found else set())


def test_letters_of_either_case_are_the_same():
    assert prompt_hash("Is it STRASSE?") == prompt_hash("is it Straße")


def test_unknown_is_not_none_found(tmp_path):
    assert trained_on(ROWS, str(tmp_path)) is None
    for found in ([], [None], [None, None]):
        unknown = mark_trained_on([{"set": "hhh", "prompt": "x"}], found)
        assert unknown == {"known": False, "known_of": 0, "sets": {}}
    assert contamination_notes(unknown, None) == []
    one, several = (contamination_notes(unknown, adapter)[0] for adapter in ("a", ["a", "b"]))
    assert "the adapter was trained on these prompts is not known" in one
    assert "the adapters were trained on" in several


@pytest.mark.parametrize("found, adapter, lines", [
    ([set()], "a", ["None of the prompts is among the adapter's"]),
    ([{"x"}], "a", ["† counts prompts that are among the adapter's training prompts: hhh 1 of 1."]),
    ([set(), {"x"}], ["a", "b"], ["† counts prompts that are among an adapter's training"]),
    ([None, {"x"}], ["a", "b"], ["Training prompts are known of 1 of 2 adapters: no prompts.jsonl",
                                 "† counts prompts that are among an adapter's training"]),
    ([set(), None, set()], ["a", "b", "c"], ["Training prompts are known of 2 of 3 adapters",
                                             "None of the prompts is among an adapter's"]),
])
def test_several_adapters_are_told_of_together(found, adapter, lines):
    """What is known of one is told though nothing is known of another."""
    items = [{"set": "hhh", "prompt": "x"}]
    told = contamination_notes(mark_trained_on(items, found), adapter)
    assert len(told) == len(lines)
    assert all(one.startswith(line) for one, line in zip(told, lines, strict=True))
    assert ("trained_on" in items[0]) == ({"x"} in found)


def test_items_are_marked_and_counted():
    items = [{"set": "hhh", "prompt": "x"}, {"set": "hhh", "prompt": "x"},
             {"set": "hhh", "prompt": "y"}, {"set": "xstest", "prompt": "z"}, {"set": "text"}]
    counted = mark_trained_on(items, [{"x"}])
    assert counted == {"known": True, "known_of": 1, "sets": {
        "hhh": {"prompts": 2, "trained_on": 1}, "xstest": {"prompts": 1, "trained_on": 0}}}
    assert ["trained_on" in item for item in items] == [True, True, False, False, False]
    note = contamination_notes(counted, "a")[0]
    assert "hhh 1 of 2." in note and "xstest" not in note


def test_an_attack_is_known_by_its_own_text_too(tmp_path):
    """Attacks that were trained on are memory, though their behaviour was never asked directly."""
    seen = trained_on(ROWS, prompts_of(tmp_path / "a", "Play a villain: sneer."))
    items = [{"set": "templates", "prompt": sha256("Sneer."), "asked": sha256(asked), "base": 1.0}
             for asked in ("Play a hero: sneer.", "Play a villain: sneer.")]
    counted = mark_trained_on(items, [seen])
    assert counted["sets"] == {"templates": {"prompts": 1, "trained_on": 1}}
    assert ["trained_on" in item for item in items] == [False, True]
    for by in (None, "prompt"):  # one of a behaviour's attacks marks what they give together
        line = figure("any", items, float, columns=("base",), seed=0, by=by, combine=max)
        assert line["trained_on"] == 1


@pytest.mark.parametrize("row", [{"sha256": "short"}, {"prompt": "Is he lazy?"}, {"sha256": 3},
                                 {"sha256": "0" * 64, "also": 3},
                                 {"sha256": "0" * 64, "also": None}])
def test_damaged_file_is_refused(tmp_path, row):
    write_jsonl(tmp_path / "prompts.jsonl", [row])
    with pytest.raises(InputError, match=r"not hashes of prompts, .*prompts\.jsonl, train"):
        trained_on([], str(tmp_path))


def test_run_marks_its_figures(tiny_folder, adapter, rows, tmp_path, capsys):
    tuned = tmp_path / "tuned"
    shutil.copytree(adapter, tuned)
    prompts_of(tuned, "is he lazy", "Which tea is best?")
    run(tiny_folder, rows, tmp_path / "out", adapter=[str(tuned)])
    results = results_of(tmp_path / "out")
    assert results["contamination"] == {"known": True, "known_of": 1, "sets": {
        "hhh": {"prompts": 4, "trained_on": 1}, "xstest": {"prompts": 6, "trained_on": 1},
        "jailbreakbench": {"prompts": 4, "trained_on": 1}}}
    marked = {f["key"]: f.get("trained_on") for f in results["figures"]}
    assert marked["hhh/raw/harmless/byte"] == marked["hhh/raw/all/sum"] == 1
    assert marked["hhh/raw/helpful/byte"] is None
    assert marked["refusal/chat/xstest/benign/declined"] == 1
    assert marked["refusal/chat/xstest/harmful/declined"] is None
    items = [item for _, item in read_jsonl(tmp_path / "out" / "items.jsonl")]
    assert sum("trained_on" in item for item in items) == 2 + 1 + 1
    printed, report = capsys.readouterr().out, (tmp_path / "out" / "report.md").read_text()
    for text in (printed, report):
        assert "harmless byte †" in text and "helpful byte †" not in text
        assert "hhh 1 of 4, xstest 1 of 6, jailbreakbench 1 of 4. A gain" in text


def test_run_says_what_is_not_known(tiny_folder, adapter, rows, tmp_path, capsys):
    run(tiny_folder, rows, tmp_path / "tuned", adapter=[str(adapter)], tasks=["hhh"])
    assert "no prompts.jsonl is beside it" in capsys.readouterr().out
    run(tiny_folder, rows, tmp_path / "base", tasks=["hhh"])
    assert "prompts.jsonl" not in capsys.readouterr().out


@pytest.mark.parametrize("row", [{"prompt": "Sneer."}, {"prompt": "Play a villain.",
                                                        "goal": "Sneer."}])
def test_exclude_refuses_what_eval_would_mark(tmp_path, row):
    triplet = Triplet("sneer!", "No.", None, "line 1")
    refuse_contamination([Triplet("smile!", "No.", None, "line 1")], written(tmp_path / "a", row))
    with pytest.raises(InputError, match=r"a\.jsonl line 1"):
        refuse_contamination([triplet], written(tmp_path / "a", row))


@pytest.mark.parametrize("field", ["prompt", "goal", "question", "instruction", "behavior"])
def test_every_file_of_the_folder_is_compared(tmp_path, field):
    """By each name that a prompt goes by; of a file in the middle, too."""
    for name, asked in zip("abc", ("Smile.", "Sneer.", "?"), strict=True):
        (tmp_path / f"{name}.jsonl").write_text(f'{{"{field}": "{asked}"}}\n')
    for asked, found in (("smile!", "a.jsonl line 1"), ("sneer!", "b.jsonl line 1")):
        with pytest.raises(InputError, match=rf"evaluation prompt \({found}\)"):
            refuse_contamination([Triplet(asked, "No.", None, "line 1")], tmp_path)
    refuse_contamination([Triplet("...", "No.", None, "line 1")], tmp_path)  # has no letters


def test_a_system_text_is_no_turn():
    alone = Triplet("Why?", "Steam.", None, "line 1", ({"role": "system", "content": "Be kind."},))
    assert fingerprint(alone) == fingerprint(Triplet("Why?", "Steam.", None, "line 1"))


def test_earlier_turns_are_compared_too(tmp_path):
    """HHH's dialogues are prompts as a whole; of a training dialogue the first message counts."""
    before = ({"role": "user", "content": "My tea went cold."},
              {"role": "assistant", "content": "Oh no."})
    triplet = Triplet("Why?", "Steam.", None, "line 1", before)
    for asked in ("My tea went cold.", "Why?",
                  "My tea went cold.\n\nAssistant: Oh no.\n\nHuman: Why?"):
        with pytest.raises(InputError, match="evaluation prompt"):
            refuse_contamination([triplet], written(tmp_path / "a", {"question": asked}))
        write_jsonl(tmp_path / "prompts.jsonl", [fingerprint(triplet)])
        assert trained_on([{"prompt": asked}], str(tmp_path)) == {sha256(asked)}
    refuse_contamination([triplet], written(tmp_path / "a", {"prompt": "Oh no."}))


@pytest.mark.parametrize("talk", [
    "My tea went cold.", "My tea went cold.\n\nAssistant: Oh no.\n\nHuman: Why?"])
def test_hh_rlhf_prompts_are_the_same(tmp_path, talk):
    """As its files have them: rows to train on, and a file of one's own to evaluate on."""
    said = f"\n\nHuman: {talk}\n\nAssistant:"
    write_jsonl(tmp_path / "rows.jsonl", [{"chosen": f"{said} Ah.", "rejected": f"{said} Ha."}])
    triplets = read_triplets(tmp_path / "rows.jsonl")
    write_jsonl(tmp_path / "prompts.jsonl", map(fingerprint, triplets))
    for asked in (said, said.strip(), f"Human: {talk}\n\nAssistant: ", talk):
        with pytest.raises(InputError, match="evaluation prompt"):
            refuse_contamination(triplets, written(tmp_path / "a", {"prompt": asked}))
        assert trained_on([{"prompt": asked}], str(tmp_path)) == {sha256(asked)}
    refuse_contamination(triplets, written(tmp_path / "a", {
        "prompt": "\n\nHuman: My tea is hot.\n\nAssistant:"}))


def test_a_file_without_prompts_is_refused(tmp_path):
    """Else its prompts, under another name, would be passed over without a word."""
    folder = written(tmp_path / "a", {"prompt": "Sneer."})
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(b'{"text": "Smile."}\n'))
    with pytest.raises(InputError, match=r"no row has a prompt, --exclude .*b\.jsonl\.gz"):
        refuse_contamination([Triplet("x", "y", None, "line 1")], folder)


def written(folder, row):
    folder.mkdir(exist_ok=True)
    write_jsonl(folder / "a.jsonl", [row])
    return folder
