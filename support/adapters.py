"""The files of a LoRA adapter as PEFT has them, ours and those of others: written, read, checked.

What would change the result and is not computed here is refused by name, not left out."""

import json
import math
import re
from pathlib import Path

from safetensors.torch import save
from torch import nn

from support import files
from support.config_fields import positive
from support.files import InputError, canonical, read_object, refusing, sha256, sha256_file
from support.hub import HUB_ID, hub_name
from support.progress import say
from support.weights import FLOATS, check_finite, weights_hash

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
PREFIX = "base_model.model."  # PEFT's wrapper names stand before every parameter's name
TRAIN_RECORD = "train_config.json"
# Of the wrappers a name may go through (PEFT's, Gemma 3's, DDP's, compile's) some tools leave out a
# few. A state dict that PEFT itself did not save has the adapter's name too: lora_A.default.weight.
KEY = re.compile(r"(?:(?:base_model|model|language_model|module|_orig_mod)\.)*"
                 r"(layers\..+)\.lora_([AB])(?:\.\w+)?\.weight")
MODULE = r"(.*\.)?({})$"  # a pattern for modules: it holds for the name's end, from a dot on
NUMBERS = {"r": "rank_pattern", "lora_alpha": "alpha_pattern"}  # with what says it by module
# PEFT settings that change nothing for an adapter that is already trained, whatever their value.
# Which linears are adapted is read off the tensors' names.
NOTES = {*NUMBERS, *NUMBERS.values(), "use_rslora", "task_type", "auto_mapping", "peft_version",
         "base_model_name_or_path", "revision", "inference_mode", "lora_dropout", "target_modules",
         "exclude_modules", "layers_to_transform", "layers_pattern", "megatron_config",
         "megatron_core", "runtime_config", "ensure_weight_tying", "qalora_group_size",
         "eva_config"}
# Every other setting, also one that is unknown here, must be off or have one of these values.
NEUTRAL = {"peft_type": ("LORA",), "bias": ("none",),
           # The other ways to begin (pissa, olora, corda, loftq, ...) change the base weights too.
           "init_lora_weights": (True, "gaussian", "orthogonal", "eva")}


def write_adapter(folder: Path, parameters: dict, *, base: str, rank: int, alpha: float,
                  targets: list[str], revision: str | None = None) -> None:
    """Both files, from parameters under PEFT's names; `base` names the model for the reader, and
    `revision` the commit of one on the hub, which PEFT then loads."""
    tensors = {name: p.detach().cpu() for name, p in parameters.items()}
    for name, tensor in tensors.items():
        check_finite(tensor, name, folder / WEIGHTS, "start with --fresh and a lower --lr")
    files.write_atomic(folder / WEIGHTS, save(tensors, metadata={"format": "pt"}))
    files.write_json(folder / CONFIG, {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base,
        "r": rank, "lora_alpha": alpha, "target_modules": sorted(targets), "lora_dropout": 0.0,
        "bias": "none", "use_rslora": False, "use_dora": False, "fan_in_fan_out": False,
        "modules_to_save": None, "rank_pattern": {}, "alpha_pattern": {}, "inference_mode": True,
        **({"revision": revision} if revision else {})})


def read_adapter_config(folder: Path) -> dict:
    """adapter_config.json, checked; InputError where a file or a number is missing, or for a
    setting that would change the result unseen."""
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise InputError(f"no {name}", f"adapter {folder}", _remedy_of_absence(folder))
    config = read_object(folder / CONFIG, remedy="copy it again")
    for field, value in config.items():
        if field not in NOTES and value not in (None, False, [], {}, *NEUTRAL.get(field, ())):
            raise InputError(f"{field} = {json.dumps(value)} is not supported", folder / CONFIG,
                             "merge it first")
    with refusing((re.error, TypeError, OverflowError, RecursionError), "malformed pattern",
                  folder / CONFIG, "repair it"):
        for field, own in NUMBERS.items():
            for name, value in {field: config.get(field), **(config.get(own) or {})}.items():
                re.compile(MODULE.format(name))
                if not positive(value) or (field == "r" and type(value) is not int):
                    raise InputError(f"{name} is not a positive number", folder / CONFIG,
                                     "repair it")
    return config


def _remedy_of_absence(folder: Path) -> str:
    if (folder / "adapter_model.bin").is_file():
        return "load it with PEFT and save it again, as safetensors"
    if (folder / TRAIN_RECORD).is_file():
        return "run train once more: it has not come to its end"
    if inner := [path.parent for path in folder.glob(f"*/{CONFIG}")]:
        return f"name {max(inner, key=lambda path: (len(path.name), path.name))}"  # the last step
    if (hub := HUB_ID.fullmatch(str(folder))) and not folder.exists():
        revision = f" --revision {hub['revision']}" if hub["revision"] else ""
        return (f"if it lies on the hub: hf download {hub['repo']}{revision} --local-dir DIR, then"
                " --adapter DIR")
    return "name a folder that train or PEFT wrote"


def own_number(config: dict, field: str, *names: str):
    """r or lora_alpha for the linear of these names: ours, and that of the model it was trained in,
    which may have other wrappers. PEFT's rule: that of the first pattern that matches a name's end,
    from a dot on (get_pattern_key in its utils/other.py)."""
    patterns = (config.get(NUMBERS[field]) or {}).items()
    return next((value for key, value in patterns for name in names
                 if re.match(MODULE.format(key), name)), config[field])


