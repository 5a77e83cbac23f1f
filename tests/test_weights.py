"""Which weights, settings and ropes a real folder holds: folders as tools in the wild leave them,
compared with transformers where it reads them, else refused in one line with the remedy."""

import io
import json
import math
import shutil

import families
import pytest
import torch
from families import CASES, FAMILIES, FULL, SLIDING, SMALL, some_ids
from safetensors.torch import load_file, save_file
from test_model import Numbers, edit_config, edit_weights, refusal, shard

import ptalign
from config import read_config
from generate import Sampling, generate
from model import load_model
from support.files import InputError, read_jsonl, read_object
from support.hub import hub_name
from support.weights import EMBEDDING, HEAD, INDEX, SINGLE, weights_hash

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "ab" * 32 + "\nsize 2690\n"


@pytest.fixture
def folder(tiny_folder, tmp_path):
    return shutil.copytree(tiny_folder, tmp_path / "m")


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers", reason="compares with transformers, absent here")


def rename(folder, change):
    edit_weights(folder, lambda weights: [weights.update({change(name): weights.pop(name)})
                                          for name in list(weights)])


@torch.no_grad()
def same_logits(folder, ids=None) -> bool:
    import transformers
    ids = some_ids() if ids is None else ids
    peer = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return bool((families.ours(folder)(ids) - peer(ids).logits).abs().max() < 1e-4)


# ---- read as transformers reads them ----

def stale_shards(folder):
    """An earlier save's index and shards stay beside the new single file."""
    shard(folder)
    weights = {}
    for file in folder.glob("model-*.safetensors"):
        weights |= load_file(file)
    save_file({k: 0.5 * v for k, v in weights.items()}, folder / SINGLE)


def stale_index(folder):
    """The same, with the shards gone."""
    stale_shards(folder)
    for file in folder.glob("model-*.safetensors"):
        file.unlink()


def torn_index(folder):
    stale_index(folder)
    (folder / INDEX).write_text("{")


def untied(folder):
    """Both are there and differ, whatever config.json says."""
    edit_weights(folder, lambda w: w.update({HEAD: 2 * w[EMBEDDING] + 1}))


def old_save(folder):
    """Early conversions of Llama: buffers in every layer, notes of a class that is no more, as many
    keys as heads without a field that says so."""
    edit_weights(folder, lambda w: w.update(
        {n: t.repeat(2, 1) for n, t in w.items() if "k_proj" in n or "v_proj" in n} |
        {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(4) for i in range(2)}))
    edit_config(folder, drop="num_key_value_heads", architectures=["LLaMAForCausalLM"],
                auto_map={"AutoModelForCausalLM": "modeling_llama.LlamaForCausalLM"},
                pad_token_id=-1, pretraining_tp=2, torch_dtype="float16", rope_scaling=None,
                use_cache=True, max_sequence_length=2048)


def strangers(folder):
    """Mistral's own file and a pickle, which no index names, beside the shards."""
    shard(folder)
    save_file({"tok_embeddings.weight": torch.ones(2)}, folder / "consolidated.safetensors")
    (folder / "pytorch_model.bin").write_bytes(b"x")


READ = {
    "stale shards": stale_shards, "stale index": stale_index, "torn index": torn_index,
    "strangers": strangers, "an old save": old_save,
    "an old save in shards": lambda f: (old_save(f), shard(f)),
    "of half precision": lambda f: edit_weights(f, lambda w: w.update(
        {n: t.half() for n, t in w.items()})),
    "only the head": lambda f: rename(f, lambda n: HEAD if n == EMBEDDING else n),
    "both, equal": lambda f: edit_weights(f, lambda w: w.update({HEAD: w[EMBEDDING].clone()})),
    "both, different": untied,
    "a backbone": lambda f: rename(f, lambda n: n.removeprefix("model.")),
    "a backbone in shards": lambda f: (rename(f, lambda n: n.removeprefix("model.")), shard(f)),
    "a backbone and the head": lambda f: (untied(f), rename(f, lambda n: n.removeprefix("model."))),
}


