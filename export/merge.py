"""An adapter merged into its base, file by file: the weights of a Hugging Face folder.

Whatever is not adapted is copied as it is, a tied head stays out of the files where it is not in
them, and memory holds one shard. W + (α/r) B A is summed in fp32 and rounded once to the dtype of
the file. bf16 has 8 bits, so each weight is off by up to one part in 512: a change smaller than
that is lost where it falls on a large weight, which an adapter kept apart does not lose."""

import os
from pathlib import Path

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError
from safetensors.torch import save_file

from lora import merged
from model import DTYPES
from support.files import open_safetensors, read_object, refusing, umask, write_atomic, write_json
from support.progress import Progress
from support.weights import INDEX, Outline, check_finite

SHARD = 5 * 10**9  # bytes of a weight file, the hub's own measure
COPIED = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json",
          "added_tokens.json", "merges.txt", "tokenizer.model", "chat_template.jinja",
          "additional_chat_templates/*.jinja", "chat_template.json", "generation_config.json")
NOTICES = ("LICENSE*", "NOTICE*", "USE_POLICY*")  # copied as well


def write_merged(folder: Path, base: Path, outline: Outline, factors: dict[str, tuple], *,
                 dtype: str) -> None:
    """New shards, the base's other files, and its config.json with the dtype set right. `factors`
    is support.adapters.read_adapter's; dtype auto keeps each tensor's own."""
    planned = {name: weight.to(DTYPES.get(dtype, weight.dtype))
               for name, (*_, weight) in outline.items()}
    plan = split_torch_state_dict_into_shards(planned, max_shard_size=SHARD)
    with Progress("merge", total=len(planned), unit="tensor") as bar:
        for filename, names in plan.filename_to_tensors.items():
            tensors = {}
            for name in names:
                path, key, _ = outline[name]
                with open_safetensors(path) as file:
                    weight = file.get_tensor(key)
                if (module := name.removesuffix(".weight")) in factors:
                    weight = merged(weight, *factors[module])
                tensors[name] = weight.to(planned[name].dtype)
                check_finite(tensors[name], f"{key}, merged,", path,
                             "use --dtype float32 or other weights")
                bar.update()
            save_shard(tensors, folder / filename)
    if plan.is_sharded:
        write_json(folder / INDEX, {"metadata": plan.metadata,
                                    "weight_map": plan.tensor_to_filename})
    for pattern in (*COPIED, *NOTICES):
        for path in filter(Path.is_file, base.glob(pattern)):
            copy = folder / path.relative_to(base)
            copy.parent.mkdir(exist_ok=True)
            write_atomic(copy, path.read_bytes())
    write_json(folder / "config.json", new_config(base, planned))


def save_shard(tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Write and flush: the folder is renamed as a whole, so its files must be on the disk."""
    with refusing(SafetensorError, "cannot be written", "--out", "check space and rights"):
        save_file(tensors, path, metadata={"format": "pt"})
    path.chmod(0o644 & ~umask())  # safetensors closes it to others
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def new_config(base: Path, weights: dict[str, torch.Tensor]) -> dict:
    """The base's config.json with the largest tensor's dtype, less the path it was loaded from and
    auto_map, which names code that is not copied: transformers has these families itself."""
    kind = max(weights.values(), key=lambda tensor: tensor.nbytes).dtype
    config = read_object(base / "config.json")
    for field in ("_name_or_path", "auto_map"):
        config.pop(field, None)
    field = "dtype" if "dtype" in config else "torch_dtype"  # transformers 5, 4: each reads both
    return {**config, field: str(kind).removeprefix("torch.")}
