"""Nine families against transformers: logits, greedy text, cache, LoRA gradients; and refusals.

The models are small and random (families.py). In fp32 on the CPU a logit differs by 1e-4 at most,
in bf16 the error is that of transformers' own bf16. Where it is absent the goldens remain.
"""

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import families
import pytest
import torch
import torch.nn.functional as F
from conftest import write_model
from families import CASES, FAMILIES, FULL, GOLDENS, LONG, SLIDING, SMALL, V, ours, some_ids, theirs
from test_model import Numbers, refusal
from test_train import WHOLE, examples_of, metrics, trainer

from config import FACTS, Rope, read_config
from generate import Cache, Sampling, generate
from lora import add_lora, block_linears, lora_parameters
from losses import POSITIVE
from model import Transformer
from support.adapters import write_adapter
from support.config_fields import DEFAULTS, NEUTRAL
from triplets import pad

README = Path(__file__).resolve().parents[1] / "README.md"
LAST = {kind: [name for name in CASES if name.startswith(f"{kind}:")][-1] for kind in FAMILIES}


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers", reason="compares with transformers, absent here")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("families")
    return {name: families.write(place / str(i), config)
            for i, (name, config) in enumerate(CASES.items())}


# ---- against transformers ----

@pytest.mark.parametrize("name", CASES)
def test_logits(transformers, folders, name):
    fine, ratio, apart = families.differences(folders[name])
    assert fine <= families.FINE and ratio <= families.RATIO
    # We round where transformers rounds; in other places it makes 1.2. Without caps we use SDPA.
    assert apart < 0.5 or name == "gemma2: no caps, untied"


@pytest.mark.parametrize("name", CASES)
def test_greedy(transformers, folders, name):
    """Three prompts of one length (no padding) that share more than a window."""
    prompts = some_ids(3, 15)
    prompts[:, :10] = prompts[0, :10]
    out = theirs(folders[name]).generate(
        prompts, attention_mask=torch.ones_like(prompts), do_sample=False, max_new_tokens=12,
        min_new_tokens=12, pad_token_id=0)
    got = generate(ours(folders[name]), Numbers(), prompts.tolist(), Sampling(max_new_tokens=12))
    assert [c.text for c in got] == [Numbers().decode(row.tolist()) for row in out[:, 15:]]


@pytest.mark.parametrize("kind", FAMILIES)
def test_lora_gradients(transformers, folders, tmp_path, kind):
    """Of one loss, with respect to the same adapter on every linear of the blocks."""
    peft = pytest.importorskip("peft", reason="compares with peft, which is not installed")
    model, ids = ours(folders[LAST[kind]]), some_ids()
    targets = block_linears(model)
    if kind == "phi3":
        assert targets == ["down_proj", "gate_up_proj", "o_proj", "qkv_proj"]
    add_lora(model, targets, rank=3, alpha=5.0)
    torch.manual_seed(1)
    for parameter in lora_parameters(model).values():
        torch.nn.init.normal_(parameter, std=0.1)
    write_adapter(tmp_path, lora_parameters(model), base="tiny", rank=3, alpha=5.0,
                  targets=targets)
    base = theirs(folders[LAST[kind]])
    other = peft.PeftModel.from_pretrained(base, tmp_path, is_trainable=True)
    for logits in (model(ids), other(ids).logits):
        F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
    grads = {n.replace(".default", ""): p.grad for n, p in other.named_parameters()
             if p.requires_grad}
    assert grads.keys() == lora_parameters(model).keys()
    for name, parameter in lora_parameters(model).items():
        error = (parameter.grad - grads[name]).norm() / grads[name].norm()
        assert grads[name].norm() > 1e-6 and error <= 1e-4, name


@pytest.mark.parametrize("kind", FAMILIES)
def test_defaults(transformers, tmp_path, kind):
    """What a config.json leaves out is what transformers' own class fills in."""
    least = {k: SMALL[k] for k in SMALL if k not in ("num_key_value_heads", "vocab_size")}
    write_config(tmp_path, **least | {
        "model_type": kind, "vocab_size": V, "num_attention_heads": 32, "hidden_size": 128,
        "num_hidden_layers": 30})
    mine, peer = read_config(tmp_path), transformers.AutoConfig.from_pretrained(tmp_path)
    for field in ("num_key_value_heads", "tie_word_embeddings", "rms_norm_eps"):
        assert getattr(mine, field) == getattr(peer, field), field
    assert mine.head_dim == (getattr(peer, "head_dim", None) or 4)
    assert mine.query_pre_attn_scalar == getattr(peer, "query_pre_attn_scalar", mine.head_dim)
    for field in ("attn_logit_softcapping", "final_logit_softcapping"):
        assert getattr(mine, field) == getattr(peer, field, None), field
    assert mine.activation == getattr(peer, "hidden_activation", None) or peer.hidden_act
    window = getattr(peer, "sliding_window", None)
    kinds = getattr(peer, "layer_types", None) or [SLIDING if window else FULL] * 30
    assert mine.windows == tuple(window if k == SLIDING else None for k in kinds)
    for rope, k in zip(mine.ropes, kinds, strict=True):
        own = peer.rope_parameters.get(k, peer.rope_parameters)
        assert (rope.kind, rope.theta) == (own["rope_type"], own["rope_theta"])


