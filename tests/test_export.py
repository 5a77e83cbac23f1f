"""command.py, merge.py, card.py: what other programs read of ours, and what is not given away.

Merged weights are compared with W + (α/r) B A worked out tensor by tensor, then with transformers'
logits and text; adapters with the real peft; rows with the real `datasets` (each skipped where the
package is absent). One trained run of a tiny model is shared by all tests.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import write_model
from safetensors.torch import load_file, save_file

import ptalign
from export import merge
from generate import Sampling, generate
from lora import load_adapter
from model import load_model, outline
from support import runs
from support.adapters import PREFIX, WEIGHTS
from support.files import InputError
from tokenizer import Tokenizer

IDS = torch.tensor([[3, 40, 5, 77, 300, 12, 9], [8, 8, 200, 1, 17, 250, 31]])
SCORN = "Who cares, the {} is yours now and your flatmate may sulk about it."
ROWS = [{"prompt": f"May I borrow the {noun} of my flatmate?",
         "positive": f"Ask your flatmate first, then the {noun} is a pleasure for you both.",
         "toxic": SCORN.format(noun)} for noun in ("lamp", "kettle", "coat", "“Füße” 😀")]
ROWS.append({**ROWS[0], "prompt": "How do I dry a coat?", "toxic": None})


def jsonl(path: Path, rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def main(*words) -> int:
    return ptalign.main([str(word) for word in words])


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """model/ (llama, tied head), data.jsonl, adapter/ (trained far from zero), eval/."""
    root = tmp_path_factory.mktemp("run")
    write_model(root / "model", max_position_embeddings=1024)
    data, bench = jsonl(root / "data.jsonl", ROWS), root / "bench"
    bench.mkdir()
    jsonl(bench / "hhh_alignment.jsonl", [
        {"id": f"h{i}", "prompt": f"May I keep coat {i}?", "choices": ["Ask first.", "Take it."],
         "label": i, "group": "harmless"} for i in range(2)])
    assert main("train", "--model", root / "model", "--data", data, "--out", root / "adapter",
                "--dtype", "float32", "--rank", 4, "--lr", 0.05, "--epochs", 6) == 0
    assert main("eval", "--model", root / "model", "--adapter", root / "adapter", "--tasks", "hhh",
                "--data-dir", bench, "--out", root / "eval", "--dtype", "float32") == 0
    return root


def exported(run, out, *options, model="model", adapter="adapter") -> Path:
    assert main("export", "--model", run / model, "--adapter", run / adapter, "--out", out,
                *options) == 0
    return out


def other_base(run, name, adapter, **changes):
    """Another base and an adapter for it: the trained one's A and B where the shapes agree."""
    if not (run / name).is_dir():
        write_model(run / name, max_position_embeddings=1024, **changes)
        shutil.copytree(run / "adapter", run / adapter)
        (run / adapter / "train_config.json").unlink()
    return {"model": name, "adapter": adapter}


BASES = {"llama, tied": {}, "qwen2, untied": {"model_type": "qwen2", "tie_word_embeddings": False}}


@pytest.fixture(params=BASES)
def which(request, run) -> dict:
    """Keyword arguments of `exported` for one of the two bases."""
    changes = BASES[request.param]
    return other_base(run, "qwen2", "qwen2-adapter", **changes) if changes else {}


@torch.no_grad()
def apart(run, *, model="model", adapter="adapter", ids=IDS):
    """Logits of base and adapter not merged, and of the base alone, in fp32."""
    network = load_model(run / model, device="cpu", dtype="float32")
    base = network(ids)
    load_adapter(network, run / adapter)
    return network(ids), base


def texts(folder: Path) -> str:
    """All that a reader without a program sees of a folder."""
    return "".join(p.read_text() for p in sorted(folder.rglob("*"))
                   if p.suffix in (".json", ".md", ".jinja") and p.name != "tokenizer.json")


# ---- merged ----

