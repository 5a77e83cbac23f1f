"""lora.py by its properties, and with support/adapters.py against the real peft in both directions
(skipped where absent).

Our adapter loaded by peft and peft's adapter loaded by us must give equal logits in fp32; merged
and unmerged too. What would change the result and is not supported must be refused by name.
"""

import json

import pytest
import torch
from conftest import write_model
from safetensors.torch import load_file, save_file
from torch import nn

from lora import (
    LoRALinear,
    adapter_disabled,
    add_lora,
    block_linears,
    choose_targets,
    load_adapter,
    lora_modules,
    lora_parameters,
    merged,
    remove_lora,
)
from model import load_model
from support.adapters import CONFIG, PREFIX, WEIGHTS, write_adapter
from support.files import InputError, read_json, write_json

IDS = torch.tensor([[3, 40, 5, 77, 300, 12, 9], [8, 8, 200, 1, 17, 250, 31]])
LLAMA = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
TARGETS = ["down_proj", "q_proj", "v_proj"]


@pytest.fixture(scope="module")
def qwen_folder(tmp_path_factory):
    """Qwen2: its q, k and v have a bias, which wrapping and merging must keep."""
    return write_model(tmp_path_factory.mktemp("models") / "qwen2", model_type="qwen2")


@pytest.fixture(params=["llama", "qwen2"])
def folder(request, tiny_folder, qwen_folder):
    return {"llama": tiny_folder, "qwen2": qwen_folder}[request.param]


def load(folder, dtype="float32"):
    return load_model(folder, device="cpu", dtype=dtype)


def shaken(folder, targets=TARGETS, *, rank=3, alpha=5.0):
    """A model with an adapter far from zero."""
    model = load(folder)
    add_lora(model, targets, rank=rank, alpha=alpha)
    torch.manual_seed(1)
    for parameter in lora_parameters(model).values():
        nn.init.normal_(parameter, std=0.3)
    return model


def written(model, folder, *, rank=3, alpha=5.0, targets=TARGETS):
    folder.mkdir()
    write_adapter(folder, lora_parameters(model), base="tiny", rank=rank, alpha=alpha,
                  targets=targets)
    return folder


@torch.no_grad()
def logits(model):
    return model(IDS)


# ---- properties ----

@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_zero_change_at_start(folder, dtype):
    model = load(folder, dtype)
    before = logits(model)
    add_lora(model, LLAMA, rank=4, alpha=8)
    assert len(lora_modules(model)) == 2 * len(LLAMA)
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_only_the_adapter_trains(folder, dtype):
    """A step moves A and B, both in fp32, and not one bit of the base."""
    model = load(folder, dtype)
    base = {id(p): (p, p.clone()) for p in model.parameters()}
    add_lora(model, TARGETS, rank=4, alpha=8)
    ours = lora_parameters(model)
    assert {id(p) for p in model.parameters() if p.requires_grad} == set(map(id, ours.values()))
    assert {p.dtype for p in ours.values()} == {torch.float32}
    before = {name: p.detach().clone() for name, p in ours.items()}
    optimizer = torch.optim.AdamW(ours.values(), lr=1e-4, weight_decay=0.0)
    for _ in range(2):  # A has no gradient while B is zero
        model(IDS).float().logsumexp(-1).sum().backward()
        optimizer.step()
    for name, p in ours.items():
        assert not torch.equal(p, before[name]), name
    for p, was in base.values():
        assert p.grad is None and torch.equal(p, was)


def test_formula():
    """y = W x + b + (α/r) B A x, in numbers worked out by hand."""
    base = nn.Linear(2, 2)
    base.weight.data, base.bias.data = torch.eye(2), torch.tensor([10.0, 20.0])
    layer = LoRALinear(base, 1, 0.5)
    layer.lora_A.data, layer.lora_B.data = torch.tensor([[1.0, 2.0]]), torch.tensor([[4.0], [-2.0]])
    # A x = 3 + 2·5 = 13; B A x = (52, -26); half of it on top of (3 + 10, 5 + 20)
    assert layer(torch.tensor([3.0, 5.0])).tolist() == [13 + 26, 25 - 13]


