"""`eval --list`: what each task says of itself, held to its data where that is at hand."""

import json

import pytest

import ptalign
from evals import suite
from evals.about import About
from evals.data import SOURCES
from evals.tasks.jailbreak import HARMFUL, OURS
from evals.tasks.own import OwnFile

COUNTED = ["hhh", "hhh_ab", "truthfulqa", "refusal", "jailbreak", "genetic", "organism"]


def test_list_needs_no_model(capsys):
    with pytest.raises(SystemExit) as done:
        ptalign.main(["eval", "--list"])
    shown = capsys.readouterr().out.splitlines()
    assert done.value.code == 0
    for name, line in zip([*suite.TASKS, "file:PATH"], shown[1:], strict=False):
        about = suite.module(name).ABOUT
        assert line.split()[0] == name and about.what in line and about.source in line
    assert "650 answers" in "\n".join(shown) and "hhh" in shown[1]


@pytest.mark.parametrize("task", [*map(suite.module, suite.TASKS), OwnFile])
def test_every_task_describes_itself(task):
    about = task.ABOUT
    assert isinstance(about, About)
    assert all(text.strip() for text in (about.what, about.source, about.licence, about.cost()))
    assert (about.items is None) == (about.texts is None) and about.items != 0


@pytest.mark.parametrize("name", SOURCES)
def test_sources_have_as_many_rows_as_told(shared_data, name):
    path = shared_data / SOURCES[name].file
    if not path.is_file():
        pytest.skip(f"no {path.name} in the shared data")
    assert len(path.read_text().splitlines()) == SOURCES[name].rows


@pytest.mark.parametrize("name", COUNTED)
def test_items_are_as_many_as_told(shared_data, name):
    task = suite.module(name)
    options = {"adapter": ["a"]} if name == "genetic" else {}
    where = None if name == "organism" else str(shared_data)
    rows, _ = task.load(data_dir=where, limit=None, **options)
    assert len(task.describe(rows)) == task.ABOUT.items


@pytest.mark.parametrize("name", ["hhh", "truthfulqa"])
def test_texts_are_as_many_as_told(shared_data, name):
    """The distinct pairs of a context and a choice."""
    rows, _ = suite.module(name).load(data_dir=str(shared_data), limit=None)
    pairs = {(row["prompt"], text) for own in rows.values() for row in own
             for text in row["choices"]}
    assert len(pairs) == suite.module(name).ABOUT.texts


def test_jailbreak_counts_its_templates():
    templates = json.loads(OURS.read_text())["templates"]
    assert suite.module("jailbreak").ABOUT.answers == HARMFUL * (1 + len(templates))