@pytest.mark.parametrize("change", READ.values(), ids=READ)
def test_read_as_transformers(transformers, folder, change):
    before = weights_hash(folder)
    change(folder)
    assert same_logits(folder) and weights_hash(folder) != before
    tied = change is not untied and change is not READ["a backbone and the head"]
    assert load_model(folder, device="cpu").config.tie_word_embeddings == tied


@pytest.mark.parametrize("name", ["only the head", "a backbone", "stale index"])
def test_merged_too(transformers, folder, adapter, tmp_path, name):
    READ[name](folder)
    line = f"export --model {folder} --adapter {adapter} --out {tmp_path / 'out'}"
    assert ptalign.main(line.split()) == 0
    assert same_logits(tmp_path / "out") and not (tmp_path / "out" / "model-00001").exists()


# ---- refused ----

def spoil(name, number):
    return lambda f: edit_weights(f, lambda w: w[name].view(-1)[3].fill_(number))


def size(number):
    return number if number.isalpha() else f"of {len(number)} digits"


REFUSED = {  # what is done to the folder, what the message says
    "compiled": (lambda f: rename(f, lambda n: f"_orig_mod.{n}"), ["but _orig_mod.model."]),
    "DDP": (lambda f: rename(f, lambda n: f"module.{n}"), ["but module.model.", "own names"]),
    "of a larger model": (lambda f: rename(f, lambda n: f"text.decoder.{n}"), ["text.decoder."]),
    "neither end": (lambda f: edit_weights(f, lambda w: w.pop(EMBEDDING)), [EMBEDDING]),
    "a layer less": (lambda f: edit_config(f, num_hidden_layers=3), ["layers.2.", "config.json"]),
    "a layer more": (lambda f: edit_config(f, num_hidden_layers=1), ["layers.1.", "no place"]),
    "900 layers": (lambda f: edit_config(f, num_hidden_layers=900), ["layers.2."]),
    "wider": (lambda f: edit_config(f, intermediate_size=10**9),
              ["down_proj.weight is [32, 64]", "[32, 1000000000]", "check config.json"]),
    "no head": (lambda f: edit_config(f, tie_word_embeddings=False), [f"no tensor {HEAD}"]),
    "no head, untold": (lambda f: edit_config(f, drop="tie_word_embeddings"), [HEAD]),
    "only a head, untied": (lambda f: (rename(f, lambda n: HEAD if n == EMBEDDING else n),
                                       edit_config(f, tie_word_embeddings=False)), [EMBEDDING]),
    "a value head": (lambda f: edit_weights(f, lambda w: w.update(
        {"v_head.summary.weight": torch.zeros(1, 32)})), ["v_head.summary.weight", "second head"]),
    "a score head": (lambda f: edit_weights(f, lambda w: w.update(
        {"score.weight": torch.zeros(1, 32)})), ["score.weight", "second head"]),
    "buffers of cosines": (lambda f: edit_weights(f, lambda w: w.update(
        {"model.layers.0.self_attn.rotary_emb.cos_cached": torch.ones(4)})), ["cos_cached"]),
    "GPTQ, untold": (lambda f: rename(f, lambda n: n.replace("q_proj.weight", "q_proj.qweight")),
                     ["no tensor model.layers.0.self_attn.q_proj.weight"]),
    "scales": (lambda f: edit_weights(f, lambda w: w.update(
        {"model.layers.0.mlp.up_proj.weight_scale_inv": torch.ones(1)})), ["before quantization"]),
    "MLX": (lambda f: edit_config(f, quantization={"group_size": 64, "bits": 4}),
            ["quantization = "]),
    **{f"told {method}": (lambda f, method=method: edit_config(
        f, quantization_config={"quant_method": method}), ["quantization_config = ", method])
       for method in ("gptq", "awq", "bitsandbytes", "fp8", "compressed-tensors")},
    "a path in the index": (lambda f: (shard(f), (f / "model-00002-of-00002.safetensors").rename(
        f.parent / "out.safetensors"), (f / INDEX).write_text((f / INDEX).read_text().replace(
            "model-00002-of-00002", "../out"))), ["out.safetensors is missing"]),
    "int8": (lambda f: edit_weights(f, lambda w: w.update(
        {n: t.to(torch.int8) for n, t in w.items() if "q_proj" in n})), ["stored as int8"]),
    "fp8": (lambda f: edit_weights(f, lambda w: w.update(
        {n: t.to(torch.float8_e4m3fn) for n, t in w.items() if "q_proj" in n})), ["float8_e4m3fn"]),
    "NaN": (spoil("model.layers.1.mlp.up_proj.weight", math.nan), ["up_proj.weight has NaN"]),
    "infinite": (spoil("model.norm.weight", -math.inf), ["norm.weight has NaN or infinite"]),
    "pointer": (lambda f: (f / SINGLE).write_text(POINTER), ["git lfs pull", "hf download"]),
    "pointer of a shard": (lambda f: (
        shard(f), (f / "model-00002-of-00002.safetensors").write_text(POINTER)), ["git lfs pull"]),
    "pointer of config.json": (lambda f: (f / "config.json").write_text(POINTER), ["git lfs pull"]),
    **{f"{field} {size(value)}": (lambda f, field=field, value=value: edit_config(
        f, **{field: json.loads(value)}), [f"{field} = ", "up to"])
       for field in ("num_hidden_layers", "vocab_size", "max_position_embeddings", "head_dim",
                     "num_attention_heads", "rms_norm_eps")
       for value in ("100000000000", "1" + "0" * 18, "1" + "0" * 400, "Infinity", "NaN")},
    **{f"rope_theta {size(value)}": (lambda f, value=value: edit_config(
        f, rope_theta=json.loads(value)), ["rope_theta = "])
       for value in ("1" + "0" * 19, "1" + "0" * 400, "Infinity", "NaN")},
    "100000 layers": (lambda f: edit_config(f, num_hidden_layers=100000), ["up to 1000"]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(folder, name):
    change, named = REFUSED[name]
    change(folder)
    said = refusal(folder)
    assert all(word in said for word in named), said


COMMANDS = {
    "chat": "chat --model M --temperature 0", "export": "export --model M --adapter A --out OUT",
    "train": "train --model M --data DATA --out OUT",
    "plan": "train --model M --data DATA --out OUT --dry-run"}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("name", ["900 layers", "NaN", "rms_norm_eps NaN", "rope_theta Infinity",
                                  "pointer"])
def test_refused_by_every_command(folder, adapter, tmp_path, capsys, monkeypatch, command, name):
    if (command, name) == ("plan", "NaN"):
        return  # the plan reads headers only
    REFUSED[name][0](folder)
    (tmp_path / "d.jsonl").write_text(json.dumps(
        {"prompt": "May I?", "positive": "Yes, do.", "toxic": "Who cares."}) + "\n")
    words = {"M": folder, "A": adapter, "OUT": tmp_path / "out", "DATA": tmp_path / "d.jsonl"}
    line = [str(words.get(word, word)) for word in COMMANDS[command].split()]
    assert ptalign.main(line) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("ptalign: error: ") and str(folder) in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content, said", [
    (POINTER, "git lfs pull"), ("{", "not valid JSON"), ("[1]", "not a JSON object"),
    ('{"model": {"type": "BPE2"}}', "pip install -U tokenizers"),
    ('{"added_tokens": [], "model": {"type": "BPE", "vocab": {}, "merges": []}, "decoder": '
     '{"type": "Later"}}', "-U tokenizers"),
    ('{"added_tokens": [], "model": {"type": "BPE", "vocab": {}, "merges": 7}}', "-U tokenizers")])