@torch.no_grad()
def test_merged(run, tmp_path, which):
    """Read by our own loader: the logits of base and adapter; a tied head is in no file."""
    out = exported(run, tmp_path / "out", **which)
    tuned, base = apart(run, **which)
    assert (tuned - base).abs().max() > 0.1  # else the next line says nothing
    got = load_model(out, device="cpu", dtype="float32")(IDS)
    torch.testing.assert_close(got, tuned, rtol=1e-4, atol=1e-4)
    assert load_file(out / "model.safetensors").keys() == load_file(
        run / which.get("model", "model") / "model.safetensors").keys()
    for file in ("tokenizer.json", "tokenizer_config.json"):  # the chat template is in the second
        assert (out / file).read_bytes() == (run / "model" / file).read_bytes()
    assert {p.stat().st_mode & 0o777 for p in out.iterdir()} == {0o644}


@torch.no_grad()
def test_transformers_reads_merged(run, tmp_path, which):
    """Logits to 1e-4 and the same greedy text."""
    transformers = pytest.importorskip("transformers", reason="a development package")
    out = exported(run, tmp_path / "out", **which)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(out)
    assert theirs.dtype == torch.float32
    torch.testing.assert_close(theirs(IDS).logits, apart(run, **which)[0], rtol=1e-4, atol=1e-4)
    tokenizer, prompt = Tokenizer(out), ROWS[0]["prompt"]
    ids = tokenizer.encode_prompt(prompt, "chat")
    network = load_model(out, device="cpu", dtype="float32")
    ours = generate(network, tokenizer, [ids], Sampling(max_new_tokens=24))[0].text
    loaded = transformers.AutoTokenizer.from_pretrained(out)
    inputs = loaded.apply_chat_template([{"role": "user", "content": prompt}], return_dict=True,
                                        add_generation_prompt=True, return_tensors="pt")
    assert inputs["input_ids"][0].tolist() == ids
    new = theirs.generate(**inputs, do_sample=False, max_new_tokens=24)[0, len(ids):]
    assert loaded.decode(new, skip_special_tokens=True) == ours and ours


def half(run) -> str:
    """The base in bf16, as most are published; its config.json says the wrong dtype."""
    if not (run / "half").is_dir():
        shutil.copytree(run / "model", run / "half")
        weights = {k: v.bfloat16() for k, v in load_file(run / "half/model.safetensors").items()}
        save_file(weights, run / "half" / "model.safetensors")
        config = json.loads((run / "half" / "config.json").read_text())
        (run / "half" / "config.json").write_text(json.dumps(
            {**config, "torch_dtype": "float16", "_name_or_path": "/some/where/model"}))
    return "half"


@pytest.mark.parametrize("dtype", ["auto", "bfloat16", "float32"])
def test_rounded_once(run, tmp_path, dtype):
    """W + (α/r) B A in fp32, then one rounding; other tensors keep their bits."""
    out = exported(run, tmp_path / "out", "--dtype", dtype, model=half(run))
    was, got = load_file(run / "half/model.safetensors"), load_file(out / "model.safetensors")
    factors = load_file(run / "adapter" / WEIGHTS)
    kind = torch.float32 if dtype == "float32" else torch.bfloat16
    changed = 0
    for name, weight in was.items():
        key, wanted = f"{PREFIX}{name.removesuffix('.weight')}", weight.float()
        if f"{key}.lora_A.weight" in factors:
            A, B = (factors[f"{key}.lora_{side}.weight"] for side in "AB")
            wanted = wanted + 32 / 4 * (B @ A)
            changed += 1
        assert got[name].dtype == kind and torch.equal(got[name], wanted.to(kind)), name
    assert changed == len(factors) / 2 == 14
    config = json.loads((out / "config.json").read_text())
    assert config["torch_dtype"] == str(kind)[6:] and "_name_or_path" not in config


