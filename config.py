"""config.json of nine model families as one Config: what is read, what is refused by name.

`model_type` decides here which fields are read, their defaults and a few facts that no field says;
model.py asks only for the features. Checked against transformers in tests/test_families.py; both
its spellings are read: rope_theta and rope_scaling (4) and rope_parameters (5).
"""

import math
import re
from dataclasses import dataclass, replace
from pathlib import Path

from support.files import InputError, read_object

FULL, SLIDING = "full_attention", "sliding_attention"  # the names in layer_types
ACTIVATIONS = ("silu", "gelu_pytorch_tanh")


@dataclass(frozen=True)
class Rope:
    """Rotary settings. The kinds beyond "default" slow the turning, so that a longer context fits
    in: all pairs by one factor (linear), the slow ones only (llama3), each by its own (longrope).
    """

    size: int  # R: how many of a head's E numbers turn; all but in Phi-3
    theta: float
    kind: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 0
    short_factor: tuple[float, ...] = ()  # R/2 of them
    attention_factor: float = 1.0  # longrope: cosine and sine are multiplied by it


@dataclass(frozen=True)
class Config:
    """What of config.json changes the computation, mostly under its Hugging Face names."""

    vocab_size: int  # V
    hidden_size: int  # D
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int  # H
    num_key_value_heads: int  # G
    head_dim: int  # E
    max_position_embeddings: int
    rms_norm_eps: float
    tie_word_embeddings: bool
    activation: str  # one of ACTIVATIONS
    ropes: tuple[Rope, ...]  # one a layer: Gemma 3 has two kinds
    windows: tuple[int | None, ...]  # one a layer: keys further back than this are not seen
    query_pre_attn_scalar: float  # attention scores are divided by its root; E but in Gemma 2 and 3
    attn_logit_softcapping: float | None  # s: scores become s·tanh(score/s) (Gemma 2)
    final_logit_softcapping: float | None  # the same for the logits
    qkv_bias: bool  # Qwen2 always, others where attention_bias is set
    o_bias: bool
    # The rest is told by FACTS.
    fused: bool = False  # q, k and v in one linear, gate and up in another (Phi-3)
    qk_norm: str | None = None  # queries and keys are normed: each "head" or all heads in "full"
    norms: str = "before"  # a sublayer's norm stands "before" it, "after" it, or there are "both"
    norm_plus_one: bool = False  # a norm multiplies by 1 + its weight (Gemma)
    norm_upcast: bool = False  # a norm's weight multiplies in fp32, before the rounding to bf16
    rope_upcast: bool = False  # queries and keys are rotated in fp32 (OLMo 2)
    scale_embedding: bool = False  # by √D (Gemma)


# What belongs to a model_type without a field of config.json that says so.
GEMMA = {"norm_plus_one": True, "norm_upcast": True, "scale_embedding": True}
FACTS = {
    "llama": {},
    "mistral": {},
    "qwen2": {"qkv_bias": True, "o_bias": False},
    "qwen3": {"qk_norm": "head"},
    "gemma": GEMMA,
    "gemma2": GEMMA | {"norms": "both"},
    "gemma3_text": GEMMA | {"norms": "both", "qk_norm": "head"},
    "phi3": {"fused": True},
    "olmo2": {"norms": "after", "qk_norm": "full", "norm_upcast": True, "rope_upcast": True},
}

# The optional fields that a model_type has, with what holds where config.json leaves them out.
QWEN = {"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28,
        "layer_types": None, "num_key_value_heads": 32}
GEMMA_2_AND_3 = {
    "attention_bias": False, "hidden_activation": "gelu_pytorch_tanh", "tie_word_embeddings": True,
    "head_dim": 256, "num_key_value_heads": 4, "query_pre_attn_scalar": 256,
    "sliding_window": 4096, "layer_types": None}