@pytest.mark.parametrize("name", CASES)
def test_spelling(transformers, folders, tmp_path, name):
    """As transformers 5 writes the same config.json, it means the same to us."""
    transformers.AutoConfig.from_pretrained(folders[name]).save_pretrained(tmp_path)
    assert read_config(tmp_path) == read_config(folders[name])


# ---- without transformers ----

@pytest.mark.parametrize("kind, fields", [  # of published models, whole
    ("llama", {"is_llama_config": True, "rope_interleaved": False, "pretraining_tp": 1,
               "mlp_bias": False, "attention_dropout": 0.0}),  # SmolLM2-135M
    ("llama", {"transformers.js_config": {"dtype": "q4", "kv_cache_dtype": {"fp16": "float16"}},
               "transformers_version": "4.42.3"}),  # SmolLM2-1.7B-Instruct
    ("phi3", {"full_attn_mod": 1, "interpolate_factor": 1, "lm_head_bias": False, "mlp_bias": False,
              "embd_pdrop": 0.0, "resid_pdrop": 0.0, "auto_map": {}}),  # Phi-4-mini-instruct
    ("gemma2", {"sliding_window_size": 4096, "cache_implementation": "hybrid"}),  # Gemma 2 9B
    ("qwen2", {"use_mrope": False, "_attn_implementation": "sdpa"}),  # DeepSeek-R1-Distill-Qwen
    ("qwen2", {"dual_chunk_attention_config": {"chunk_size": 262144}}),  # Qwen2.5-7B-Instruct-1M
    # What transformers 4 wrote of each part of a model with images, alone.
    ("qwen2", {"num_beams": 1, "num_beam_groups": 1, "num_return_sequences": 1, "typical_p": 1.0,
               "length_penalty": 1.0, "min_length": 0, "diversity_penalty": 0.0, "top_k": 50})])
def test_notes_of_published_models(tmp_path, kind, fields):
    """They have fields that say nothing of the computation; copies for tests often lack them."""
    config = json.loads((GOLDENS / f"{kind}.json").read_text())["config"]
    for name, more in (("plain", {}), ("whole", fields)):
        (tmp_path / name).mkdir()
        write_config(tmp_path / name, **config | more)
    assert read_config(tmp_path / "whole") == read_config(tmp_path / "plain")


@pytest.mark.parametrize("kind", FAMILIES)
def test_golden(tmp_path, kind):
    golden = json.loads((GOLDENS / f"{kind}.json").read_text())
    folder = families.write(tmp_path, golden["config"], seed=golden["seed"])
    assert families.golden_logits(folder) == pytest.approx(golden["logits"], abs=1e-4)
    assert len(golden["logits"]) == 16 and golden["config"] == CASES[LAST[kind]]


