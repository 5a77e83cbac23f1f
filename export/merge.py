"""An adapter merged into its base, file by file: the weights of a Hugging Face folder.

Whatever is not adapted is copied as it is, a tied head stays tied because it is not in the files,
and memory holds one shard. W + (α/r) B A is summed in fp32 and rounded once to the dtype of the
file. bf16 has 8 bits, so each weight is off by up to one part in 512: a change smaller than that
is lost where it falls on a large weight, which an adapter kept apart does not lose.
"""

import os
from collections import Counter
from math import prod
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from lora import merged
from model import DTYPES
from support.files import InputError, open_safetensors, read_json, write_atomic, write_json
from support.hub import INDEX, SINGLE, weight_files
from support.progress import Progress

SHARD = 5 * 10**9  # bytes of a weight file, the hub's own measure
FLOATS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}  # safetensors' names
COPIED = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json",
          "added_tokens.json", "merges.txt", "tokenizer.model", "chat_template.jinja",
          "chat_template.json", "generation_config.json", "LICENSE*", "NOTICE*", "USE_POLICY*")

Headers = dict[Path, dict[str, tuple[str, tuple[int, ...]]]]  # {file: {tensor: (dtype, shape)}}


def read_headers(base: Path) -> Headers:
    """What the weight files hold, without the weights."""
    headers = {}
    for path in weight_files(base):
        with open_safetensors(path) as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (no dict)
            headers[path] = {name: (part.get_dtype(), tuple(part.get_shape()))
                             for name, part in slices.items()}
    return headers


def block_shapes(headers: Headers) -> dict[str, tuple[int, int]]:
    """(out, in) of the matrices inside the blocks, by module name: what an adapter may stand on."""
    shapes = {}
    for path, tensors in headers.items():
        for name, (dtype, shape) in tensors.items():
            if len(shape) == 2 and ".layers." in name and name.endswith(".weight"):
                if dtype not in FLOATS:
                    raise InputError(f"{name} is stored as {dtype}", path,
                                     "use the model before quantization")
                shapes[name.removesuffix(".weight")] = shape
    return shapes


def write_merged(folder: Path, base: Path, headers: Headers, factors: dict[str, tuple], *,
                 dtype: str) -> None:
    """New shards, the base's other files, and its config.json with the dtype set right.

    `factors` is lora.read_adapter's; dtype auto keeps each tensor's own.
    """
    plan = plan_shards(headers, dtype)
    where, sizes = {}, Counter()  # file by tensor, bytes by dtype
    with Progress("merge", total=sum(map(len, plan)), unit="tensor") as bar:
        for i, sources in enumerate(plan, start=1):
            file = SINGLE if len(plan) == 1 else f"model-{i:05}-of-{len(plan):05}.safetensors"
            tensors = {}
            for name, path in sources.items():
                tensors[name] = merge_tensor(name, path, factors, dtype)
                where[name] = file
                sizes[tensors[name].dtype] += tensors[name].nbytes
                bar.update()
            save_shard(tensors, folder / file)
    if len(plan) > 1:
        write_json(folder / INDEX, {"metadata": {"total_size": sizes.total()},
                                    "weight_map": dict(sorted(where.items()))})
    for pattern in COPIED:
        for path in sorted(base.glob(pattern)):
            write_atomic(folder / path.name, path.read_bytes())
    write_json(folder / "config.json", new_config(base, sizes.most_common(1)[0][0]))


def plan_shards(headers: Headers, dtype: str) -> list[dict[str, Path]]:
    """Tensors in the base's order, in files of at most SHARD bytes; a larger one stands alone."""
    plan, size = [{}], 0
    for path, tensors in headers.items():
        for name, (kind, shape) in tensors.items():
            # 8: others (counters, masks) are small, so their largest kind is near enough.
            own = DTYPES.get(dtype, FLOATS[kind]).itemsize if kind in FLOATS else 8
            nbytes = own * prod(shape)
            if plan[-1] and size + nbytes > SHARD:
                plan.append({})
                size = 0
            plan[-1][name] = path
            size += nbytes
    return plan


def merge_tensor(name: str, path: Path, factors: dict[str, tuple], dtype: str):
    """A tensor as it will be written: merged if it is adapted, and in the dtype asked for."""
    with open_safetensors(path) as file:
        weight = file.get_tensor(name)
    if weight.dtype not in FLOATS.values():
        return weight
    wanted, module = DTYPES.get(dtype, weight.dtype), name.removesuffix(".weight")
    if module in factors:
        weight = merged(weight, *factors[module])
    return weight.to(wanted)


def save_shard(tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Write and flush: the folder is renamed as a whole, so its files must be on the disk."""
    try:
        save_file(tensors, path, metadata={"format": "pt"})
    except SafetensorError as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"cannot be written ({reason})", "--out",
                         "check space and rights") from None
    path.chmod(0o644)  # safetensors closes it to others
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def new_config(base: Path, kind: torch.dtype) -> dict:
    """The base's config.json with the dtype of the weights, less the path it was loaded from."""
    config = read_json(base / "config.json")
    config.pop("_name_or_path", None)
    field = "dtype" if "dtype" in config else "torch_dtype"  # transformers 5, 4: each reads both
    return {**config, field: str(kind).removeprefix("torch.")}