def trained_name(key: str) -> str:
    """Of the linear that a tensor of this name belongs to, in the model that PEFT wrapped."""
    return key.removeprefix(PREFIX).rpartition(".lora_")[0]


def read_adapter(folder: Path, config: dict, model) -> dict[str, tuple]:
    """{linear: (A, B, scale)} of a PEFT folder for a model, which need not have its weights. Which
    linears are adapted is read off the tensors' names, so it does not matter whether target_modules
    is a list or a pattern. Raises InputError for anything that would be ignored, for what is not
    finite, and for what does not fit; warns of another base than the adapter's."""
    # Not the head: the losses and the evaluations read its weight, past any adapter on it.
    shapes = {name: (linear.out_features, linear.in_features)
              for name, linear in model.named_modules()
              if isinstance(linear, nn.Linear) and linear is not model.lm_head}
    factors = {}
    for name, sides in _read_sides(folder / WEIGHTS, shapes).items():
        rank, alpha = (own_number(config, field, name, sides["name"]) for field in NUMBERS)
        wide, narrow = shapes[name]
        for axis, side, shape in ((0, "A", [rank, narrow]), (1, "B", [wide, rank])):
            found = list(sides[side].shape) if side in sides else "nothing"
            if found != shape:
                remedy = ("copy it again" if side not in sides else
                          "check the base model" if found[axis:axis + 1] == [rank] else
                          f"check r and rank_pattern in {CONFIG}")
                raise InputError(f"{name}.lora_{side}.weight: {found} where {shape} is wanted",
                                 folder / WEIGHTS, remedy)
        # rsLoRA divides by the root of the rank: arXiv 2312.03732
        scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
        factors[name] = (sides["A"], sides["B"], scale)
    if model.folder and folder not in model.met:  # once, however often it is put on
        model.met.add(folder)
        _warn_of_base(folder, config, model.folder)
    return factors


def under_our_names(path: Path, config: dict, factors: dict[str, tuple]) -> dict:
    """The same adapter_config.json for tensors that are named as in `factors`, read_adapter's.
    Where the file at `path` has other wrappers' names, patterns for those would match nothing in
    PEFT: it would find no linears, or take the scale of all for one with a scale of its own."""
    with files.open_safetensors(path) as file:
        names = {trained_name(key) for key in file.keys()}  # noqa: SIM118 (no dict)
    if names == factors.keys():
        return config
    roots = {name: math.sqrt(len(A)) if config.get("use_rslora") else len(A)
             for name, (A, _, _) in factors.items()}
    places = ("exclude_modules", "layers_to_transform", "layers_pattern")
    return {key: value for key, value in config.items() if key not in places} | {
        "target_modules": sorted(factors),
        "rank_pattern": {name: len(A) for name, (A, _, _) in factors.items()},
        "alpha_pattern": {name: scale * roots[name] for name, (_, _, scale) in factors.items()}}


def _read_sides(path: Path, shapes: dict) -> dict[str, dict]:
    """{linear: {"A": tensor, "B": tensor, "name": `trained_name`}}; what cannot be taken is sorted
    by its cause."""
    sides = {}
    with files.open_safetensors(path, kind="adapter", remedy="copy it again") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no dict)
    if not tensors:
        raise InputError("no tensors", path, "copy it again")
    for key, tensor in sorted(tensors.items()):
        match, kind = KEY.fullmatch(key), str(tensor.dtype).removeprefix("torch.")
        name, side = (f"model.{match[1]}", match[2]) if match else ("", "")
        for wrong, what, remedy in (
                (not match, "is no LoRA matrix of a linear in a block", "merge it with PEFT first"),
                (name not in shapes, "fits no linear of a block", "check the base model"),
                (kind not in FLOATS, f"is stored as {kind}", "save it in a float dtype"),
                (not tensor.numel(), "is empty", "save it again with its weights gathered "
                 "(DeepSpeed: stage3_gather_16bit_weights_on_model_save)"),
                (side in sides.get(name, ()), f"is the second for {name}", "keep one adapter")):
            if wrong:
                raise InputError(f"{key} {what}", path, remedy)
        check_finite(tensor, key, path, "take an earlier one, or train with a lower --lr")
        sides.setdefault(name, {"name": trained_name(key)})[side] = tensor
    return sides


def _warn_of_base(folder: Path, config: dict, base: Path) -> None:
    """Say so where an adapter is put on other weights than it was trained on: by the hash that
    train keeps, else by the names of the hub's repositories, as far as they are known."""
    named = str(config.get("base_model_name_or_path") or "")
    named, here = hub_name(named) or named, hub_name(base)
    if (folder / TRAIN_RECORD).is_file():
        with refusing((KeyError, TypeError), "not a record of train", folder / TRAIN_RECORD,
                      "move it away"):
            trained = read_object(folder / TRAIN_RECORD)["settings"]["weights_sha256"]
        if trained != weights_hash(base):
            say(f"warning: these are not the base weights that the adapter {folder} was trained "
                f"on: {here or base}")
    elif here and HUB_ID.fullmatch(named) and named.casefold() != here.casefold():
        say(f"warning: the adapter {folder} is for {named}, and the base is {here}")


def adapter_hash(folder: Path, config: dict | None = None) -> str:
    """Over the tensors and over the settings, which hold their scale; read if not given."""
    return sha256(canonical(config or read_adapter_config(folder)) + sha256_file(folder / WEIGHTS))
