"""model.py on a Llama: stored figures, loading (shards, dtype, device), what must be refused.

The figures, taken from transformers 5.23 in fp32 on the CPU, keep a check where it is absent; the
families are compared with it in test_families.py, the real model here.
"""

import json
import shutil

import families
import pytest
import torch
from conftest import write_model
from safetensors.torch import load_file, save_file

from generate import Sampling, generate
from model import load_model, read_config
from support.files import InputError
from support.weights import INDEX

SINGLE = "model.safetensors"

torch.set_num_threads(1)  # waiting for a busy second core costs more than it gives, up to 10x
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 16, "rope_type": "llama3"}  # 16: scaled within 40


class Numbers:
    """Stands in for a tokenizer: the text is the tokens' numbers, and nothing ends it."""

    eos_ids, pad_id = frozenset(), 0

    def decode(self, ids):
        return " ".join(map(str, ids))


def edit_config(folder, *, drop=None, **changes):
    raw = json.loads((folder / "config.json").read_text()) | changes
    raw.pop(drop, None)
    (folder / "config.json").write_text(json.dumps(raw))


def edit_weights(folder, change):
    weights = load_file(folder / SINGLE)
    change(weights)
    save_file(weights, folder / SINGLE)


def shard(folder):
    """The weights of a folder split into two files and an index."""
    weights = load_file(folder / SINGLE)
    (folder / SINGLE).unlink()
    names, where = sorted(weights), {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"model-{number:05}-of-00002.safetensors"
        save_file({name: weights[name] for name in part}, folder / file)
        where |= dict.fromkeys(part, file)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": where}))


def some_ids(config, shape=(2, 40)):
    return torch.randint(config.vocab_size, shape, generator=torch.Generator().manual_seed(1))


# ---- against transformers ----

@pytest.mark.parametrize("name", ["real_folder", "gemma_folder"])
def test_real(name, request):
    pytest.importorskip("transformers", reason="compares with transformers, absent here")
    folder = request.getfixturevalue(name)
    model, other = families.ours(folder), families.theirs(folder)
    ids = some_ids(model.config)
    with torch.no_grad():
        assert (model(ids) - other(ids).logits).abs().max() < 1e-4
    out = other.generate(ids[:1, :12], attention_mask=torch.ones(1, 12), do_sample=False,
                         max_new_tokens=8, min_new_tokens=8, pad_token_id=0)
    (got,) = generate(model, Numbers(), ids[:1, :12].tolist(), Sampling(max_new_tokens=8))
    assert got.text == Numbers().decode(out[0, 12:].tolist())


# ---- against stored figures ----

GOLDEN_AT = (0, 5, 77, 160, 319)
GOLDEN = (-2.105507, 0.317015, 2.195084, 1.028189, -1.333294)


def fill(weights):
    """Weights by formula, so that no random number generator is part of the figures."""
    for rank, (name, weight) in enumerate(sorted(weights.items())):
        wave = torch.arange(weight.numel(), dtype=torch.float64).mul(0.7).add(rank).sin()
        weights[name] = (wave.view(weight.shape) * 0.3 + ("norm" in name)).float()


@pytest.mark.parametrize("load", [families.ours, families.theirs])
def test_golden(tmp_path, load):
    if load is families.theirs:
        pytest.importorskip("transformers", reason="compares with transformers, absent here")
    folder = write_model(tmp_path, rope_scaling=LLAMA3)
    edit_weights(folder, fill)
    with torch.no_grad():
        out = load(folder)(torch.arange(0, 310, 10)[None])
    logits = getattr(out, "logits", out)[0, -1, list(GOLDEN_AT)]
    assert logits.tolist() == pytest.approx(GOLDEN, abs=1e-3)


# ---- loading ----

def test_sharded(tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder, tmp_path / "sharded")
    shard(folder)
    one, two = (load_model(f, device="cpu").state_dict() for f in (tiny_folder, folder))
    assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


@pytest.mark.parametrize(("dtype", "wanted"), [
    ("auto", torch.bfloat16), ("bfloat16", torch.bfloat16), ("float32", torch.float32)])
@pytest.mark.parametrize("device", ["auto", "cpu"])
def test_dtype_device(tiny_folder, dtype, wanted, device):
    model = load_model(tiny_folder, device=device, dtype=dtype)
    place = "cuda" if device == "auto" and torch.cuda.is_available() else "cpu"
    for weight in model.parameters():
        assert weight.dtype == wanted and weight.device.type == place and not weight.requires_grad
    assert not model.training
    # One storage for both ends of a tied model, or the embedding's memory is paid twice.
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here, so it is not refused")
def test_no_cuda(tiny_folder):
    with pytest.raises(InputError, match="--device cpu"):
        load_model(tiny_folder, device="cuda")


def test_right_pads(tiny_folder):
    model = load_model(tiny_folder, device="cpu", dtype="float32")
    ids = some_ids(model.config)
    padded = torch.cat((ids[:, :25], torch.zeros_like(ids[:, 25:])), dim=1)
    assert torch.equal(model(ids)[:, :25], model(padded)[:, :25])


def test_mistral_default_window(tmp_path):
    folder = write_model(tmp_path, model_type="mistral")  # the field is absent, not null
    assert read_config(folder).windows == (4096, 4096)  # as MistralConfig of transformers has it


# ---- what is refused ----

BAD_CONFIGS = [  # changes, what the message names; the features of families are in test_families.py
    ({"model_type": "gpt2"}, "'gpt2'"),
    ({"model_type": ["llama"]}, "['llama']"),
    ({"vocab_size": "many"}, "vocab_size = 'many'"),
    ({"num_hidden_layers": 2.5}, "num_hidden_layers = 2.5"),
    ({"num_attention_heads": 0}, "num_attention_heads = 0"),
    ({"max_position_embeddings": -1}, "max_position_embeddings = -1"),
    ({"rms_norm_eps": None}, "rms_norm_eps = None"),
]


def refusal(folder):
    """The message of the refusal: one line with what, where and remedy, naming the folder."""
    with pytest.raises(InputError) as caught:
        load_model(folder, device="cpu")
    message = str(caught.value)
    assert "\n" not in message and message.count(", ") >= 2 and str(folder) in message
    return message


@pytest.mark.parametrize(("changes", "named"), BAD_CONFIGS, ids=lambda value: str(value)[:40])
def test_bad_config(tiny_folder, tmp_path, changes, named):
    folder = shutil.copytree(tiny_folder, tmp_path / "bad")
    edit_config(folder, **changes)
    assert named in refusal(folder)


@pytest.mark.parametrize("field", [
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "max_position_embeddings", "rms_norm_eps"])
def test_missing_field(tiny_folder, tmp_path, field):
    folder = shutil.copytree(tiny_folder, tmp_path / "bad")
    edit_config(folder, drop=field)
    assert f"no field '{field}'" in refusal(folder)


def lose_shard(folder):
    shard(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()


def truncate(folder):
    (folder / SINGLE).write_bytes((folder / SINGLE).read_bytes()[:9999])


NORM = "model.norm.weight"
BAD_FILES = {  # what is done to the folder, what the message names
    "missing tensor": (lambda f: edit_weights(f, lambda w: w.pop(NORM)), NORM),
    "missing tied tensor": (
        lambda f: edit_weights(f, lambda w: w.pop("model.embed_tokens.weight")), "embed_tokens"),
    "extra tensor": (
        lambda f: edit_weights(f, lambda w: w.update(surplus=torch.ones(1))), "surplus"),
    "wrong shape": (lambda f: edit_weights(f, lambda w: w.update({NORM: torch.ones(7)})), NORM),
    "truncated": (truncate, SINGLE),
    "empty": (lambda f: (f / SINGLE).write_bytes(b""), SINGLE),
    "only .bin": (lambda f: (f / SINGLE).rename(f / "pytorch_model.bin"), "pytorch_model.bin"),
    "missing shard": (lose_shard, "model-00002-of-00002.safetensors"),
    "empty index": (lambda f: ((f / SINGLE).unlink(), (f / INDEX).write_text("{}")), "weight_map"),
    "config not JSON": (lambda f: (f / "config.json").write_text("{"), "config.json line 1"),
    "config a list": (lambda f: (f / "config.json").write_text("[]"), "not a JSON object"),
    "no config": (lambda f: (f / "config.json").unlink(), "config.json"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files(tiny_folder, tmp_path, name):
    folder = shutil.copytree(tiny_folder, tmp_path / "bad")
    spoil, named = BAD_FILES[name]
    spoil(folder)
    assert named in refusal(folder)
