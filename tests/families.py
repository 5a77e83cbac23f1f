"""Small random models of every family: what tests/test_families.py checks, and the README's table.

    python tests/families.py --table     the table, as the README has it
    python tests/families.py --goldens   rewrite tests/goldens/ after comparing with transformers
    python tests/families.py --measure   the differences from transformers, case by case
    python tests/families.py --measure FOLDER ...   those of real models

A golden is a config.json, a seed and sixteen logits: where transformers is absent the check runs on
those. Weights are drawn by `write`, in the order of the sorted names.
"""

import argparse
import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from model import Transformer, load_model, read_config

GOLDENS = Path(__file__).parent / "goldens"
SEED, V, T, WINDOW = 7, 128, 40, 7  # the window is shorter than the text
SMALL = {"vocab_size": V, "hidden_size": 32, "intermediate_size": 56, "num_hidden_layers": 3,
         "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
         "rms_norm_eps": 1e-5, "eos_token_id": None, "bos_token_id": None, "pad_token_id": None}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 16, "rope_type": "llama3"}  # 16: scaled within T
LINEAR = {"rope_type": "linear", "factor": 8.0}
YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
LONG = {"short_factor": [1.0, 1.1, 1.3, 1.7, 2.0, 3.0],
        "long_factor": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]}
FULL, SLIDING = "full_attention", "sliding_attention"
REAL = {"llama": "SmolLM2-135M-Instruct", "gemma3_text": "Gemma 3 270M"}
FINE, RATIO = 1e-4, 1.25  # the largest differences allowed: of a logit in fp32, of errors in bf16


@dataclass(frozen=True)
class Family:
    name: str
    limits: str
    cases: dict[str, dict]  # what config.json has beyond SMALL; the last is the golden