def test_A_is_drawn_as_peft_draws_it(tiny_folder):
    """Uniform up to 1/√in, whatever the rank."""
    model = load(tiny_folder)
    add_lora(model, LLAMA, rank=16, alpha=8)
    for module in lora_modules(model).values():
        A = module.lora_A.detach() * module.base.in_features ** 0.5
        assert 0.95 < A.abs().max() <= 1 and abs(A.mean()) < 0.15


def test_merge(folder):
    """The summed weights in the plain linears' place give the tuned model's logits."""
    model = shaken(folder, LLAMA)
    base, tuned = logits(load(folder)), logits(model)
    assert (tuned - base).abs().max() > 0.1  # else the next lines say nothing
    weights = {name: merged(m.base.weight, m.lora_A, m.lora_B, m.scale)
               for name, m in lora_modules(model).items()}
    remove_lora(model)
    for name, weight in weights.items():
        model.get_submodule(name).weight.data = weight.detach()
    torch.testing.assert_close(logits(model), tuned, rtol=1e-5, atol=1e-5)


def test_adapter_disabled(tiny_folder):
    model = shaken(tiny_folder)
    base, tuned = logits(load(tiny_folder)), logits(model)
    with adapter_disabled(model):
        assert torch.equal(logits(model), base)
    assert torch.equal(logits(model), tuned)
    with pytest.raises(KeyboardInterrupt), adapter_disabled(model):
        raise KeyboardInterrupt
    assert torch.equal(logits(model), tuned)


def test_targets(folder):
    """All linears of a block, with an adapter on or not, and never the head."""
    model = load(folder)
    assert block_linears(model) == LLAMA
    add_lora(model, ["q_proj"], rank=2, alpha=2)
    assert block_linears(model) == LLAMA
    assert list(lora_modules(model)) == [f"model.layers.{i}.self_attn.q_proj" for i in (0, 1)]
    for name in ("lm_head", "q_prj", "layers.0.self_attn.q_proj"):
        with pytest.raises(InputError, match=f"no linear named {name}, --targets, .*down_proj"):
            add_lora(model, ["q_proj", name], rank=2, alpha=2)
    assert choose_targets(model, None) == LLAMA
    assert choose_targets(model, ["v_proj", "q_proj", "v_proj"]) == ["v_proj", "q_proj"]


def test_save_and_load(folder, tmp_path):
    """Equal bits, and nothing left to train."""
    model = shaken(folder)
    written(model, tmp_path / "a")
    again = load(folder)
    load_adapter(again, tmp_path / "a")
    assert torch.equal(logits(again), logits(model))
    assert not any(p.requires_grad for p in again.parameters())
    saved = load_file(tmp_path / "a" / WEIGHTS)
    assert saved.keys() == lora_parameters(model).keys()
    assert f"{PREFIX}model.layers.0.self_attn.q_proj.lora_A.weight" in saved


# ---- against peft ----

@pytest.fixture
def peer():
    """The peft module; the tests that ask for it are skipped where it is not installed."""
    pytest.importorskip("transformers", reason="a development package")
    return pytest.importorskip("peft", reason="a development package")


def their_base(folder):
    from transformers import AutoModelForCausalLM
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


@pytest.mark.parametrize("targets", [TARGETS, LLAMA], ids=["some", "all"])
def test_peft_reads_ours(peer, folder, tmp_path, targets):
    model = shaken(folder, targets)
    written(model, tmp_path / "a", targets=targets)
    theirs = peer.PeftModel.from_pretrained(their_base(folder), tmp_path / "a")
    with torch.no_grad():
        got = theirs(IDS).logits
    torch.testing.assert_close(got, logits(model), rtol=1e-4, atol=1e-4)
    assert (got - logits(load(folder))).abs().max() > 0.1


