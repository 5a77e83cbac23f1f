"""The files of a LoRA adapter as PEFT has them, ours and those of others: written, read, checked.

What would change the result and is not computed here is refused by name, not left out.
"""

import json
import math
from pathlib import Path

from safetensors.torch import save

from support.files import (
    InputError,
    canonical,
    open_safetensors,
    read_object,
    sha256,
    sha256_file,
    write_atomic,
    write_json,
)

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
PREFIX = "base_model.model."  # PEFT's wrapper names stand before every parameter's name
# PEFT settings that change nothing for an adapter that is already trained, whatever their value.
# Which linears are adapted is read off the tensors' names.
NOTES = {"r", "lora_alpha", "use_rslora", "task_type", "auto_mapping", "peft_version",
         "base_model_name_or_path", "revision", "inference_mode", "lora_dropout", "target_modules",
         "exclude_modules", "layers_to_transform", "layers_pattern", "megatron_config",
         "megatron_core", "runtime_config", "ensure_weight_tying", "qalora_group_size"}
# Every other setting, also one that is unknown here, must be off or have one of these values.
NEUTRAL = {"peft_type": ("LORA",), "bias": ("none",),
           # The other ways to begin (pissa, olora, corda, loftq, ...) change the base weights too.
           "init_lora_weights": (True, "gaussian", "orthogonal", "eva")}


def write_adapter(folder: Path, parameters: dict, *, base: str, rank: int, alpha: float,
                  targets: list[str]) -> None:
    """Both files, from parameters under PEFT's names; `base` names the model for the reader."""
    tensors = {name: p.detach().cpu() for name, p in parameters.items()}
    write_atomic(folder / WEIGHTS, save(tensors, metadata={"format": "pt"}))
    write_json(folder / CONFIG, {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base,
        "r": rank, "lora_alpha": alpha, "target_modules": sorted(targets), "lora_dropout": 0.0,
        "bias": "none", "use_rslora": False, "use_dora": False, "fan_in_fan_out": False,
        "modules_to_save": None, "rank_pattern": {}, "alpha_pattern": {}, "inference_mode": True,
    })


def read_adapter_config(folder: Path) -> dict:
    """adapter_config.json, checked; InputError where a file or a number is missing, or for a
    setting that would change the result unseen."""
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise InputError(f"no {name}", f"adapter {folder}",
                             "name a folder that train or PEFT wrote")
    config = read_object(folder / CONFIG, remedy="copy it again")
    for field, value in config.items():
        if field not in NOTES and value not in (None, False, [], {}, *NEUTRAL.get(field, ())):
            raise InputError(f"{field} = {json.dumps(value)} is not supported", folder / CONFIG,
                             "merge it first")
    for field, kind in (("r", int), ("lora_alpha", int | float)):
        if not isinstance(config.get(field), kind) or config[field] <= 0:
            raise InputError(f"{field} is not a positive number", folder / CONFIG, "repair it")
    return config


def read_adapter(folder: Path, config: dict,
                 shapes: dict[str, tuple[int, int]]) -> dict[str, tuple]:
    """{linear: (A, B, scale)} of a PEFT folder; `shapes` has the (out, in) of each block's linears.
    Which linears are adapted is read off the tensors' names, so it does not matter whether
    target_modules is a list or a pattern. Raises InputError for anything that would be ignored, and
    for what does not fit `shapes`."""
    with open_safetensors(folder / WEIGHTS, kind="adapter", remedy="copy it again") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no dict)
    if not tensors:
        raise InputError("no tensors", folder / WEIGHTS, "copy it again")
    rank, factors = config["r"], {}
    # rsLoRA divides by the root of the rank: arXiv 2312.03732
    scale = config["lora_alpha"] / (math.sqrt(rank) if config.get("use_rslora") else rank)
    for key in sorted(tensors):
        name, _, side = key.removeprefix(PREFIX).rpartition(".lora_")
        if name not in shapes or side not in ("A.weight", "B.weight"):
            raise InputError(f"{key} fits no linear of a block", folder, "check the base model")
        wide, narrow = shapes[name]  # out, in
        sides = {f"{PREFIX}{name}.lora_A.weight": [rank, narrow],
                 f"{PREFIX}{name}.lora_B.weight": [wide, rank]}
        for wanted, shape in sides.items():
            found = list(tensors[wanted].shape) if wanted in tensors else "nothing"
            if found != shape:
                raise InputError(f"{wanted}: {found} where {shape} is wanted", folder,
                                 "check the base model")
        factors[name] = (*map(tensors.get, sides), scale)
    return factors


def adapter_hash(folder: Path, config: dict | None = None) -> str:
    """Over the tensors and over the settings, which hold their scale; read if not given."""
    return sha256(canonical(config or read_adapter_config(folder)) + sha256_file(folder / WEIGHTS))
