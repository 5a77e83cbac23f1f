"""`eval` with several adapters, on a tiny random model (CPU fp32): each as if it were alone.

The base is measured once; an interrupted run ends like an unbroken one, byte for byte.
"""

import io
import json
import shutil
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from conftest import write_model
from safetensors.torch import load_file, save_file
from test_evals import files_of, results_of, rows, run  # noqa: F401 (a fixture)

import ptalign
from evals import answers
from lora import add_lora, load_adapter, lora_modules, lora_parameters, remove_lora
from model import load_model
from support.adapters import CONFIG, PREFIX, WEIGHTS, read_adapter_config, write_adapter
from support.files import InputError, read_jsonl
from support.weights import weights_hash

TASKS = ["hhh", "refusal"]


@pytest.fixture(scope="module")
def second(tiny_folder, tmp_path_factory):
    """Another seed, and other linears: what is left of the first adapter would show."""
    model = load_model(tiny_folder, device="cpu", dtype="float32")
    add_lora(model, ["up_proj"], rank=3, alpha=6)
    torch.manual_seed(6)
    for parameter in lora_parameters(model).values():
        torch.nn.init.normal_(parameter, std=0.5)
    folder = tmp_path_factory.mktemp("adapters") / "b"
    folder.mkdir()
    write_adapter(folder, lora_parameters(model), base="tiny", rank=3, alpha=6,
                  targets=["up_proj"])
    return folder


@pytest.fixture
def both(adapter, second):
    return [str(adapter), str(second)]


def test_each_adapter_is_as_if_alone(tiny_folder, both, rows, tmp_path, capsys):
    run(tiny_folder, rows, tmp_path / "both", adapter=both, show_toxic=True)
    shown = capsys.readouterr().out
    together = results_of(tmp_path / "both")
    items = [item for _, item in read_jsonl(tmp_path / "both" / "items.jsonl")]
    assert together["settings"]["adapter"] == both
    for i, folder in enumerate(both):
        run(tiny_folder, rows, tmp_path / str(i), adapter=[folder])
        alone = results_of(tmp_path / str(i))
        assert together["settings"]["adapter_sha256"][i] == alone["settings"]["adapter_sha256"]
        for item, (_, own) in zip(items, read_jsonl(tmp_path / str(i) / "items.jsonl"),
                                  strict=True):
            assert (item["base"], item[f"tuned {i + 1}"]) == (own["base"], own["tuned"])
        for figure, own in zip(together["figures"], alone["figures"], strict=True):
            pair = {name: value for name, value in figure["adapters"][i].items()
                    if name != "p_holm"}  # corrected for more tests
            assert pair.items() <= own.items() and figure["base"] == own["base"]
    assert any(item["tuned 1"] != item["tuned 2"] for item in items)
    for column in ("base", "tuned 1", "tuned 2"):
        assert shown.count(f" {column} (") == 3 + 2  # the answers, of harmful prompts
    assert "tuned %: mean, range" in shown and "xstest harmful tuned 2" in shown
    report = (tmp_path / "both" / "report.md").read_text()
    assert all(folder in report.splitlines()[0] for folder in both)


def test_base_is_measured_once_and_a_killed_run_goes_on(tiny_folder, both, rows, tmp_path,
                                                        monkeypatch, killed):
    run(tiny_folder, rows, tmp_path / "whole", adapter=both, tasks=["refusal"])
    blocks = read_jsonl(tmp_path / "whole" / "answers.jsonl")
    columns = [block["column"] for _, block in blocks]
    assert columns == sorted(columns) and set(columns) == {"base", "tuned 1", "tuned 2"}
    assert len(columns) == 3 * columns.count("base")
    real, out = answers.generate, tmp_path / "killed"
    with killed(answers, "generate", len(columns) - 1):
        run(tiny_folder, rows, out, adapter=both, tasks=["refusal"])
    made = []
    monkeypatch.setattr(answers, "generate", lambda *args: made.append(1) or real(*args))
    run(tiny_folder, rows, out, adapter=both, tasks=["refusal"])
    assert files_of(out) == files_of(tmp_path / "whole") and len(made) == 1
    with pytest.raises(InputError, match="settings changed: adapter_sha256"):
        run(tiny_folder, rows, out, adapter=both[::-1], tasks=["refusal"])


