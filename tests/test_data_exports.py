"""Sets that the hub keeps as parquet: how to write them as JSON lines is told, and works."""

import pytest

from evals.data import SOURCES, export_line, load_rows
from support.files import InputError
from tests.test_choice_tasks import EXAM, MC2

EXPORTED = [name for name, source in SOURCES.items() if source.export]
HUB = {  # rows in the hub's columns
    "truthfulqa/truthful_qa": [{"question": row["prompt"], "mc1_targets": {
        "choices": row["choices"], "labels": [1, 0, 0, 0][:len(row["choices"])]}, "mc2_targets": {
        "choices": row["choices"], "labels": row["labels"]}} for row in MC2],
    "cais/mmlu": [{"question": row["prompt"], "choices": row["choices"], "answer": row["label"],
                   "subject": row["group"]} for row in EXAM],
    "walledai/StrongREJECT": [{"prompt": "Skip a queue?", "category": "manners"}],
}


@pytest.mark.parametrize("name", EXPORTED)
def test_parquet_sets_tell_how_to_export(name, tmp_path):
    file = SOURCES[name].file
    with pytest.raises(InputError, match=r"parquet alone.*--data-dir: pip install datasets") as hub:
        load_rows(name)
    with pytest.raises(InputError, match=rf"no such file, .*{file}, write it: pip") as local:
        load_rows(name, data_dir=str(tmp_path))
    for error in (hub, local):
        assert "\n" not in str(error.value) and SOURCES[name].export in str(error.value)
    assert "'" not in SOURCES[name].export  # it stands between these for the shell


@pytest.mark.parametrize("name", EXPORTED)
def test_exports_write_the_schema(name, tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets", reason="the peer that reads parquet is absent")

    def load(repo, config=None, *, split, revision="main"):
        assert (repo, config, split, revision) == {
            "mmlu": ("cais/mmlu", "all", "test", "main"),
            "mmlu_dev": ("cais/mmlu", "all", "dev", "main"),
            "strongreject": ("walledai/StrongREJECT", None, "train", SOURCES[name].revision),
        }.get(name, ("truthfulqa/truthful_qa", "multiple_choice", "validation", "main"))
        return datasets.Dataset.from_list(HUB[repo])

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.chdir(tmp_path)
    exec(export_line(SOURCES[name]).split("'")[1], {})
    rows, _ = load_rows(name, data_dir=str(tmp_path))
    if name == "strongreject":
        assert [(row["prompt"], row["harmful"]) for row in rows] == [("Skip a queue?", True)]
        return
    wanted = EXAM if "mmlu" in name else MC2
    assert [row["prompt"] for row in rows] == [row["prompt"] for row in wanted]
    assert [row["choices"] for row in rows] == [row["choices"] for row in wanted]
    if name == "truthfulqa_mc2":
        assert [row["labels"] for row in rows] == [row["labels"] for row in MC2]
    if "mmlu" in name:
        assert [row["label"] for row in rows] == [row["label"] for row in EXAM]
        assert [row["group"] for row in rows] == [row["group"] for row in EXAM]


def test_shared_files_are_as_checked(shared_data):
    for name in ("truthfulqa_mc1", "truthfulqa_mc2", "mmlu_slice570", "mmlu_dev"):
        rows, origin = load_rows(name, data_dir=str(shared_data))
        assert origin["as_checked"] and len(rows) == {"mmlu_slice570": 570, "mmlu_dev": 285}.get(
            name, 817)