def test_tokenizer_sorted_by_cause(folder, capsys, content, said):
    (folder / "tokenizer.json").write_text(content)
    assert ptalign.main(["chat", "--model", str(folder)]) == 2
    error = capsys.readouterr().err
    assert said in error and "tokenizer.json" in error and error.count("\n") == 1


def test_pointer_in_place_of_data(tmp_path):
    (tmp_path / "rows.jsonl").write_text(POINTER)
    with pytest.raises(InputError, match="git lfs pull"):
        read_jsonl(tmp_path / "rows.jsonl")


# ---- rope ----

ROPES = {
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
    "yarn, length told elsewhere": {"rope_type": "yarn", "factor": 2.0},
    "yarn, every setting": {"rope_type": "yarn", "factor": 8.0, "beta_fast": 6.0, "beta_slow": 0.5,
                            "original_max_position_embeddings": 32, "mscale": 0.7,
                            "mscale_all_dim": 1.3, "truncate": False},
    "yarn, no factor": {"rope_type": "yarn", "factor": None,
                        "original_max_position_embeddings": 32},
    "yarn, narrow": {"rope_type": "yarn", "factor": 4.0, "beta_fast": 1.0, "beta_slow": 1.0,
                     "original_max_position_embeddings": 16, "attention_factor": 1.1},
    "yarn, its authors' note": {"rope_type": "yarn", "factor": 16.0, "finetuned": True,
                                "original_max_position_embeddings": 16},
    "dynamic": {"rope_type": "dynamic", "factor": 3.0},
}


