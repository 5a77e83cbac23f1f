"""What export refuses, and before what: dtypes, patterns, figures of another base, --out."""

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_export import exported, main, other_base, run  # noqa: F401 (fixture)

from export.card import CARD
from support.adapters import CONFIG, WEIGHTS


@pytest.fixture
def adapter(run, tmp_path):
    return shutil.copytree(run / "adapter", tmp_path / "adapter")


def refused(capsys, run, adapter, out, *options, model="model") -> str:
    code = main("export", "--model", run / model, "--adapter", adapter, "--out", out, *options)
    told = capsys.readouterr().err.strip().splitlines()
    assert code == 2 and not (out.is_dir() and any(out.iterdir()))
    return told[-1]


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn, torch.uint16, torch.complex64])
def test_tensors_that_are_no_floats(run, adapter, tmp_path, capsys, dtype):
    tensors = {key: tensor.to(dtype) for key, tensor in load_file(adapter / WEIGHTS).items()}
    save_file(tensors, adapter / WEIGHTS)
    told = refused(capsys, run, adapter, tmp_path / "out")
    assert f"is stored as {str(dtype).removeprefix('torch.')}" in told


@pytest.mark.parametrize("pattern", ["(?i)q_proj", "a{99999999999}", "(" * 3000 + ")" * 3000])
def test_patterns_that_do_not_compile(run, adapter, tmp_path, capsys, pattern):
    config = json.loads((adapter / CONFIG).read_text())
    (adapter / CONFIG).write_text(json.dumps({**config, "alpha_pattern": {pattern: 8}}))
    assert "malformed pattern" in refused(capsys, run, adapter, tmp_path / "out")


def test_figures_of_another_base(run, tmp_path, capsys):
    other_base(run, "untied", "untied-adapter", tie_word_embeddings=False)
    told = refused(capsys, run, run / "adapter", tmp_path / "out", "--eval", run / "eval",
                   model="untied")
    assert "of another base model" in told


def test_before_the_download(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("export.command.model_folder", None)  # is never called
    assert "results.json" in refused(capsys, run, run / "adapter", tmp_path / "out",
                                     "--eval", tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    assert main("export", "--model", run / "model", "--adapter", run / "adapter",
                "--out", tmp_path / "full") == 2
    assert "not empty" in capsys.readouterr().err


def test_a_link_leads_to_the_place(run, tmp_path):
    (tmp_path / "disk").mkdir()
    for name, place in (("empty", tmp_path / "disk"), ("dangling", tmp_path / "new")):
        (tmp_path / name).symlink_to(place)
        exported(run, tmp_path / name, "--to", "peft")
        assert (tmp_path / name).is_symlink() and (place / WEIGHTS).is_file()


def test_the_card_of_what_others_trained(run, adapter, tmp_path):
    assert "of [PT-ALIGN]" in (exported(run, tmp_path / "ours") / CARD).read_text()
    (adapter / "train_config.json").unlink()
    card = (exported(run, tmp_path / "theirs", adapter=adapter) / CARD).read_text()
    assert "PT-ALIGN" not in card and "pt-align" not in card and "For study." in card


def test_the_card_leaves_out_what_was_not_copied(run, adapter, tmp_path):
    """An adapter may come from another machine with train's settings and without its logs."""
    for log in ("prompts.jsonl", "metrics.jsonl"):
        (adapter / log).unlink()
    card = (exported(run, tmp_path / "out", adapter=adapter) / CARD).read_text()
    assert "objective pt" in card and " rows" not in card and "epoch has" not in card


def test_rights_follow_the_umask(run, tmp_path):
    mask = os.umask(0o077)
    try:
        out = exported(run, tmp_path / "out")
    finally:
        os.umask(mask)
    assert out.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in out.iterdir()} == {0o600}


def test_an_adapter_in_half_the_bytes(run, tmp_path):
    out = exported(run, tmp_path / "out", "--to", "peft", "--dtype", "bfloat16")
    was, got = load_file(run / "adapter" / WEIGHTS), load_file(out / WEIGHTS)
    assert got.keys() == was.keys()
    assert all(torch.equal(got[key], was[key].bfloat16()) for key in was)
    assert "rounded to bfloat16" in (out / CARD).read_text()


@pytest.mark.parametrize("name, kept", [("org/base", "abc"), ("org/other", None)])
def test_a_revision_is_that_of_its_own_base(run, adapter, tmp_path, name, kept):
    config = json.loads((adapter / CONFIG).read_text())
    (adapter / CONFIG).write_text(json.dumps(
        {**config, "base_model_name_or_path": "org/base", "revision": "abc"}))
    assert main("export", "--model", run / "model", "--adapter", adapter, "--out", tmp_path / "out",
                "--to", "peft", "--base-name", name) == 0
    assert json.loads((tmp_path / "out" / CONFIG).read_text()).get("revision") == kept


def test_merged_config_names_no_file_that_stays_behind(run, tmp_path):
    """Phi-3's names its own code, which trust_remote_code=True would look for in the folder."""
    base = shutil.copytree(run / "model", tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(
        {**config, "auto_map": {"AutoConfig": "configuration_phi3.Phi3Config"}}))
    out = exported(run, tmp_path / "out", model=base)
    assert "auto_map" not in json.loads((out / "config.json").read_text())
    pytest.importorskip("transformers").AutoConfig.from_pretrained(out, trust_remote_code=True)


def test_named_templates_are_copied(run, tmp_path):
    base = shutil.copytree(run / "model", tmp_path / "base")
    (base / "additional_chat_templates").mkdir()
    (base / "additional_chat_templates" / "tool_use.jinja").write_text("{{ tools }}")
    out = exported(run, tmp_path / "out", model=base)
    assert (out / "additional_chat_templates" / "tool_use.jinja").read_text() == "{{ tools }}"
    tokenizer = pytest.importorskip("transformers").AutoTokenizer.from_pretrained(out)
    assert "tool_use" in tokenizer.chat_template