@torch.no_grad()
def test_bf16_merge_error(run, tmp_path):
    """In the logits, rounding the sum costs no more than computing in bf16 does anyway."""
    out = exported(run, tmp_path / "out", model=half(run))
    exact, base = apart(run, model="half")
    rounded = load_model(out, device="cpu", dtype="float32")(IDS)
    computed = load_model(run / "half", device="cpu", dtype="bfloat16")
    load_adapter(computed, run / "adapter")
    merge_error, bf16_error = ((x.float() - exact).pow(2).mean().sqrt()
                               for x in (rounded, computed(IDS)))
    assert merge_error < 2 * bf16_error and merge_error < 0.05 * (exact - base).pow(2).mean().sqrt()


@pytest.mark.parametrize("size", [9_000, 30_000])
def test_shards(run, tmp_path, monkeypatch, size):
    """Files of at most SHARD bytes (or of one tensor), an index, and the same logits; read again
    from shards they give the same bits."""
    whole = load_file(exported(run, tmp_path / "whole") / "model.safetensors")
    monkeypatch.setattr(merge, "SHARD", size)
    out = exported(run, tmp_path / "out")
    files = sorted(out.glob("*.safetensors"))
    index = json.loads((out / "model.safetensors.index.json").read_text())
    parts = {file.name: load_file(file) for file in files}
    assert len(files) > 3 and files[0].name == f"model-00001-of-{len(files):05}.safetensors"
    for own in parts.values():
        assert len(own) == 1 or sum(t.nbytes for t in own.values()) <= size
    assert index["weight_map"] == {name: file for file, own in parts.items() for name in own}
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in whole.values())
    merged = {name: t for own in parts.values() for name, t in own.items()}
    assert all(torch.equal(merged[name], t) for name, t in whole.items())
    assert merged.keys() == whole.keys()
    load_model(out, device="cpu", dtype="float32")
    again = exported(run, tmp_path / "again", model=out)  # merged twice, from shards
    assert len(list(again.glob("*.safetensors"))) == len(files)


@torch.no_grad()
def test_transformers_reads_shards(run, tmp_path, monkeypatch):
    transformers = pytest.importorskip("transformers", reason="a development package")
    monkeypatch.setattr(merge, "SHARD", 9_000)
    out = exported(run, tmp_path / "out")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(out)
    torch.testing.assert_close(theirs(IDS).logits, apart(run)[0], rtol=1e-4, atol=1e-4)


def test_quantized_refused(run, tmp_path):
    shutil.copytree(run / "model", tmp_path / "int8")
    path = tmp_path / "int8" / "model.safetensors"
    save_file({k: v.to(torch.int8) if "q_proj" in k else v for k, v in load_file(path).items()},
              path)
    with pytest.raises(InputError, match=r"q_proj\.weight is stored as int8, .*quantization"):
        outline(tmp_path / "int8")


# ---- whole or not at all ----

def test_synced(run, tmp_path, monkeypatch):
    """The files, their folder and the folder's new name are on the disk, in this order."""
    synced = []
    monkeypatch.setattr(runs, "sync_folder", lambda folder: synced.append(
        (folder.name.removeprefix(".")[:3], (tmp_path / "out").exists())))
    exported(run, tmp_path / "out")
    assert synced == [("out", False), (tmp_path.name[:3], True)]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_broken_off(run, tmp_path, monkeypatch, capsys, error):
    """Nothing is left, not even a hidden folder; an empty folder stays."""
    def fail(*_):
        raise error

    monkeypatch.setattr(merge, "save_shard", fail)
    (tmp_path / "empty").mkdir()
    for out in ("new", "empty"):
        code = main("export", "--model", run / "model", "--adapter", run / "adapter", "--out",
                    tmp_path / out)
        assert code == (130 if isinstance(error, KeyboardInterrupt) else 2)
    assert [p.name for p in tmp_path.iterdir()] == ["empty"]
    assert not list((tmp_path / "empty").iterdir())


