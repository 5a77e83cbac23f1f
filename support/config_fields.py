"""The fields of config.json that a model_type has: its defaults, and what is refused by name.

Checked against transformers in tests/test_families.py; config.py makes a Config of them."""

import re

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
    "qwen2": QWEN | {"attention_bias": None},  # whatever it says: see config.FACTS
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
# sliding_window_size is in some Gemma 2 models, which go by sliding_window. Qwen2.5-1M's attention
# in chunks begins beyond 250,000 tokens, and transformers leaves it out.
NOTES = re.compile(
    r"_.*|unsloth_.*|transformers[_.].*|is_\w+_config|sliding_window_size|attn_implementation|"
    r"gradient_checkpointing|neftune_noise_alpha|max_new_tokens|repetition_penalty|id2label|"
    r".*_token_ids?|.*_dropout|.*_pdrop|(?:torch_)?dtype|architectures|auto_map|use_cache|"
    r"initializer_range|cache_implementation|pretraining_tp|label2id|problem_type|torchscript|"
    r"output_attentions|output_hidden_states|return_dict|max_window_layers|model_max_length|"
    r"tokenizer_class|pruned_heads|temperature|top_[kp]|do_sample|max_length|max_sequence_length|"
    r"num_beams|num_beam_groups|num_return_sequences|length_penalty|typical_p|early_stopping|"
    r"min_length|diversity_penalty|no_repeat_ngram_size|dual_chunk_attention_config")
# Any other field means a computation that the model_type does not have. It passes where it is off,
# None or False, or has one of these values.
NEUTRAL = {"hidden_activation": ("gelu_pytorch_tanh",),  # Gemma 1 goes by hidden_act
           "partial_rotary_factor": (1.0,),
           "full_attn_mod": (1,), "interpolate_factor": (1,)}  # Phi-4 mini
REQUIRED = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
            "num_attention_heads", "max_position_embeddings", "rms_norm_eps")
NUMBERS = ("rms_norm_eps", "query_pre_attn_scalar", "attn_logit_softcapping",
           "final_logit_softcapping", "partial_rotary_factor")
WHOLE_NUMBERS = (*REQUIRED[:-1], "head_dim", "num_key_value_heads", "sliding_window",
                 "sliding_window_pattern", "original_max_position_embeddings")
# The largest value that makes sense, 10**9 for all others: what is built of them stays within the
# machine and every product of two sizes within 64 bits.
MOST = {"num_hidden_layers": 1000, "num_attention_heads": 10**4, "num_key_value_heads": 10**4,
        "head_dim": 10**4, "rope_theta": 1e18, "rms_norm_eps": 1, "partial_rotary_factor": 1}


def check(fine: bool, field: str, value, why: str = "is not supported") -> None:
    """ValueError that names the field and shows its value, if that is not `fine`."""
    if not fine:
        text = repr(value)
        raise ValueError(f"{field} = {text if len(text) < 60 else text[:60] + '...'} {why}")


def positive(value, field: str = "") -> bool:
    """Is it a number above 0, far enough for fp32, and within the range of the field?"""
    # isinstance would take true for an int
    return type(value) in (int, float) and 1e-12 <= value <= MOST.get(field, 10**9)


def read_fields(raw: dict) -> dict:
    """Those of a config.json that are read, with its model_type's defaults; numbers are positive.
    ValueError for a field that is neither read nor known to change nothing."""
    defaults = DEFAULTS[raw["model_type"]]
    read = {*REQUIRED, *COMMON, *defaults}
    for field, value in raw.items():
        neutral = value in (None, False, *NEUTRAL.get(field, ()))
        check(field in read or neutral or NOTES.fullmatch(field), field, value)
    raw = defaults | {field: value for field, value in raw.items() if field in read}
    for field in NUMBERS + WHOLE_NUMBERS:
        if field in REQUIRED or raw.get(field) is not None:
            value, whole = raw[field], field in WHOLE_NUMBERS
            fine = positive(value, field) and not (whole and isinstance(value, float))
            check(fine, field, value, f"is not a positive{' whole' if whole else ''} number up to "
                  f"{MOST.get(field, 10**9):g}")
    return raw