FAMILIES = {
    "llama": Family("Llama 1, 2, 3.x; Vicuna, TinyLlama, SmolLM2", "no bias in the MLP", {
        "tied": {"tie_word_embeddings": True},
        "all heads, head_dim, bias": {
            "num_key_value_heads": None, "head_dim": 12, "attention_bias": True},
        "linear rope": {"rope_parameters": LINEAR | {"rope_theta": 5e4}},
        "yarn": {"rope_scaling": YARN | {
            "attention_factor": 1.3, "beta_fast": 4, "beta_slow": 0.5}},
        "dynamic rope": {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
        "llama3 rope": {"rope_scaling": LLAMA3, "rope_theta": 500.0},
    }),
    "mistral": Family("Mistral, Mistral Nemo", "", {
        "no window, head_dim": {"sliding_window": None, "head_dim": 20, "num_key_value_heads": 1},
        "window": {"sliding_window": WINDOW, "rope_parameters": {"rope_theta": 1e4}},
    }),
    "qwen2": Family("Qwen2, Qwen2.5", "", {
        "tied": {"tie_word_embeddings": True, "sliding_window": 4, "attention_bias": True},
        "yarn": {"rope_scaling": YARN, "rope_theta": 1e6},
        "window by layer_types": {
            "use_sliding_window": True, "sliding_window": WINDOW,
            "layer_types": [SLIDING, FULL, SLIDING], "num_key_value_heads": 4},
        "window in the upper layers": {
            "use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    }),
    "qwen3": Family("Qwen3", "dense models only", {
        "tied": {"tie_word_embeddings": True, "head_dim": 12, "rope_theta": 1e6},
        "default head_dim, bias": {
            "attention_bias": True, "num_key_value_heads": 4,
            "rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}},
        "window in the upper layers": {
            "head_dim": 20, "use_sliding_window": True, "sliding_window": WINDOW,
            "max_window_layers": 2},
    }),
    "gemma": Family("Gemma 1", "", {
        "one key head, default head_dim": {"hidden_act": "gelu", "num_key_value_heads": 1},
        "untied, bias": {"hidden_act": "gelu_pytorch_tanh", "head_dim": 12, "hidden_size": 44,
                         "tie_word_embeddings": False, "attention_bias": True},
    }),
    "gemma2": Family("Gemma 2", "soft caps: attention without SDPA, loss without "
                     "the flash head", {
        "default caps, scale and head_dim": {
            "sliding_window": WINDOW, "hidden_act": "gelu_pytorch_tanh"},
        "no caps, untied": {
            "sliding_window": WINDOW, "attn_logit_softcapping": None, "head_dim": 12,
            "final_logit_softcapping": None, "tie_word_embeddings": False},
        "tight caps, layer_types": {
            "sliding_window": WINDOW, "attn_logit_softcapping": 2.0, "head_dim": 12,
            "final_logit_softcapping": 3.0, "query_pre_attn_scalar": 5,
            "layer_types": [FULL, SLIDING, SLIDING]},
    }),
    "gemma3_text": Family("Gemma 3, text only", "`gemma3` (with images) is refused", {
        "defaults": {"sliding_window": WINDOW, "num_hidden_layers": 7},
        "transformers 5 spelling, untied": {
            "sliding_window": WINDOW, "head_dim": 12, "tie_word_embeddings": False,
            "layer_types": [SLIDING, FULL, SLIDING], "final_logit_softcapping": 4.0,
            "query_pre_attn_scalar": 10, "rope_parameters": {
                FULL: {"rope_type": "default", "rope_theta": 1e6},
                SLIDING: {"rope_type": "default", "rope_theta": 100.0}}},
        "transformers 4 spelling, linear rope": {
            "sliding_window": WINDOW, "head_dim": 12, "sliding_window_pattern": 2,
            "rope_theta": 1e5, "rope_local_base_freq": 100.0, "rope_scaling": LINEAR},
    }),
    "phi3": Family("Phi-3, Phi-3.5, Phi-4 mini", "long-context models up to their original context "
                   "(`original_max_position_embeddings`) only", {
        "window, all heads": {"sliding_window": WINDOW, "num_key_value_heads": None},
        "odd heads, partly rotated": {"hidden_size": 60, "rope_parameters": {
            "rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.8}},
        "longrope with factor": {"hidden_size": 48, "original_max_position_embeddings": 64,
                                 "rope_scaling": LONG | {
                "type": "su", "factor": 6.0, "original_max_position_embeddings": 64}},
        "longrope, partly rotated, tied": {
            "hidden_size": 64, "partial_rotary_factor": 0.75, "tie_word_embeddings": True,
            "original_max_position_embeddings": 64, "rope_scaling": LONG | {"type": "longrope"}},
    }),
    "olmo2": Family("OLMo 2", "", {
        "all heads": {"num_key_value_heads": None, "rope_theta": 5e5},
        "grouped heads, bias, tied": {
            "attention_bias": True, "tie_word_embeddings": True, "head_dim": 12},
    }),
}
CASES = {f"{kind}: {label}": {**SMALL, "model_type": kind, **changes}
         for kind, family in FAMILIES.items() for label, changes in family.cases.items()}


def write(folder: Path, config: dict, *, seed: int = SEED) -> Path:
    """A folder with this config.json and random weights that bf16 holds without rounding."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    model, generator = Transformer(read_config(folder)), torch.Generator().manual_seed(seed)
    weights = model.state_dict()
    if model.config.tie_word_embeddings:
        del weights["lm_head.weight"]
    for name, weight in sorted(weights.items()):
        drawn = torch.randn(weight.shape, generator=generator)
        if "norm" in name:
            drawn = 0.1 * drawn + (not model.config.norm_plus_one)
        # Large enough that attention and the logits are far from uniform.
        weights[name] = (drawn if "norm" in name else 0.25 * drawn).bfloat16().float()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def ours(folder: Path, dtype: str = "float32") -> Transformer:
    return load_model(folder, device="cpu", dtype=dtype)


def theirs(folder: Path, dtype: str = "float32"):
    import transformers

    transformers.utils.logging.disable_progress_bar()
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, dtype), output_loading_info=True)
    assert not any(report.values())  # else a tensor that we do not know is made up there
    return model.eval()


def some_ids(rows: int = 2, length: int = T):
    return torch.randint(V, (rows, length), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def differences(folder: Path) -> tuple[float, float, float]:
    """The largest difference of a logit in fp32; in bf16 our error and the distance between the
    two, both as multiples of transformers' error."""
    ids = some_ids()
    exact, fine = theirs(folder)(ids).logits, ours(folder)(ids)
    their, our = (z.float() for z in (theirs(folder, "bfloat16")(ids).logits,
                                      ours(folder, "bfloat16")(ids)))
    error = (their - exact).norm()
    assert (exact.std(-1) > 0.1).all() and error / exact.norm() > 1e-3  # else it says nothing
    return tuple(float(x) for x in (
        (fine - exact).abs().max(), (our - exact).norm() / error, (our - their).norm() / error))


@torch.no_grad()
def golden_logits(folder: Path) -> list[float]:
    """Every eighth logit after the last token of one text: 16 of them."""
    return [round(z, 6) for z in ours(folder)(some_ids(1))[0, -1, :: V // 16].tolist()]


def write_goldens() -> None:
    for name, fine, ratio, _ in measure():
        if fine > FINE or ratio > RATIO:
            raise SystemExit(f"{name}: {fine:.1e}, {ratio:.2f}: not what transformers computes")
    GOLDENS.mkdir(exist_ok=True)
    for kind in FAMILIES:
        config = next(c for c in reversed(CASES.values()) if c["model_type"] == kind)
        with tempfile.TemporaryDirectory() as place:
            logits = golden_logits(write(Path(place), config))
        text = json.dumps({"config": config, "seed": SEED, "logits": logits})
        (GOLDENS / f"{kind}.json").write_text(text + "\n")


def measure():
    for name, config in CASES.items():
        with tempfile.TemporaryDirectory() as place:
            yield name, *differences(write(Path(place), config))


def table() -> str:
    """The README's table of families."""
    rows = ["| family | `model_type` | compared with transformers on random models | limits |",
            "|---|---|---|---|"]
    for kind, family in FAMILIES.items():
        cases = "; ".join(family.cases)
        if kind in REAL:  # test_model.py, where it is at hand
            cases += f"; and the real {REAL[kind]}"
        rows.append(f"| {family.name} | `{kind}` | {cases} | {family.limits or '-'} |")
    return "\n".join(rows)


if __name__ == "__main__":
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    group = parser.add_mutually_exclusive_group(required=True)
    for name in ("table", "goldens"):
        group.add_argument(f"--{name}", action="store_true")
    group.add_argument("--measure", nargs="*", type=Path, metavar="FOLDER")
    options = parser.parse_args()
    if options.table:
        print(table())
    elif options.goldens:
        write_goldens()
    else:
        real = ((folder.name, *differences(folder)) for folder in options.measure)
        for name, fine, ratio, apart in real if options.measure else measure():
            print(f"{name:50} fp32 {fine:.1e}   bf16 {ratio:.2f} of theirs, {apart:.2f} apart")
