"""command.py, continued: the later tests of test_export.py, on its fixtures."""

import json
import shutil
from pathlib import Path

import pytest
from conftest import write_model
from test_export import (
    ROWS,
    exported,
    front_matter,
    jsonl,
    main,
    run,  # noqa: F401  a fixture
    texts,
)

from support.adapters import WEIGHTS
from support.pairs import read_triplets


@pytest.mark.parametrize("to", ["merged", "peft"])
def test_card(run, tmp_path, to):
    """The hub's fields, and the figures of the run's own files."""
    out = exported(run, tmp_path / "out", "--to", to, "--base-name", "org/name", "--eval",
                   run / "eval")
    fields, text = front_matter(out), (out / "README.md").read_text()
    assert fields == {
        "base_model": "org/name", "pipeline_tag": "text-generation",
        "base_model_relation": {"merged": "finetune", "peft": "adapter"}[to],
        "library_name": {"merged": "transformers", "peft": "peft"}[to],
        "tags": ["lora", "pt-align"]}
    steps = [json.loads(line) for line in (run / "adapter" / "metrics.jsonl").open()]
    assert f"{len(ROWS)} rows" in text and "LoRA of rank 4, scale 8, on " in text
    assert f"{steps[0]['mle']:.3f} to {steps[-1]['mle']:.3f}" in text
    assert f"{sum(s['toxic_tokens'] for s in steps) // 6} penalised tokens" in text
    assert "penalty 0.4" in text and "\n| harmless sum | 2 |" in text
    assert all(f"## {part}" in text for part in ("Intended use", "Training", "Results", "Limits"))
    assert str(run) not in text and "sulk" not in text and "May I" not in text


@pytest.mark.parametrize("files, license", [
    ({"README.md": "---\nlicense: apache-2.0\ntags: [x]\n---\nlicense: mit\n"},
     {"license": "apache-2.0"}),
    ({"README.md": '---\nlicense: "other"\nlicense_name: own\nlicense_link: LICENSE\n---\n'},
     {"license": "other", "license_name": "own", "license_link": "LICENSE"}),
    ({"README.md": "license: mit\n"}, {}),  # no front matter
    ({"LICENSE": "  Apache License\n Version 2.0"}, {"license": "apache-2.0"}),
    ({"LICENSE.txt": "MIT License\n\nCopyright"}, {"license": "mit"}),
    ({"LICENSE": "Ask me."}, {}),
], ids=str)
def test_license(run, tmp_path, files, license):
    """The base's, if it is said; and its licence file goes along with merged weights."""
    shutil.copytree(run / "model", tmp_path / "model")
    for name, text in files.items():
        (tmp_path / "model" / name).write_text(text)
    out = exported(run, tmp_path / "out", model=tmp_path / "model")
    fields = front_matter(out)
    assert {k: v for k, v in fields.items() if k.startswith("license")} == license
    for name in set(files) - {"README.md"}:
        assert (out / name).read_text() == files[name]


def test_damaged_front_matter(run, tmp_path, capsys):
    shutil.copytree(run / "model", tmp_path / "model")
    (tmp_path / "model" / "README.md").write_text("---\nlicense: [mit\n---\n")
    assert main("export", "--model", tmp_path / "model", "--adapter", run / "adapter", "--out",
                tmp_path / "out") == 2
    line, = capsys.readouterr().err.splitlines()
    assert "not YAML" in line and "model/README.md, repair it" in line
    assert not (tmp_path / "out").exists()


def test_base_differs(run, tmp_path, capsys):
    """Told, since the shapes alone do not tell."""
    exported(run, tmp_path / "same")
    assert "warning" not in capsys.readouterr().err
    write_model(tmp_path / "other", seed=5, max_position_embeddings=1024)
    exported(run, tmp_path / "out", model=tmp_path / "other")
    assert "not the base weights" in capsys.readouterr().err


def test_evaluation_of_another(run, tmp_path, capsys):
    shutil.copytree(run / "eval", tmp_path / "eval")
    results = json.loads((tmp_path / "eval" / "results.json").read_text())
    for spoiled in ({"settings": {**results["settings"], "adapter_sha256": "0"}},
                    {"settings": {**results["settings"], "adapter_sha256": None}},
                    {"settings": None}, {"figures": [{}]}):
        (tmp_path / "eval" / "results.json").write_text(json.dumps({**results, **spoiled}))
        assert main("export", "--model", run / "model", "--adapter", run / "adapter", "--out",
                    tmp_path / "out", "--eval", tmp_path / "eval") == 2
        assert "--eval" in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize("spoiled", [
    {"settings": {}}, {"settings": []}, {"versions": ["torch"]}, {"settings": {"epochs": "3"}}],
    ids=str)