def test_removing_leaves_the_base_untouched(tiny_folder, both):
    model = load_model(tiny_folder, device="cpu", dtype="float32")
    names = [name for name, _ in model.named_modules()]
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    for folder in both:
        load_adapter(model, folder)
        assert len(model.state_dict()) > len(before)
        remove_lora(model)
    assert [name for name, _ in model.named_modules()] == names
    after = model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], weight) for name, weight in before.items())


@pytest.mark.parametrize("tasks, folders, message", [
    (TASKS, (0, 1, 0), "the same adapter as"),
    (["genetic"], (0, 1), "the task genetic takes one adapter, --adapter"),
    (TASKS, (0, 2), "fits no linear of a block"),
])
def test_refused_before_anything_is_measured(tiny_folder, both, rows, tmp_path, tasks, folders,
                                             message):
    model = load_model(tiny_folder, device="cpu", dtype="float32")
    add_lora(model, ["up_proj"], rank=1, alpha=1)
    model.model.layers.append(deepcopy(model.model.layers[0]))  # a block more than the base has
    (tmp_path / "misfit").mkdir()
    write_adapter(tmp_path / "misfit", lora_parameters(model), base="t", rank=1,
                  alpha=1, targets=["up_proj"])
    chosen = [[*both, str(tmp_path / "misfit")][i] for i in folders]
    with pytest.raises(InputError, match=message):
        run(tiny_folder, rows, tmp_path / "out", adapter=chosen, tasks=tasks)
    assert not (tmp_path / "out").exists()


SPELLINGS = {
    "no prefix": lambda k: k.removeprefix(PREFIX),
    "a state dict's": lambda k: k.replace(".weight", ".default.weight"),
    "another adapter's name": lambda k: k.replace(".weight", ".sft_2.weight"),
    "Gemma 3 before 4.52": lambda k: k.replace(PREFIX, "base_model.model.language_model."),
    "Gemma 3 after": lambda k: k.replace("model.layers", "model.language_model.layers"),
    "backbone alone": lambda k: k.replace("model.layers", "layers"),
    "compiled": lambda k: k.replace(PREFIX, f"{PREFIX}_orig_mod."), "DDP": lambda k: f"module.{k}",
}


@pytest.mark.parametrize("spell", SPELLINGS.values(), ids=SPELLINGS)
def test_spellings(tiny_folder, adapter, tmp_path, spell):
    """Where only the wrappers' names differ, it is the same adapter."""
    folder = shutil.copytree(adapter, tmp_path / "a")
    tensors = load_file(folder / WEIGHTS)
    save_file({spell(key): tensor for key, tensor in tensors.items()}, folder / WEIGHTS)
    assert spell(min(tensors)) != min(tensors)
    model, other = (load_model(tiny_folder, device="cpu", dtype="float32") for _ in range(2))
    load_adapter(model, adapter)
    load_adapter(other, folder)
    mine, theirs = model.state_dict(), other.state_dict()
    assert mine.keys() == theirs.keys() and all(mine[k].equal(theirs[k]) for k in mine)


@pytest.mark.parametrize("spell, pattern", [
    ("Gemma 3 after", "model.language_model.layers.0.self_attn.q_proj"),
    ("backbone alone", "^layers.0.self_attn.q_proj"),
    ("as ours", "^model.layers.0.self_attn.q_proj")])