THEIRS = {
    "plain": {"target_modules": TARGETS},
    "rslora": {"target_modules": TARGETS, "use_rslora": True},  # scale α/√r
    "pattern": {"target_modules": r".*layers\.1\..*\.(q_proj|down_proj)"},  # one layer only
    "layers": {"target_modules": ["k_proj"], "layers_to_transform": [0]},
    "all linears": {"target_modules": "all-linear"},
    # the first pattern that matches counts, from a dot on; "proj" alone matches nothing
    "patterns": {"target_modules": TARGETS, "rank_pattern": {"down_proj": 2, "proj": 7},
                 "alpha_pattern": {r"layers\.1\.self_attn\.\w+": 32, "q_proj": 3}},
    "patterns, rslora": {"target_modules": TARGETS, "use_rslora": True,
                         "rank_pattern": {"q_proj": 1}, "alpha_pattern": {"down_proj": 5}},
}


@pytest.mark.parametrize("settings", THEIRS.values(), ids=THEIRS)
def test_we_read_peft(peer, folder, tmp_path, settings):
    torch.manual_seed(2)
    # init_lora_weights=False draws B too, so that the adapter does something.
    config = peer.LoraConfig(r=4, lora_alpha=10, init_lora_weights=False, task_type="CAUSAL_LM",
                             **settings)
    theirs = peer.get_peft_model(their_base(folder), config).eval()
    theirs.save_pretrained(tmp_path / "a")
    model = load(folder)
    base = logits(model)
    load_adapter(model, tmp_path / "a")
    with torch.no_grad():
        torch.testing.assert_close(logits(model), theirs(IDS).logits, rtol=1e-4, atol=1e-4)
    assert (logits(model) - base).abs().max() > 0.1


def test_eva_is_read(peer, tiny_folder, tmp_path):
    """It begins from the activations; the base stays as it is."""
    config = peer.LoraConfig(r=4, target_modules=TARGETS)
    model = peer.get_peft_model(their_base(tiny_folder), config)
    model.save_pretrained(tmp_path / "a")
    written = read_json(tmp_path / "a" / CONFIG)
    eva = peer.LoraConfig(r=4, init_lora_weights="eva").to_dict()
    write_json(tmp_path / "a" / CONFIG, written | {
        name: eva[name] for name in ("init_lora_weights", "eva_config")})
    assert load_adapter(load(tiny_folder), tmp_path / "a") is None and eva["eva_config"]


@pytest.mark.parametrize("settings, named", [
    ({"use_dora": True}, "use_dora"),
    ({"bias": "all"}, "bias"),
    ({"modules_to_save": ["lm_head"]}, r"modules_to_save = \[.lm_head.\].*merge it first"),
    ({"modules_to_save": ["embed_tokens", "norm"]}, "modules_to_save = .*merge it first"),
    ({"trainable_token_indices": [3]}, "trainable_token_indices"),
    ({"layer_replication": [[0, 2], [1, 2]]}, "layer_replication"),
    ({"lora_bias": True}, "lora_bias"),
    ({"init_lora_weights": "pissa"}, "init_lora_weights"),  # the base weights were changed too
    ({"target_modules": ["lm_head", "q_proj"]}, "lm_head.lora_A.weight"),
    ({"target_modules": ["embed_tokens"]}, "lora_embedding_A"),
], ids=str)
def test_peft_features_refused(peer, tiny_folder, tmp_path, settings, named):
    """Written by peft itself: what it computes and we do not is told by its name."""
    config = peer.LoraConfig(**{"r": 4, "target_modules": TARGETS, **settings})
    model = peer.get_peft_model(their_base(tiny_folder), config)
    model.save_pretrained(tmp_path / "a", save_embedding_layers=False)
    with pytest.raises(InputError, match=named):
        load_adapter(load(tiny_folder), tmp_path / "a")


# ---- refused ----

Q = f"{PREFIX}model.layers.0.self_attn.q_proj"


def edit(folder, change):
    """The adapter's tensors after change(tensors) in place."""
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


def edit_config(folder, **changes):
    config = json.loads((folder / CONFIG).read_text()) | changes
    (folder / CONFIG).write_text(json.dumps(config))