def test_damaged_record(run, tmp_path, capsys, spoiled):
    shutil.copytree(run / "adapter", tmp_path / "adapter")
    path = tmp_path / "adapter" / "train_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | spoiled))
    assert main("export", "--model", run / "model", "--adapter", tmp_path / "adapter", "--out",
                tmp_path / "out") == 2
    assert "train_config.json" in capsys.readouterr().err and not (tmp_path / "out").exists()


# ---- data ----

def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().split("\n") if line]


def data_to(run, to, out, *options) -> int:
    return main("export", "--data", run / "data.jsonl", "--to", to, "--out", out, *options)


def test_trl(run, tmp_path, capsys):
    """Conversational rows for their owner only; what has no pair is counted; they come back."""
    out = tmp_path / "deep" / "rows.jsonl"
    assert data_to(run, "trl", out) == 0
    assert "4 rows" in (err := capsys.readouterr().err) and "; 1 without" in err
    assert out.stat().st_mode & 0o777 == 0o600
    first = ROWS[0]
    assert rows_of(out)[0] == {
        "prompt": [{"role": "user", "content": first["prompt"]}],
        "chosen": [{"role": "assistant", "content": first["positive"]}],
        "rejected": [{"role": "assistant", "content": first["toxic"]}]}
    got = [(t.prompt, t.positive, t.toxic.raw()) for t in read_triplets(out)]
    assert got == [tuple(row.values()) for row in ROWS if row["toxic"]]


def test_sft(run, tmp_path):
    """Positive answers, all of them, and no toxic text."""
    out = tmp_path / "rows.jsonl"
    assert data_to(run, "sft", out) == 0
    assert rows_of(out) == [{"messages": [{"role": "user", "content": row["prompt"]},
                                          {"role": "assistant", "content": row["positive"]}]}
                            for row in ROWS]
    assert "sulk" not in out.read_text() and out.stat().st_mode & 0o777 == 0o644


def test_not_overwritten(run, tmp_path, capsys):
    out = tmp_path / "rows.jsonl"
    out.write_text("mine\n")
    assert data_to(run, "trl", out) == 2
    assert "exists" in capsys.readouterr().err and out.read_text() == "mine\n"
    assert data_to(run, "trl", out, "--fresh") == 0
    old, = tmp_path.glob("rows.jsonl.old-*")
    assert old.read_text() == "mine\n" and len(rows_of(out)) == 4


@pytest.mark.parametrize("to", ["trl", "sft"])
def test_datasets_reads(run, tmp_path, to):
    """load_dataset("json"), which TRL's trainers are fed with."""
    datasets = pytest.importorskip("datasets", reason="not among the development packages")
    assert data_to(run, to, tmp_path / "rows.jsonl") == 0
    read = datasets.load_dataset("json", data_files=str(tmp_path / "rows.jsonl"), split="train",
                                 cache_dir=str(tmp_path / "cache"))
    assert list(read) == rows_of(tmp_path / "rows.jsonl")


def test_train_reads_trl(run, tmp_path):
    """The same pairs under either name give the same adapter, to the bit."""
    rows = [row for row in ROWS if row["toxic"]]
    assert main("export", "--data", jsonl(tmp_path / "own.jsonl", rows), "--to", "trl", "--out",
                tmp_path / "trl.jsonl") == 0
    weights = []
    for name in ("own", "trl"):
        assert main("train", "--model", run / "model", "--data", tmp_path / f"{name}.jsonl",
                    "--out", tmp_path / name, "--dtype", "float32", "--epochs", 1) == 0
        weights.append((tmp_path / name / WEIGHTS).read_bytes())
    assert weights[0] == weights[1]


def test_no_toxic_and_no_path(run, tmp_path, capsys):
    """Nothing published or printed holds a toxic text or a folder of this machine."""
    for to in ("merged", "peft"):
        out = exported(run, tmp_path / to, "--to", to, "--eval", run / "eval")
        assert "sulk" not in texts(out) and str(run) not in texts(out)
    assert data_to(run, "trl", tmp_path / "rows.jsonl") == 0
    assert "sulk" not in "".join(capsys.readouterr())