def test_patterns_hold_for_the_names_in_training(tiny_folder, adapter, tmp_path, spell, pattern):
    """Otherwise a linear would silently have the scale of all; and the same again as exported."""
    folder, out = shutil.copytree(adapter, tmp_path / "a"), tmp_path / "out"
    spell = SPELLINGS.get(spell, lambda key: key)
    config, tensors = json.loads((folder / CONFIG).read_text()), load_file(folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps({**config, "alpha_pattern": {pattern: 80}}))
    save_file({spell(key): tensor for key, tensor in tensors.items()}, folder / WEIGHTS)
    assert ptalign.main(["export", "--model", str(tiny_folder), "--adapter", str(folder), "--out",
                         str(out), "--to", "peft"]) == 0
    model, again = (load_model(tiny_folder, device="cpu", dtype="float32") for _ in range(2))
    load_adapter(model, folder)
    load_adapter(again, out)
    scales = {name: module.scale for name, module in lora_modules(model).items()}
    assert scales.pop("model.layers.0.self_attn.q_proj") == 80 / config["r"]
    assert set(scales.values()) == {config["lora_alpha"] / config["r"]}
    ids = torch.tensor([[5, 9, 100, 7]])
    torch.testing.assert_close(again(ids), model(ids))
    peft = pytest.importorskip("peft", reason="compares with peft, which is not installed")
    theirs = pytest.importorskip("transformers").AutoModelForCausalLM.from_pretrained(tiny_folder)
    theirs = peft.PeftModel.from_pretrained(theirs, out)
    torch.testing.assert_close(theirs(ids).logits, model(ids), rtol=1e-4, atol=1e-4)


OTHERS = {
    "a vision tower": (lambda k: k.replace("model.layers", "vision_tower.layers"), "merge it"),
    "DoRA's": (lambda k: k.replace("lora_A.weight", "lora_magnitude_vector"), "merge it"),
    "another block": (lambda k: k.replace("layers.0", "layers.5"), "check the base model"),
    "another kind": (lambda k: k.replace("q_proj", "c_attn"), "check the base model"),
}


@pytest.mark.parametrize("spell, remedy", OTHERS.values(), ids=OTHERS)
def test_other_names_by_their_cause(tiny_folder, adapter, tmp_path, spell, remedy):
    folder = shutil.copytree(adapter, tmp_path / "a")
    save_file({spell(k): t for k, t in load_file(folder / WEIGHTS).items()}, folder / WEIGHTS)
    with pytest.raises(InputError, match=remedy):
        load_adapter(load_model(tiny_folder, device="cpu"), folder)


@pytest.mark.parametrize("name, remedy", [
    ("acme/my-lora", "hf download acme/my-lora"),
    ("acme/my-lora@v2", "hf download acme/my-lora --revision v2 --local-dir"),
    ("old", "save it again, as safetensors"),
    ("run", "name run/checkpoint-20"), ("going", "run train once more"),
    ("empty", "name a folder that train or PEFT wrote")])
def test_absent_by_its_cause(tmp_path, monkeypatch, name, remedy):
    monkeypatch.chdir(tmp_path)
    for path in ("old/adapter_model.bin", "run/checkpoint-9/adapter_config.json",
                 "run/checkpoint-20/adapter_config.json", "going/train_config.json", "empty/x"):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text("{}")
    with pytest.raises(InputError, match=remedy):
        read_adapter_config(Path(name))


@pytest.mark.parametrize("recorded", ["its own", "another", "of a revision", "none"])
def test_another_base_is_warned_about_once(tiny_folder, adapter, rows, tmp_path, capsys,
                                           monkeypatch, recorded):
    """In eval and chat, by the hash, if train kept one; export's own test is test_base_differs."""
    mine, later = shutil.copytree(adapter, tmp_path / "a"), tmp_path / "later"
    write_model(later, seed=3)  # of the same shapes
    trained = {"its own": weights_hash(tiny_folder), "another": "0" * 64,
               "of a revision": weights_hash(later)}.get(recorded)
    if trained:
        (mine / "train_config.json").write_text(json.dumps(
            {"settings": {"weights_sha256": trained}}))
    times = recorded in ("another", "of a revision")
    run(tiny_folder, rows, tmp_path / "eval", adapter=[str(mine)])
    assert capsys.readouterr().err.count("these are not the base weights") == times
    monkeypatch.setattr("sys.stdin", io.StringIO("Hi\n/base\n/tuned\nHi\n"))
    line = f"chat --model {tiny_folder} --adapter {mine} --max-new-tokens 2"
    assert ptalign.main(line.split()) == 0
    assert capsys.readouterr().err.count("these are not the base weights") == times


@pytest.mark.parametrize("argv", ["--adapter a b", "--adapter a --adapter b"])
def test_command_line(argv):
    line = ["eval", "--model", "m", "--out", "o", *argv.split()]
    assert ptalign.build_parser().parse_args(line).adapter == ["a", "b"]