BAD = {  # what is done to a good adapter's folder, what the message says
    "no config": (lambda f: (f / CONFIG).unlink(), f"no {CONFIG}"),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), f"no {WEIGHTS}"),
    "a pickle": (lambda f: (f / WEIGHTS).rename(f / "adapter_model.bin"), f"no {WEIGHTS}"),
    "cut short": (lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:-9]), "damaged"),
    "no tensors": (lambda f: edit(f, dict.clear), "no tensors"),
    "config a list": (lambda f: (f / CONFIG).write_text("[]"), "not a JSON object"),
    "config cut": (lambda f: (f / CONFIG).write_text('{"r": '), f"not valid JSON.*{CONFIG} line 1"),
    "a setting of tomorrow": (lambda f: edit_config(f, lora_scaling_override=3.0),
                              "lora_scaling_override = 3.0"),
    "not LoRA": (lambda f: edit_config(f, peft_type="IA3"), 'peft_type = "IA3"'),
    "no rank": (lambda f: edit_config(f, r=None), "r is not"),
    "rank 0": (lambda f: edit_config(f, r=0), "r is not"),
    "rank 2.5": (lambda f: edit_config(f, r=2.5), "r is not"),
    "alpha a string": (lambda f: edit_config(f, lora_alpha="8"), "lora_alpha is not"),
    **{f"{field} {value:.5}": (lambda f, field=field, value=float(value): edit_config(
        f, **{field: value}), f"{field} is not") for field in ("r", "lora_alpha")
       for value in ("nan", "inf")},
    "alpha of 400 digits": (lambda f: edit_config(f, lora_alpha=10**400), "lora_alpha is not"),
    "rank by pattern 0": (lambda f: edit_config(f, rank_pattern={"q_proj": 0}),
                          "q_proj is not a positive"),
    "alpha by pattern NaN": (lambda f: edit_config(f, alpha_pattern={"q_proj": float("nan")}),
                             "q_proj is not a positive"),
    "no pattern": (lambda f: edit_config(f, alpha_pattern={"q_(proj": 1}), "malformed pattern"),
    "patterns a list": (lambda f: edit_config(f, rank_pattern=[1]), "malformed pattern"),
    "NaN": (lambda f: edit(f, lambda t: t[f"{Q}.lora_B.weight"][3].fill_(float("nan"))),
            "lora_B.weight has NaN"),
    "infinite": (lambda f: edit(f, lambda t: t[f"{Q}.lora_A.weight"][0].fill_(-float("inf"))),
                 "lora_A.weight has NaN or infinite"),
    "not gathered": (lambda f: edit(f, lambda t: t.update({f"{Q}.lora_A.weight": torch.ones(0)})),
                     "lora_A.weight is empty.*gathered"),
    "two adapters": (lambda f: edit(f, lambda t: t.update(
        {f"{Q}.lora_A.other.weight": t[f"{Q}.lora_A.weight"].clone()})), "second for"),
    "a pointer": (lambda f: (f / WEIGHTS).write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 9\n"), "git lfs pull"),
    "another rank": (lambda f: edit_config(f, r=2),
                     r"lora_A.weight: \[3, \d+\] where \[2, \d+\].*rank_pattern"),
    "wrong shape": (lambda f: edit(f, lambda t: t.update({f"{Q}.lora_B.weight": torch.ones(9, 3)})),
                    r"q_proj.lora_B.weight: \[9, 3\] where \[32, 3\].*check the base"),
    "no B": (lambda f: edit(f, lambda t: t.pop(f"{Q}.lora_B.weight")), "q_proj.lora_B.*nothing"),
    "no A": (lambda f: edit(f, lambda t: t.pop(f"{Q}.lora_A.weight")), "q_proj.lora_A.*nothing"),
    "another layer": (lambda f: edit(f, lambda t: t.update({Q.replace("0", "7") + ".lora_A.weight":
                                                            torch.ones(3, 32)})), "layers.7"),
    "DoRA's tensor": (lambda f: edit(f, lambda t: t.update(
        {f"{Q}.lora_magnitude_vector": torch.ones(32)})), "lora_magnitude_vector"),
}


@pytest.mark.parametrize("spoil, told", BAD.values(), ids=BAD)
def test_refused(tiny_folder, tmp_path, spoil, told):
    """In one line that names the file or folder."""
    folder = written(shaken(tiny_folder), tmp_path / "a")
    spoil(folder)
    with pytest.raises(InputError, match=told) as caught:
        load_adapter(load(tiny_folder), folder)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)