DEFAULTS = {
    "llama": {"attention_bias": False},
    "mistral": {"sliding_window": 4096, "num_key_value_heads": 8},
    "qwen2": QWEN | {"attention_bias": None},  # whatever it says: see FACTS
    "qwen3": QWEN | {"attention_bias": False, "head_dim": 128},
    "gemma": {"attention_bias": False, "hidden_act": "gelu_pytorch_tanh", "head_dim": 256,
              "num_key_value_heads": 16, "tie_word_embeddings": True},
    "gemma2": GEMMA_2_AND_3 | {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
    "gemma3_text": GEMMA_2_AND_3 | {"final_logit_softcapping": None, "sliding_window_pattern": 6,
                                    "rope_theta": 1e6, "rope_local_base_freq": 1e4},
    "phi3": {"sliding_window": None, "partial_rotary_factor": 1.0,
             "original_max_position_embeddings": 4096},
    "olmo2": {"attention_bias": False},
}

# Fields that every model_type has besides REQUIRED and its own DEFAULTS.
COMMON = ("model_type", "hidden_act", "tie_word_embeddings", "head_dim", "num_key_value_heads",
          "layer_types", "rope_theta", "rope_scaling", "rope_parameters",
          "original_max_position_embeddings")
# Fields that say nothing of the computation, whatever their value: notes, and how to train.
NOTES = re.compile(
    r"_.*|unsloth_.*|transformers_.*|.*_token_ids?|.*_dropout|.*_pdrop|(?:torch_)?dtype|id2label|"
    r"architectures|auto_map|initializer_range|use_cache|cache_implementation|pretraining_tp|"
    r"label2id|problem_type|output_attentions|output_hidden_states|return_dict|torchscript|"
    r"max_window_layers|model_max_length|tokenizer_class|pruned_heads|temperature|top_[kp]|"
    r"do_sample|max_length")
# Any other field means a computation that the model_type does not have. It passes where it is off,
# None or False, or has one of these values.
NEUTRAL = {"hidden_activation": ("gelu_pytorch_tanh",),  # Gemma 1 goes by hidden_act
           "partial_rotary_factor": (1.0,)}
LLAMA_3_ROPE = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
ROPE_NUMBERS = ("rope_theta", "partial_rotary_factor", "attention_factor", *LLAMA_3_ROPE)
ROPE_FIELDS = {"rope_type": str, "type": str, "short_factor": list, "long_factor": list}

REQUIRED = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
            "num_attention_heads", "max_position_embeddings", "rms_norm_eps")
NUMBERS = ("rms_norm_eps", "query_pre_attn_scalar", "attn_logit_softcapping",
           "final_logit_softcapping", "partial_rotary_factor")
WHOLE_NUMBERS = (*REQUIRED[:-1], "head_dim", "num_key_value_heads", "sliding_window",
                 "sliding_window_pattern", "original_max_position_embeddings")


def read_config(folder: Path) -> Config:
    """config.json as a Config; a field that would change the result unseen is refused by name."""
    path = Path(folder) / "config.json"
    raw = read_object(path, remedy="use a Hugging Face config.json")
    kind = raw.get("model_type")
    if not isinstance(kind, str) or kind not in FACTS:
        raise InputError(f"model_type {kind!r} is not supported", path,
                         f"use one of: {' '.join(FACTS)}")
    try:
        return _build_config(_check_fields(raw))
    except KeyError as error:
        raise InputError(f"no field {error}", path, "repair the file") from None
    except ValueError as error:
        raise InputError(error, path, "use another model") from None
    except (TypeError, AttributeError) as error:
        raise InputError(f"a field of the wrong type ({error})", path, "repair the file") from None


def _check(fine: bool, field: str, value, why: str = "is not supported") -> None:
    if not fine:
        text = repr(value)
        raise ValueError(f"{field} = {text if len(text) < 60 else text[:60] + '...'} {why}")


def _check_fields(raw: dict) -> dict:
    """The fields that are read, with this model_type's defaults; numbers are positive.

    ValueError for a field that is neither read nor known to change nothing.
    """
    defaults = DEFAULTS[raw["model_type"]]
    read = {*REQUIRED, *COMMON, *defaults}
    for field, value in raw.items():
        neutral = value in (None, False, *NEUTRAL.get(field, ()))
        _check(field in read or neutral or NOTES.fullmatch(field), field, value)
    raw = defaults | {field: value for field, value in raw.items() if field in read}
    given = {field: raw[field] for field in REQUIRED}
    given |= {k: raw[k] for k in NUMBERS + WHOLE_NUMBERS if raw.get(k) is not None}
    for field, value in given.items():
        whole = field in WHOLE_NUMBERS
        fine = _positive(value) and not (whole and isinstance(value, float))
        _check(fine, field, value, f"is not a positive{' whole' if whole else ''} number")
    return raw


def _positive(value) -> bool:
    return type(value) in (int, float) and value > 0  # isinstance would take true for an int


def _build_config(raw: dict) -> Config:
    kind, heads = raw["model_type"], raw["num_attention_heads"]
    name = "hidden_activation" if "hidden_activation" in raw else "hidden_act"
    activation = raw.get(name, "silu")
    if kind == "gemma" and activation == "gelu":  # its first releases say so and mean the other
        activation = "gelu_pytorch_tanh"
    _check(activation in ACTIVATIONS, name, activation)
    kv_heads = raw.get("num_key_value_heads") or heads
    _check(heads % kv_heads == 0, "num_key_value_heads", kv_heads, f"does not divide {heads} heads")
    head_dim = raw.get("head_dim") or raw["hidden_size"] // heads
    layers = _layer_kinds(raw)
    ropes = {k: _read_rope(raw, k, head_dim) for k in sorted(set(layers))}
    bias = bool(raw.get("attention_bias"))
    long = [rope for rope in ropes.values() if rope.kind == "longrope"]
    context = min([raw["max_position_embeddings"],
                   *(rope.original_max_position_embeddings for rope in long)])
    return Config(
        **{field: raw[field] for field in REQUIRED} | {"max_position_embeddings": context},
        num_key_value_heads=kv_heads,
        head_dim=head_dim,
        tie_word_embeddings=bool(raw.get("tie_word_embeddings")),
        activation=activation,
        ropes=tuple(ropes[k] for k in layers),
        windows=tuple(raw["sliding_window"] if k == SLIDING else None for k in layers),
        query_pre_attn_scalar=raw.get("query_pre_attn_scalar") or head_dim,
        attn_logit_softcapping=raw.get("attn_logit_softcapping"),
        final_logit_softcapping=raw.get("final_logit_softcapping"),
        **{"qkv_bias": bias, "o_bias": bias} | FACTS[kind],
    )