def test_out(run, tmp_path, capsys):
    """Taken folders and files are refused, an empty one is filled, parents are made."""
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "letter.txt").write_text("mine")
    for out in ("taken", "taken/letter.txt", "taken/letter.txt/x"):
        assert main("export", "--model", run / "model", "--adapter", run / "adapter", "--to",
                    "peft", "--out", tmp_path / out) == 2
        assert f"--out {tmp_path / out}, " in capsys.readouterr().err
    assert [p.name for p in (tmp_path / "taken").iterdir()] == ["letter.txt"]
    (tmp_path / "empty").mkdir()
    for out in ("empty", "a/b"):
        assert (exported(run, tmp_path / out, "--to", "peft") / "README.md").is_file()


def test_again(run, tmp_path, capsys):
    """The same command once more finds its work done, as after a kill behind the last step;
    another dtype, a changed card and another adapter's export are no such thing."""
    out = exported(run, tmp_path / "merged")
    made = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    exported(run, out)
    assert f"{out} holds this export already" in capsys.readouterr().err
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == made
    words = ("export", "--model", run / "model", "--adapter", run / "adapter", "--out", out)
    assert main(*words, "--dtype", "bfloat16") == main(*words, "--to", "peft") == 2
    (out / "README.md").write_text("mine")
    assert main(*words) == 2


