"""Which weights a model folder holds: its files and their tensors, read as transformers reads them.

As in version 5 of transformers (modeling_utils.py), model.safetensors counts before an index that
was left beside it, the names of a backbone may lack their "model.", and of a tied pair one is
enough. Only headers are read here; what has to be unpickled is refused."""

import math
from functools import lru_cache
from pathlib import Path

import torch

from support.files import InputError, open_safetensors, read_json, sha256, sha256_file
from support.progress import say

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
FLOATS = (torch.float32, torch.float16, torch.bfloat16)
BACKBONE = ("embed_tokens.", "layers.", "norm.")  # what stands below "model."

# {the model's name of a tensor: (its file, its name there, its dtype and shape on meta)}
Outline = dict[str, tuple[Path, str, torch.Tensor]]


def weight_names(folder: Path) -> list[str]:
    """The names of the weight files: the single one, or the distinct ones of an index, in order."""
    index = folder / INDEX
    if (folder / SINGLE).is_file() or not index.is_file():
        return [SINGLE]
    try:
        # Names only: a path could lead out of the folder.
        return sorted({Path(name).name for name in read_json(index)["weight_map"].values()})
    except (KeyError, TypeError, AttributeError):
        raise InputError("no weight_map", index, "download the index again") from None


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model folder; what would have to be unpickled is refused."""
    files = [folder / name for name in weight_names(folder)]
    pickled = sorted(folder.glob("*.bin")) + sorted(folder.glob("*.pt*"))
    if pickled and not any(folder.glob("*.safetensors")):
        raise InputError(f"only pickled weights ({pickled[0].name}), which can run code when read",
                         folder, "convert them to safetensors")
    for file in files:
        if not file.is_file():
            raise InputError(f"{file.name} is missing", folder, "download the folder again")
    return files


def weights_hash(folder: Path) -> str:
    """Over all weight files; a file that has not changed since is not read twice."""
    states = [(file, file.stat()) for file in weight_files(folder)]
    return sha256("".join(_hash(file, s.st_size, s.st_mtime_ns) for file, s in states))


@lru_cache(maxsize=256)
def _hash(file: Path, size: int, changed: int) -> str:
    return sha256_file(file)


def read_outline(folder: Path) -> Outline:
    """What the weight files hold, without the weights."""
    outline = {}
    for path in weight_files(folder):
        with open_safetensors(path) as file:  # mapped: what is not used is not read
            for key in file.keys():  # noqa: SIM118 (no dict)
                name = f"model.{key}" if key.startswith(BACKBONE) else key
                outline[name] = path, key, file.get_tensor(key).to("meta")
    return outline


def find_weights(folder: Path, shapes: dict[str, torch.Size], *, tied: bool) -> Outline:
    """The outline of the tensors of a model with these shapes, at least one of a tied pair. Raises
    InputError where one is missing, of another shape, or stands for what the model has not."""
    outline = read_outline(folder)
    absent = {HEAD: EMBEDDING, EMBEDDING: HEAD} if tied else {}
    for name, shape in shapes.items():
        if name not in outline:
            if absent.get(name) in outline:
                continue
            wrapped = [other for other in outline if other.endswith(f".{name}")]
            if wrapped:
                prefix = wrapped[0].removesuffix(name)
                raise InputError(f"the names of the weights begin with {prefix}", folder,
                                 "save the state_dict of the model inside that wrapper")
            raise InputError(f"no tensor {name}, which config.json asks for", folder,
                             "check config.json, or download the weights again")
        path, key, tensor = outline[name]
        if tensor.shape != shape:
            raise InputError(f"{key}: {list(tensor.shape)} where config.json makes it "
                             f"{list(shape)}", path, "check config.json")
        if tensor.dtype not in FLOATS:
            raise InputError(f"{key} is stored as {str(tensor.dtype).removeprefix('torch.')}", path,
                             "use the model before quantization")
    for name, (path, key, _) in outline.items():
        # Old files hold rotary frequencies as a buffer; they are computed here.
        if name not in shapes and not name.endswith("rotary_emb.inv_freq"):
            raise InputError(f"tensor {key} has no place in the model of config.json", path,
                             "use the plain model, before quantization and without a second head")
    return {name: found for name, found in outline.items() if name in shapes}


def tie(weights: dict[str, torch.Tensor]) -> bool:
    """One tensor for the embedding and the head, by what is there; False, and a warning, where the
    two differ: transformers 5 then leaves them apart."""
    embedding = weights.get(EMBEDDING, weights.get(HEAD))
    if HEAD in weights and not torch.equal(weights[HEAD], embedding):
        say("warning: config.json ties the head to the embedding, but the weights hold two")
        return False
    weights[EMBEDDING] = weights[HEAD] = embedding
    return True


def check_finite(tensor, name: str, where, remedy: str = "download it again") -> None:
    """InputError if a number of the tensor is NaN or infinite."""
    if not all(math.isfinite(end) for end in tensor.aminmax()):  # in one pass, without a copy
        raise InputError(f"{name} has NaN or infinite numbers", where, remedy)