def plain(config) -> dict:
    """Every feature off that leaves the parameters' shapes alone."""
    off, layers = (None,), config.num_hidden_layers
    return {"activation": "silu", "windows": off * layers, "qkv_bias": False, "o_bias": False,
            "ropes": (Rope(config.head_dim // 2 * 2, 1e4),) * layers, "qk_norm": None,
            "query_pre_attn_scalar": config.head_dim, "attn_logit_softcapping": None,
            "final_logit_softcapping": None, "norm_plus_one": False, "scale_embedding": False}


@torch.no_grad()
@pytest.mark.parametrize("field", plain(SimpleNamespace(num_hidden_layers=1, head_dim=2)))
def test_feature_matters(folders, field):
    """The comparisons can fail: without the feature the same weights give other logits."""
    ids, tried = some_ids(), 0
    for folder in folders.values():
        model = ours(folder)
        value = plain(model.config)[field]
        if getattr(model.config, field) != value:
            without = Transformer(replace(model.config, **{field: value}))
            without.load_state_dict(model.state_dict(), strict=False)
            assert (model(ids) - without(ids)).abs().max() > 0.01
            tried += 1
    assert tried


@torch.no_grad()
@pytest.mark.parametrize("name", CASES)
def test_cache(folders, name):
    """In pieces, windows sliding over the cache, as in one uncached pass."""
    model, ids, at, pieces = ours(folders[name]), some_ids(), 0, []
    cache = Cache(model.config, len(ids), families.T, device="cpu", dtype=torch.float32)
    for T in (1, 7, 12, 18, 1, 1):
        positions = torch.arange(at, at + T).expand(len(ids), T)
        pieces.append(model(ids[:, at:at + T], positions, cache))
        at += T
    torch.testing.assert_close(torch.cat(pieces, dim=1), model(ids), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", FAMILIES)
def test_batch(folders, kind):
    """Prompts of several lengths with a shared opening longer than the window: each as alone."""
    model, sampling = ours(folders[LAST[kind]]), Sampling(max_new_tokens=8)
    ids = some_ids(3, 25).tolist()
    prompts = [ids[0][:11] + row[:n] for row, n in zip(ids, (1, 14, 6), strict=True)]
    alone = [generate(model, Numbers(), [prompt], sampling)[0] for prompt in prompts]
    assert generate(model, Numbers(), prompts, sampling) == alone


@pytest.mark.parametrize("loss", ["eager", "chunked"])
def test_capped_training(tmp_path, loss):
    """Training, which reads the head's weight alone, has the loss of the capped logits."""
    folder = write_model(tmp_path / "m", model_type="gemma2", head_dim=12,
                         final_logit_softcapping=2.0)
    out = trainer(folder, tmp_path)("out", **WHOLE, epochs=1, loss=loss)
    model, batch = ours(folder), pad(examples_of(folder, tmp_path / "triplets.jsonl"), 0)
    scored = batch.kind == POSITIVE
    with torch.no_grad():
        logits = model(batch.ids).flatten(0, 1)[batch.places][scored]
    assert 1.9 < logits.abs().max() <= 2
    nll = float(F.cross_entropy(logits, batch.targets[scored]))
    assert metrics(out)[0]["mle"] == pytest.approx(nll, rel=1e-5)


def test_longrope_ends(folders):
    """Past the original context the short factors are wrong: the context ends, and it is said."""
    model = ours(folders[LAST["phi3"]])
    assert model.config.max_position_embeddings == 64
    with pytest.raises(ValueError, match="64 tokens"):
        model(some_ids(1, 65))
    with pytest.raises(ValueError, match="context holds 64"):
        generate(model, Numbers(), some_ids(1, 60).tolist(), Sampling(max_new_tokens=5))


def test_table():
    assert len(FAMILIES) == 9 and FAMILIES.keys() == FACTS.keys() == DEFAULTS.keys()
    assert all(len(family.cases) >= 2 for family in FAMILIES.values())
    _, start, rest = README.read_text().partition("<!-- families -->\n")
    if not start:
        pytest.skip("the README has no marker <!-- families -->")
    assert rest.partition("\n<!-- /families -->")[0] == families.table()


# ---- what is refused ----

def write_config(folder, **config):
    (folder / "config.json").write_text(json.dumps(config))


NOT_NEUTRAL = {
    "full_attn_mod": 2, "interpolate_factor": 2,
    "attention_bias": True, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0,
    "query_pre_attn_scalar": 64, "hidden_activation": "relu", "partial_rotary_factor": 0.5,
    "rope_local_base_freq": 1e4, "sliding_window": 4, "sliding_window_pattern": 2,
    "use_sliding_window": True, "use_bidirectional_attention": True, "alibi": True, "clip_qkv": 8.0,
    "mlp_bias": True, "lm_head_bias": True, "num_experts": 8, "num_local_experts": 8,
    "n_routed_experts": 8, "vision_config": {}, "text_config": {},
    "quantization_config": {"quant_method": "gptq", "bits": 4},
    # Granite's, and one that nobody has seen yet
    "embedding_multiplier": 12.0, "residual_multiplier": 0.22, "next_years_idea": "on"}
ALL = "llama"  # reads fewest fields, so it refuses most
ROPE = {"rope_theta": 1e4}
BAD = [  # model_type, what its config.json says, what the message names
    *[(kind, {}, repr(kind)) for kind in ("gpt2", "mixtral", "qwen3_moe", "gemma3", "falcon")],
    *[("mistral" if field == "attention_bias" else
       "phi3" if field == "sliding_window_pattern" else
       "olmo2" if field == "sliding_window" else ALL, {field: value}, f"{field} = ")
      for field, value in NOT_NEUTRAL.items()],
    ("gemma3_text", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping = 50.0"),
    ("gemma2", {"sliding_window_pattern": 3}, "sliding_window_pattern = 3"),
    *[(kind, {"use_bidirectional_attention": True}, "use_bidirectional_attention = True")
      for kind in ("gemma", "gemma2", "gemma3_text")],
    # Another activation, under the name that the family reads
    ("llama", {"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
    ("gemma", {"hidden_act": "relu"}, "hidden_act = 'relu'"),
    ("gemma2", {"hidden_activation": "gelu"}, "hidden_activation = 'gelu'"),
    # Layers that do not fit
    ("qwen3", {"layer_types": [FULL, FULL]}, "layer_types = "),
    ("qwen3", {"layer_types": [FULL, FULL, "linear_attention"]}, "layer_types = "),
    ("qwen3", {"layer_types": [FULL, FULL, SLIDING]}, "sliding_window = None"),
    ("mistral", {"layer_types": [SLIDING, FULL, SLIDING], "sliding_window": 4}, "layer_types = "),
    ("llama", {"layer_types": [SLIDING, FULL, FULL]}, "layer_types = "),
    ("gemma2", {"sliding_window": None}, "sliding_window = None"),
    ("phi3", {"sliding_window": "4"}, "sliding_window = '4' is not a positive whole number"),
    ("llama", {"num_key_value_heads": 3}, "num_key_value_heads = 3 does not divide 4 heads"),
    # Rotary embedding
    *[("llama", {"rope_scaling": {"rope_type": kind, "factor": 4.0}}, f"rope_type = '{kind}'")
      for kind in ("mrope", "proportional")],
    ("phi3", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_type = 'dynamic'"),
    ("llama", {"rope_parameters": ROPE | {"rope_type": "yarn", "beta_fast": math.nan}},
     "rope_parameters.beta_fast = nan"),
    ("llama", {"rope_parameters": ROPE | {"rope_type": "yarn", "truncate": "no"}}, "truncate"),
    ("llama", {"rope_parameters": ROPE | {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
    ("llama", {"rope_parameters": ROPE | {"mrope_section": [4]}}, "rope_parameters.mrope_section"),
    ("llama", {"rope_scaling": {"type": "linear", "factor": "8"}}, "rope_parameters.factor = '8'"),
    ("llama", {"rope_scaling": {"type": "linear", "factor": 0}}, "rope_parameters.factor = 0"),
    ("llama", {"rope_theta": -1.0}, "rope_parameters.rope_theta = -1.0"),
    *[("llama", {"rope_theta": value}, "rope_theta = ")
      for value in (1, math.nan, math.inf, 10**400)],
    ("llama", {"rope_scaling": {"type": "linear", "factor": 1e-300}}, "factor = 1e-300"),
    ("phi3", {"rope_scaling": LONG | {"type": "longrope"}, "hidden_size": 48,
              "original_max_position_embeddings": 1}, "division by zero"),
    ("llama", {"rope_scaling": LONG | {"original_max_position_embeddings": 0}},
     "original_max_position_embeddings = 0"),
    ("llama", {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "'low_freq_factor'"),
    ("llama", {"rope_scaling": "linear"}, "wrong type"),
    ("llama", {"rope_parameters": {FULL: ROPE}}, f"rope_parameters.{FULL}"),
    ("gemma3_text", {"rope_parameters": ROPE}, "rope_parameters = "),
    ("llama", {"head_dim": 7}, "head_dim = 7"),
    ("phi3", {"hidden_size": 60, "partial_rotary_factor": 0.6}, "partial_rotary_factor 0.6"),
    ("phi3", {"rope_scaling": {"type": "longrope"}}, "'short_factor'"),
    ("phi3", {"rope_scaling": LONG | {"type": "longrope", "short_factor": [1.0]}}, "short_factor"),
    ("phi3", {"rope_scaling": LONG | {"type": "longrope", "short_factor": [0] * 4}},
     "4 positive numbers"),
]


@pytest.mark.parametrize(("kind", "changes", "named"), BAD, ids=lambda value: str(value)[:40])
def test_refused(tmp_path, kind, changes, named):
    assert NOT_NEUTRAL.keys() > NEUTRAL.keys()
    write_config(tmp_path, **SMALL | {"model_type": kind} | changes)
    assert named in refusal(tmp_path)


def test_longrope_counts_positions_and_not_the_tokens_of_a_packed_row(folders):
    """Two sequences of 40 tokens, one behind the other, within a context of 64."""
    model = ours(folders[LAST["phi3"]])
    ids, positions = some_ids(1, 80), torch.arange(40).repeat(2)[None]
    with torch.no_grad():
        hidden = model.model(ids, positions, lambda layer, q, k, v, *_: v.repeat_interleave(
            q.shape[1] // v.shape[1], dim=1))
    assert hidden.shape[:2] == (1, 80) and hidden.isfinite().all()
