"""config.json of nine model families as one Config.

`model_type` decides twice: support/config_fields.py says which fields are read, their defaults and
what is refused; FACTS below adds what no field says. model.py asks only for the features. Both
spellings of transformers are read: rope_scaling (4) and rope_parameters (5)."""

import math
from dataclasses import dataclass, fields, replace
from pathlib import Path

from support.config_fields import DEFAULTS, check, positive, read_fields
from support.files import InputError, read_object

FULL, SLIDING = "full_attention", "sliding_attention"  # the names in layer_types
ACTIVATIONS = ("silu", "gelu_pytorch_tanh")


@dataclass(frozen=True)
class Rope:
    """Rotary settings. The kinds beyond "default" slow the turning, so that a longer context fits:
    all pairs by one factor (linear), slow ones only (llama3, yarn), each by its own (longrope)."""

    size: int  # R: how many of a head's E numbers turn; all except in Phi-3
    theta: float
    kind: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 0
    ramp: tuple[float, float] = (0.0, 1.0)  # yarn: pairs before it are kept, those past it slowed
    short_factor: tuple[float, ...] = ()  # R/2 of them
    context: int = 0  # longrope, yarn: the most tokens, whatever max_position_embeddings says
    attention_factor: float = 1.0  # longrope, yarn: cosine and sine are multiplied by it


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
    windows: tuple[int | None, ...]  # one a layer: how many keys a query sees at most
    query_pre_attn_scalar: float  # scores are divided by its root; E except in Gemma 2 and 3
    qkv_bias: bool  # Qwen2 always, others where attention_bias is set
    o_bias: bool
    attn_logit_softcapping: float | None = None  # s: scores become s·tanh(score/s) (Gemma 2)
    final_logit_softcapping: float | None = None  # the same for the logits
    # The rest comes from FACTS.
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

LLAMA3 = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
# The kinds, with what each takes from the file as it is.
ROPE_KINDS = {"default": (), "longrope": (), "yarn": (), "linear": ("factor",), "llama3": LLAMA3}
ROPE_NUMBERS = ("rope_theta", "partial_rotary_factor", "attention_factor", "beta_fast", "beta_slow",
                "mscale", "mscale_all_dim", *LLAMA3)
ROPE_FIELDS = {"rope_type": str, "type": str, "short_factor": list, "long_factor": list,
               "truncate": bool, "finetuned": bool}  # the latter is a note in YaRN's first models


def read_config(folder: Path) -> Config:
    """config.json as a Config; a field that would change the result unseen is refused by name."""
    path = Path(folder) / "config.json"
    raw = read_object(path, remedy="use a Hugging Face config.json")
    kind = raw.get("model_type")
    if not isinstance(kind, str) or kind not in FACTS:
        raise InputError(f"model_type {kind!r} is not supported", path,
                         f"use one of: {' '.join(FACTS)}")
    try:
        return _build_config(read_fields(raw))
    except KeyError as error:
        raise InputError(f"no field {error}", path, "repair the file") from None
    except (ValueError, ArithmeticError) as error:
        raise InputError(error, path, "use another model") from None
    except (TypeError, AttributeError) as error:
        raise InputError(f"a field of the wrong type ({error})", path, "repair the file") from None


def _build_config(raw: dict) -> Config:
    kind, heads = raw["model_type"], raw["num_attention_heads"]
    name = "hidden_activation" if "hidden_activation" in raw else "hidden_act"
    activation = raw.get(name, "silu")
    if kind == "gemma" and activation == "gelu":  # its first releases say so and mean the other
        activation = "gelu_pytorch_tanh"
    check(activation in ACTIVATIONS, name, activation)
    kv_heads = raw.get("num_key_value_heads") or heads
    check(heads % kv_heads == 0, "num_key_value_heads", kv_heads, f"does not divide {heads} heads")
    head_dim = raw.get("head_dim") or raw["hidden_size"] // heads
    layers = _layer_kinds(raw)
    ropes = {k: _read_rope(raw, k, head_dim) for k in sorted(set(layers))}
    bias = bool(raw.get("attention_bias"))
    context = max(rope.context for rope in ropes.values()) or raw["max_position_embeddings"]
    values = raw | {
        "num_key_value_heads": kv_heads, "head_dim": head_dim, "max_position_embeddings": context,
        "tie_word_embeddings": bool(raw.get("tie_word_embeddings")), "activation": activation,
        "ropes": tuple(ropes[k] for k in layers),
        "windows": tuple(raw["sliding_window"] if k == SLIDING else None for k in layers),
        "query_pre_attn_scalar": raw.get("query_pre_attn_scalar") or head_dim,
        "qkv_bias": bias, "o_bias": bias} | FACTS[kind]
    return Config(**{f.name: values[f.name] for f in fields(Config) if f.name in values})