def _layer_kinds(raw: dict) -> list[str]:
    """FULL or SLIDING for each layer: layer_types, or the model_type's own order without it."""
    layers, window, first = raw["num_hidden_layers"], raw.get("sliding_window"), 0
    if "use_sliding_window" in raw:  # Qwen: off by default, and only in the upper layers
        window = window if raw["use_sliding_window"] else None
        first = raw["max_window_layers"]
    # Gemma 2 and 3 look at everything in each second or sixth layer.
    every = 2 if raw["model_type"] == "gemma2" else raw.get("sliding_window_pattern") or layers + 1
    slides = window is not None or every <= layers  # without a window the last line refuses it
    kinds = [SLIDING if slides and i >= first and (i + 1) % every else FULL for i in range(layers)]
    given = raw.get("layer_types")
    if given is not None:
        fits = len(given) == layers and set(given) <= {FULL, SLIDING}
        _check(fits and ("layer_types" in DEFAULTS[raw["model_type"]] or given == kinds),
               "layer_types", given, "does not fit the model")
        kinds = given
    _check(window is not None or SLIDING not in kinds, "sliding_window", window,
           "with sliding layers is not supported")
    return kinds


def _read_rope(raw: dict, layer_kind: str, head_dim: int) -> Rope:
    given = {k: v for k, v in _rope_fields(raw, layer_kind).items() if v is not None}
    kind = given.get("rope_type") or given.get("type") or "default"
    kind = {"su": "longrope"}.get(kind, kind)  # Phi-3's first name for it
    _check(kind in ("default", "linear", "llama3", "longrope"), "rope_type", kind)
    for field, value in given.items():
        fine = isinstance(value, ROPE_FIELDS.get(field, ()))
        _check(fine or (field in ROPE_NUMBERS and _positive(value)), f"rope_parameters.{field}",
               value)
    share = given.get("partial_rotary_factor", 1.0)
    size = int(head_dim * share)
    _check("partial_rotary_factor" in raw or share == 1.0, "partial_rotary_factor", share)
    _check(size % 2 == 0 and 0 < size <= head_dim, "head_dim", head_dim,
           f"(times partial_rotary_factor {share}) makes no pairs to rotate")
    rope = Rope(size, float(given["rope_theta"]))
    if kind == "linear":
        return replace(rope, kind=kind, factor=given["factor"])
    if kind == "llama3":
        return replace(rope, kind=kind, **{name: given[name] for name in LLAMA_3_ROPE})
    return _longrope(rope, given, raw["max_position_embeddings"]) if kind == "longrope" else rope


def _rope_fields(raw: dict, layer_kind: str) -> dict:
    """One flat dict from either spelling; transformers 5 nests them by layer kind for Gemma 3."""
    scaling, nested = raw.get("rope_scaling") or {}, raw.get("rope_parameters") or {}
    if "rope_local_base_freq" not in raw:
        share, original = "partial_rotary_factor", "original_max_position_embeddings"
        top = {"rope_theta": raw.get("rope_theta", 10000.0), share: raw.get(share)}
        # Beside rope_scaling, as Phi-3 has it, the original length counts for more than inside.
        return top | (scaling or nested) | ({original: raw[original]} if raw.get(original) else {})
    _check(nested.keys() <= {FULL, SLIDING}, "rope_parameters", nested, "is not by layer type")
    own = nested.get(layer_kind) or {}
    if layer_kind == SLIDING:
        return {"rope_theta": raw["rope_local_base_freq"]} | own
    return {"rope_theta": raw["rope_theta"]} | own | scaling


def _longrope(rope: Rope, given: dict, longest: int) -> Rope:
    """LongRoPE (arXiv 2402.13753) within the first training's context, by the short factors.

    Beyond it every position's angle would change, those already in a cache too, and in a batch
    one long text would change the others: the context ends there (Config.max_position_embeddings).
    """
    original, short = given["original_max_position_embeddings"], given["short_factor"]
    fine = len(short) == rope.size // 2 and all(map(_positive, short))
    _check(fine, "short_factor", short, f"is not {rope.size // 2} positive numbers")
    factor, times = given.get("factor") or longest / original, given.get("attention_factor")
    if times is None:
        times = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    return replace(rope, kind="longrope", original_max_position_embeddings=original,
                   short_factor=tuple(short), attention_factor=times)