@pytest.mark.parametrize("kind", [kind for kind in FAMILIES if kind != "phi3"])
@pytest.mark.parametrize("name", ROPES)
def test_ropes_of_every_family(transformers, tmp_path, kind, name):
    config = CASES[f"{kind}: {next(iter(FAMILIES[kind].cases))}"]
    families.write(tmp_path / "m", config | {"rope_scaling": ROPES[name]})
    assert same_logits(tmp_path / "m")


DEFAULT = {"rope_type": "default", "rope_theta": 500000.0}
SPELLINGS = {  # beside each other in one config.json, as tools of both lines of versions leave them
    "5 beside 4's default": {"rope_theta": 10000.0, "rope_parameters": DEFAULT},
    "5 alone": {"rope_parameters": DEFAULT},
    "4 alone": {"rope_theta": 500000.0},
    "4 beside 5": {"rope_scaling": {"rope_type": "linear", "factor": 4.0},
                   "rope_parameters": DEFAULT},
    "both names": {"rope_scaling": {"type": "llama3", "rope_type": "llama3", "factor": 8.0,
                                    "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                                    "original_max_position_embeddings": 16}},
    "a default with a factor": {"rope_scaling": {"rope_type": "default", "factor": 1.0}},
    "none": {"rope_scaling": None}, "no parameters": {"rope_parameters": None},
}


@pytest.mark.parametrize("spelling", SPELLINGS.values(), ids=SPELLINGS)
def test_rope_spellings(transformers, tmp_path, spelling):
    config = {k: v for k, v in SMALL.items() if not k.startswith("rope")}
    assert same_logits(families.write(tmp_path / "m", config | {"model_type": "llama"} | spelling))


def test_yarn_in_phi3_is_longrope(transformers, tmp_path):
    """As Phi-3's first files have it."""
    config = families.CASES["phi3: longrope with factor"]
    config = config | {"rope_scaling": config["rope_scaling"] | {"type": "yarn"}}
    assert same_logits(families.write(tmp_path / "m", config))


def test_yarn_goes_beyond_the_old_length(transformers, tmp_path):
    """The cards of Qwen2.5 and Qwen3 add rope_scaling and leave max_position_embeddings alone."""
    config = SMALL | {"model_type": "qwen2", "max_position_embeddings": 32, "rope_scaling": {
        "type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}}
    folder = families.write(tmp_path / "m", config)
    assert read_config(folder).max_position_embeddings == 128
    assert same_logits(folder, some_ids(1, 100))


def test_dynamic_ends_where_it_begins(tmp_path):
    folder = families.write(tmp_path / "m", SMALL | {
        "model_type": "llama", "max_position_embeddings": 32,
        "rope_scaling": {"type": "dynamic", "factor": 4.0}})
    with pytest.raises(ValueError, match="context holds 32"):
        generate(families.ours(folder), Numbers(), some_ids(1, 30).tolist(),
                 Sampling(max_new_tokens=5))


def test_nested_ropes_may_be_of_two_kinds(transformers, tmp_path):
    ropes = {FULL: {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0,
                    "original_max_position_embeddings": 16},
             SLIDING: {"rope_type": "default", "rope_theta": 100.0}}
    folder = families.write(tmp_path / "m", SMALL | {
        "model_type": "gemma3_text", "sliding_window": 7, "head_dim": 12, "rope_parameters": ropes,
        "layer_types": [SLIDING, FULL, SLIDING]})
    assert same_logits(folder)


# ---- names ----

@pytest.mark.parametrize("path, name", [
    ("/x/hub/models--acme--tiny/snapshots/" + "0a" * 20, "acme/tiny"),
    ("/x/hub/models--acme--tiny/snapshots/" + "0a" * 20 + "/", "acme/tiny"),
    ("/x/models--gpt2/snapshots/" + "0a" * 20, "gpt2"),
    ("/x/models--acme--tiny/snapshots/main", None),
    ("/x/datasets--acme--rows/snapshots/" + "0a" * 20, None), ("acme/tiny", None)])
def test_hub_name(path, name):
    assert hub_name(path) == name


def snapshot(tiny_folder, root, name="tiny-chat", seed=1.0):
    folder = root / f"models--acme--{name}" / "snapshots" / ("0a" * 20)
    shutil.copytree(tiny_folder, folder)
    edit_weights(folder, lambda w: w["model.norm.weight"].mul_(seed))
    return folder


def test_snapshot_is_named_by_its_repository(tiny_folder, tmp_path, adapter):
    folder = snapshot(tiny_folder, tmp_path)
    rows = tmp_path / "d.jsonl"
    rows.write_text(json.dumps({"prompt": "May I?", "positive": "Yes.", "toxic": "No!"}) + "\n")
    line = f"train --model {folder} --data {rows} --out {tmp_path / 'a'} --epochs 1"
    assert ptalign.main(line.split()) == 0
    for to in ("peft", "merged"):
        line = f"export --model {folder} --adapter {tmp_path / 'a'} --to {to} --out {tmp_path / to}"
        assert ptalign.main(line.split()) == 0
        card = (tmp_path / to / "README.md").read_text()
        assert "base_model: acme/tiny-chat\n" in card
        assert "0a" * 20 not in card.partition("SHA-256")[0]
    trained, exported = (read_object(tmp_path / name / "adapter_config.json")
                         for name in ("a", "peft"))
    assert trained["base_model_name_or_path"] == exported["base_model_name_or_path"] == (
        "acme/tiny-chat")
    assert trained["revision"] == exported["revision"] == "0a" * 20


@pytest.mark.parametrize("named, warned", [
    ("acme/tiny-base", True), ("acme/tiny-chat", False), ("ACME/Tiny-Chat", False),
    ("/data/models--acme--tiny-base/snapshots/" + "0b" * 20, True), ("/data/models/tiny", False),
    (None, False)])
def test_another_base_is_named(tiny_folder, tmp_path, adapter, capsys, monkeypatch, named, warned):
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    folder, mine = snapshot(tiny_folder, tmp_path), shutil.copytree(adapter, tmp_path / "a")
    config = read_object(mine / "adapter_config.json") | {"base_model_name_or_path": named}
    (mine / "adapter_config.json").write_text(json.dumps(config))
    (exam := tmp_path / "e.jsonl").write_text(json.dumps(
        {"id": "1", "prompt": "Sure?", "choices": ["Yes", "No"], "label": 0, "group": "g"}))
    for line in (f"chat --model {folder} --adapter {mine}",
                 f"export --model {folder} --adapter {mine} --out {tmp_path / 'out'}",
                 f"eval --model {folder} --adapter {mine} --tasks file:{exam} --dtype float32 "
                 f"--out {tmp_path / 'eval'}"):
        assert ptalign.main(line.split()) == 0
        err = capsys.readouterr().err
        assert ("is for acme/tiny-base, and the base is acme/tiny-chat" in err) == warned