def _layer_kinds(raw: dict) -> list[str]:
    """FULL or SLIDING for each layer: layer_types, or the model_type's own order without it."""
    layers, window, first = raw["num_hidden_layers"], raw.get("sliding_window"), 0
    if "use_sliding_window" in raw:  # Qwen: off by default, and only in the upper layers
        window = window if raw["use_sliding_window"] else None
        first = raw["max_window_layers"]
    # Gemma 2 and 3 look at everything in each second or sixth layer.
    every = 2 if raw["model_type"] == "gemma2" else raw.get("sliding_window_pattern") or layers + 1
    slides = window is not None or every <= layers  # with no window the last check will refuse it
    kinds = [SLIDING if slides and i >= first and (i + 1) % every else FULL for i in range(layers)]
    given = raw.get("layer_types")
    if given is not None:
        fits = len(given) == layers and set(given) <= {FULL, SLIDING}
        check(fits and ("layer_types" in DEFAULTS[raw["model_type"]] or given == kinds),
              "layer_types", given, "does not fit the model")
        kinds = given
    check(window is not None or SLIDING not in kinds, "sliding_window", window,
          "with sliding layers is not supported")
    return kinds


def _read_rope(raw: dict, layer_kind: str, head_dim: int) -> Rope:
    given = {k: v for k, v in _rope_fields(raw, layer_kind).items() if v is not None}
    kind = given.get("rope_type") or given.get("type") or "default"
    # Only Phi-3 has this field; its first files used these names. Dynamic NTK begins where we end.
    names = {"su": "longrope", "yarn": "longrope"} if "partial_rotary_factor" in raw else {
        "dynamic": "default"}
    kind = names.get(kind, kind)
    check(kind in ROPE_KINDS, "rope_type", kind)
    for field, value in given.items():
        fine = isinstance(value, ROPE_FIELDS.get(field, ()))
        check(fine or (field in ROPE_NUMBERS and positive(value, field)),
              f"rope_parameters.{field}", value)
    share = given.get("partial_rotary_factor", 1.0)
    size = int(head_dim * share)
    check("partial_rotary_factor" in raw or share == 1.0, "partial_rotary_factor", share)
    check(size % 2 == 0 and 0 < size <= head_dim, "head_dim", head_dim,
          f"(times partial_rotary_factor {share}) makes no pairs to rotate")
    check(given["rope_theta"] > 1, "rope_theta", given["rope_theta"])  # else nothing slows down
    rope = Rope(size, float(given["rope_theta"]), kind,
                **{name: given[name] for name in ROPE_KINDS[kind]})
    finish = {"longrope": _longrope, "yarn": _yarn}.get(kind)
    return finish(rope, given, raw["max_position_embeddings"]) if finish else rope


def _rope_fields(raw: dict, layer_kind: str) -> dict:
    """One flat dict from either spelling; transformers 5 nests them by layer kind for Gemma 3."""
    scaling, nested = raw.get("rope_scaling") or {}, raw.get("rope_parameters") or {}
    if "rope_local_base_freq" not in raw:
        share, original = "partial_rotary_factor", "original_max_position_embeddings"
        top = {"rope_theta": raw.get("rope_theta", 10000.0), share: raw.get(share)}
        # Beside rope_scaling, as Phi-3 has it, the original length counts for more than inside.
        return top | (scaling or nested) | ({original: raw[original]} if raw.get(original) else {})
    check(nested.keys() <= {FULL, SLIDING}, "rope_parameters", nested, "is not by layer type")
    own = nested.get(layer_kind) or {}
    if layer_kind == SLIDING:
        return {"rope_theta": raw["rope_local_base_freq"]} | own
    # transformers reads no truncate here
    return {"rope_theta": raw["rope_theta"]} | own | scaling | {"truncate": True}


def _longrope(rope: Rope, given: dict, longest: int) -> Rope:
    """LongRoPE (arXiv 2402.13753) within the first training's context, by the short factors. Beyond
    it every position's angle would change, those already in a cache too, and in a batch one long
    text would change the others: the context ends there (Config.max_position_embeddings)."""
    original, short = given["original_max_position_embeddings"], given["short_factor"]
    fine = len(short) == rope.size // 2 and all(map(positive, short))
    check(fine, "short_factor", short, f"is not {rope.size // 2} positive numbers")
    factor, times = given.get("factor") or longest / original, given.get("attention_factor")
    if times is None:
        times = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    return replace(rope, original_max_position_embeddings=original, short_factor=tuple(short),
                   context=min(longest, original), attention_factor=times)


def _yarn(rope: Rope, given: dict, longest: int) -> Rope:
    """YaRN (arXiv 2309.00071, sections 3.2 and 3.4) with the defaults of transformers."""
    original = given.get("original_max_position_embeddings", longest)
    factor = given.get("factor") or longest / original

    def scale(share=1.0):
        return 0.1 * share * math.log(factor) + 1 if factor > 1 else 1.0

    # The pairs that turn 32 times and once within the original context.
    low, high = (rope.size * math.log(original / (turns * 2 * math.pi)) / 2 / math.log(rope.theta)
                 for turns in (given.get("beta_fast", 32), given.get("beta_slow", 1)))
    if given.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope.size - 1)
    shares = [given[name] for name in ("mscale", "mscale_all_dim") if name in given]
    times = scale(shares[0]) / scale(shares[1]) if len(shares) == 2 else scale()
    return replace(rope, factor=factor, ramp=(low, high + 0.001 * (low == high)),
                   context=max(longest, int(original * factor)),  # cards let the old length stand
                   attention_factor=given.get("attention_factor", times))
