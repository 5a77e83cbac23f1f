"""`eval --list`: what each task says of itself, held to its data where that is at hand."""

import json

import pytest
from test_evals import task_of

import ptalign
from evals.data import SOURCES
from evals.task import About
from evals.tasks.hhh import OwnFile
from evals.tasks.jailbreak import OURS, Jailbreak
from evals.tasks.polarity import PAIRS
from evals.tasks.refusal import DEFAULT_SETS

TASKS = ptalign.evaluation_tasks()
COUNTED = ["hhh", "hhh_ab", "truthfulqa", "refusal", "jailbreak", "genetic", "organism"]


def test_list_needs_no_model(capsys):
    with pytest.raises(SystemExit) as done:
        ptalign.main(["eval", "--list"])
    shown = capsys.readouterr().out.splitlines()
    assert done.value.code == 0
    for task, line in zip([*TASKS.values(), OwnFile], shown[1:], strict=False):
        about = task.about
        assert line.split()[0] == task.name
        assert about.measures in line and about.source in line
    assert "650 answers" in "\n".join(shown) and "hhh" in shown[1]


def test_a_list_of_nothing_is_refused(capsys):
    assert ptalign.main(["eval", "--model", "M", "--out", "O", "--sets", ","]) == 2
    assert "--sets: no name in ','" in capsys.readouterr().err


@pytest.mark.parametrize("task", [*TASKS.values(), OwnFile])
def test_every_task_describes_itself(task):
    about = task.about
    assert isinstance(about, About)
    assert all(text.strip() for text in (about.measures, about.source, about.licence))
    assert (about.items is None) == (about.texts is None) and about.items != 0


@pytest.mark.parametrize("name", SOURCES)
def test_sources_have_as_many_rows_as_told(shared_data, name):
    path = shared_data / SOURCES[name].file
    if not path.is_file():
        pytest.skip(f"no {path.name} in the shared data")
    assert len(path.read_text().splitlines()) == SOURCES[name].rows


@pytest.mark.parametrize("name", COUNTED)
def test_items_are_as_many_as_told(shared_data, name):
    task = task_of(TASKS[name], data_dir=str(shared_data), adapter=["a"])
    assert len(task.describe()) == task.about.items


@pytest.mark.parametrize("name", ["hhh", "truthfulqa"])
def test_texts_are_as_many_as_told(shared_data, name):
    """The distinct pairs of a context and a choice."""
    task = task_of(TASKS[name], data_dir=str(shared_data))
    pairs = {(row["prompt"], text) for rows in task.rows.values() for row in rows
             for text in row["choices"]}
    assert len(pairs) == task.about.texts


def test_jailbreak_counts_its_templates():
    templates = json.loads(OURS.read_text())["templates"]
    harmful = SOURCES["jailbreakbench"].rows // 2
    assert Jailbreak.about.answers == harmful * (1 + len(templates))


@pytest.mark.parametrize("name, sources", [
    ("hhh", ["hhh"]), ("hhh_ab", ["hhh"]), ("truthfulqa", ["truthfulqa_mc1", "truthfulqa_mc2"]),
    ("mmlu", ["mmlu"]), ("refusal", DEFAULT_SETS), ("jailbreak", ["jailbreakbench"]),
    ("genetic", ["jailbreakbench"])])
def test_licences_and_rows_are_those_of_the_sources(name, sources):
    about = TASKS[name].about
    assert about.licence == ", ".join(dict.fromkeys(SOURCES[source].licence for source in sources))
    if name not in ("jailbreak", "genetic"):  # these take a part of the rows
        assert about.items == sum(SOURCES[source].rows for source in sources)


def test_polarity_counts_its_pairs():
    about = TASKS["polarity"].about
    assert (about.items, about.texts) == (PAIRS, 2 * PAIRS)