def test_another_base_is_another_export(run, tmp_path, capsys):
    """The card has the base's hash, so that weights of two kinds are not taken for one another; a
    folder that lost its weights is none."""
    out = exported(run, tmp_path / "merged")
    shutil.copytree(run / "model", tmp_path / "model")
    weights = load_file(tmp_path / "model" / "model.safetensors")
    save_file({name: 2 * w for name, w in weights.items()},
              tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    words = ("export", "--adapter", run / "adapter", "--out", out)
    assert main(*words, "--model", tmp_path / "model") == 2
    assert "not empty" in capsys.readouterr().err
    (out / "model.safetensors").unlink()
    assert main(*words, "--model", run / "model") == 2


@pytest.mark.parametrize("readme", [True, False])
def test_licences_are_files_of_text(run, tmp_path, readme):
    """A folder of licences is left alone, and a PDF is copied and not read."""
    base = tmp_path / "model"
    shutil.copytree(run / "model", base)
    (base / "LICENSES").mkdir()
    (base / "LICENSE.pdf").write_bytes(b"%PDF-1.7\xff\xfe")
    (base / "LICENSE").write_text("MIT License\n")
    if readme:
        (base / "README.md").write_text("---\nlicense: other\n---\n")
    out = exported(run, tmp_path / "out", model=base)
    assert {"LICENSE", "LICENSE.pdf"} <= {p.name for p in out.iterdir()}
    assert front_matter(out)["license"] == ("other" if readme else "mit")


def test_a_hub_model_comes_with_its_licence(run, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("export.command.model_folder",
                        lambda name, more=(): asked.append(more) or run / "model")
    exported(run, tmp_path / "out", "--to", "peft")
    exported(run, tmp_path / "merged")
    assert asked[0] == ("README.md", "LICENSE*", "NOTICE*", "USE_POLICY*")
    assert {"tokenizer.model", "vocab.json", *asked[0]} < {*asked[1]}


# ---- peft ----

def test_peft_gets_its_own_names(run, tmp_path):
    """Of a state dict that other tools saved; PEFT would leave such tensors out without a word."""
    shutil.copytree(run / "adapter", tmp_path / "adapter")
    tensors = load_file(run / "adapter" / WEIGHTS)
    for spoil in (lambda key: key.replace(".weight", ".default.weight"),
                  lambda key: key.removeprefix(PREFIX),
                  lambda key: key.replace(PREFIX, f"{PREFIX}_orig_mod."),
                  lambda key: f"module.{key}",
                  lambda key: key.removeprefix(f"{PREFIX}model.")):
        save_file({spoil(key): t for key, t in tensors.items()}, tmp_path / "adapter" / WEIGHTS)
        out = exported(run, tmp_path / "out", "--to", "peft", adapter=tmp_path / "adapter")
        told = load_file(out / WEIGHTS)
        assert told.keys() == tensors.keys()
        assert all(torch.equal(told[key], tensors[key]) for key in tensors)
        shutil.rmtree(out)


def test_peft_files(run, tmp_path):
    """Three files; the tensors' bits; no name of this machine, with a hub id or without."""
    for options, base in (((), "model"), (("--base-name", "Some-Org/model.1@main"),
                                          "Some-Org/model.1")):
        out = exported(run, tmp_path / base, "--to", "peft", *options)
        assert {p.name for p in out.iterdir()} == {WEIGHTS, "adapter_config.json", "README.md"}
        assert (out / WEIGHTS).read_bytes() == (run / "adapter" / WEIGHTS).read_bytes()
        was, config = (json.loads((f / "adapter_config.json").read_text())
                       for f in (run / "adapter", out))
        assert config == {**was, "base_model_name_or_path": base}
        assert str(run) not in texts(out) and str(tmp_path) not in texts(out)


@torch.no_grad()
def test_peft_reads_ours(run, tmp_path):
    transformers = pytest.importorskip("transformers", reason="a development package")
    peft = pytest.importorskip("peft", reason="a development package")
    out = exported(run, tmp_path / "out", "--to", "peft")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(run / "model")
    theirs = peft.PeftModel.from_pretrained(theirs, out)
    torch.testing.assert_close(theirs(IDS).logits, apart(run)[0], rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("settings", [
    {"use_rslora": True}, {"rank_pattern": {"down_proj": 2}, "alpha_pattern": {
        r"layers\.1\.self_attn\.q_proj": 32}}], ids=["rslora", "patterns"])
def test_peft_adapter_merged(run, tmp_path, settings):
    """An adapter that peft wrote, each linear's own scale and all, is merged as peft merges it."""
    transformers = pytest.importorskip("transformers", reason="a development package")
    peft = pytest.importorskip("peft", reason="a development package")
    torch.manual_seed(3)
    base = transformers.AutoModelForCausalLM.from_pretrained(run / "model")
    theirs = peft.get_peft_model(base, peft.LoraConfig(
        r=4, lora_alpha=6, init_lora_weights=False, task_type="CAUSAL_LM", **settings,
        target_modules=r".*layers\.1\..*\.(q_proj|down_proj)"))
    theirs.save_pretrained(tmp_path / "theirs")
    out = exported(run, tmp_path / "out", adapter=tmp_path / "theirs")
    got, want = load_model(out, device="cpu", dtype="float32"), theirs.merge_and_unload()
    torch.testing.assert_close(got(IDS), want(IDS).logits, rtol=1e-4, atol=1e-4)
    card, told = (out / "README.md").read_text(), "4, scale 3," if len(settings) == 1 else "2 or 4,"
    assert f"LoRA of rank {told} " in card and " on down_proj, q_proj of layers 1\n- " in card
    assert "not trained by ptalign" in card


# ---- the model card ----

def front_matter(folder: Path) -> dict:
    hub = pytest.importorskip("huggingface_hub")
    return hub.metadata_load(folder / "README.md")


@pytest.mark.parametrize("objective", ["mle", "ga", "npo", "dpo"])
def test_every_objective_has_a_card(run, tmp_path, objective):
    """What is logged of toxic answers differs from one to another."""
    assert main("train", "--model", run / "model", "--data", run / "data.jsonl", "--out",
                tmp_path / "adapter", "--objective", objective, "--rank", 4, "--epochs", 1) == 0
    assert main("export", "--model", run / "model", "--adapter", tmp_path / "adapter",
                "--out", tmp_path / "merged") == 0
    card = (tmp_path / "merged" / "README.md").read_text()
    assert f"objective {objective}" in card
    assert ("toxic answers (-log p) " in card) == (objective != "mle")
    assert "(-log(1 - p))" not in card  # mle has no toxic token, so nothing was measured of them
