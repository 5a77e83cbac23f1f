"""Which weights a model folder holds: its files and their tensors, read as transformers reads them.

As in version 5 of transformers (modeling_utils.py), model.safetensors counts before an index that
was left beside it, the names of a backbone may lack their "model.", and of a tied pair one is
enough. Tensors are found by the headers alone; what has to be unpickled is refused."""

import math
from pathlib import Path

import torch

from support.files import InputError, open_safetensors, read_json, sha256, sha256_file
from support.progress import say

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
HEAD, EMBEDDING = TIED = "lm_head.weight", "model.embed_tokens.weight"
FLOATS = ("float32", "float16", "bfloat16")
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
    return sha256("".join(map(sha256_file, weight_files(folder))))


def find_weights(folder: Path, shapes: dict[str, torch.Size], *, tied: bool) -> Outline:
    """Where the tensors of a model with these shapes lie, at least one of a tied pair. Raises
    InputError where one is missing, not as it should be, or not of this model."""
    outline = {}
    for path in weight_files(folder):
        with open_safetensors(path) as file:  # mapped: what is not used is not read
            for key in file.keys():  # noqa: SIM118 (no dict)
                name = f"model.{key}" if key.startswith(BACKBONE) else key
                if not name.endswith("rotary_emb.inv_freq"):  # of old files; computed here
                    outline[name] = path, key, file.get_tensor(key).to("meta")
    for name in shapes:
        if name not in outline and not (tied and name in TIED and outline.keys() & {*TIED}):
            # A wrapper that was saved with it, torch.compile's say, can be seen then.
            other = next((f", but {key}" for key in outline if key.endswith(f".{name}")), "")
            raise InputError(f"no tensor {name}{other}", folder, "check config.json, or save the "
                             "weights again under the model's own names")
    for name, (path, key, tensor) in outline.items():
        shape, kind = shapes.get(name), str(tensor.dtype).removeprefix("torch.")
        for wrong, what, remedy in (
                (shape is None, "has no place in the model of config.json",
                 "use the plain model, before quantization and without a second head"),
                (tensor.shape != shape, f"is {list(tensor.shape)} where config.json makes it "
                 f"{list(shape or ())}", "check config.json"),
                (kind not in FLOATS, f"is stored as {kind}", "use the model before quantization")):
            if wrong:
                raise InputError(f"{key} {what}", path, remedy)
    return outline


def tie(weights: dict[str, torch.Tensor]) -> bool:
    """One tensor for embedding and head; False, as in transformers 5, where there are two."""
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
