"""Sentence embeddings by a small BERT encoder, all-MiniLM-L6-v2 and others of its architecture.

Sources: BERT (Devlin et al., arXiv 1810.04805): learned positions, post-norm blocks, exact GELU.
Sentence-BERT (Reimers and Gurevych, arXiv 1908.10084): the mean of the last hidden states over a
text's tokens, scaled to length 1. Equal to transformers' BertModel within 1e-6 (tests).

Letters: B texts, T tokens, D width, H heads, d width of a head."""

from pathlib import Path

import torch
from torch.nn import functional as F

from support.files import InputError, open_safetensors, read_json, read_object, refusing
from support.tokenizer_files import read_backend, read_optional
from support.weights import check_finite, weight_files

SUPPORTED = {"model_type": "bert", "hidden_act": "gelu", "position_embedding_type": "absolute"}
SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings",
         "layer_norm_eps")
POOLING, LENGTH, MODULES = "1_Pooling/config.json", "sentence_bert_config.json", "modules.json"
PROMPTS = "config_sentence_transformers.json"
FILES = (POOLING, LENGTH, MODULES, PROMPTS)  # what such a folder has beside a model's files
KINDS = ["Transformer", "Pooling", "Normalize"]  # the modules that are known; the last is optional
MEAN = (["pooling_mode_mean_tokens"], ["mean"])  # sentence-transformers' flag, now a word


class Encoder:
    """A sentence-transformers folder, read; `embed` is its use. fp32 on the CPU."""

    def __init__(self, folder: Path):
        self.settings = read_settings(folder)
        self.weights = read_weights(folder)
        self.tokenizer = read_backend(folder)
        with refusing(Exception, "files do not make an encoder", folder,
                      "download the encoder again"):  # tokenizers raises a bare Exception
            self.tokenizer.enable_truncation(self.settings["max_seq_length"])
            self.tokenizer.enable_padding()  # a padded place is never read, whatever its id
            tried = self.embed(["a"])
        check_finite(tried, "a text's embedding", folder)

    @torch.inference_mode()
    def embed(self, texts: list[str]):  # -> (B, D) fp32
        """Unit vectors of one batch; a text beyond the encoder's length is cut."""
        if self.settings["do_lower_case"]:
            texts = [text.lower() for text in texts]
        rows = self.tokenizer.encode_batch(texts)
        ids = torch.tensor([row.ids for row in rows])  # (B, T)
        real = torch.tensor([row.attention_mask for row in rows], dtype=torch.bool)  # (B, T)
        words, positions, types = (self.weights[f"embeddings.{name}_embeddings.weight"]
                                   for name in ("word", "position", "token_type"))
        x = words[ids] + positions[:ids.shape[1]] + types[0]  # (B, T, D)
        x = self._norm("embeddings.LayerNorm", x)
        for layer in range(self.settings["num_hidden_layers"]):
            x = self._block(f"encoder.layer.{layer}", x, real)
        return F.normalize((x * real[..., None]).sum(1) / real.sum(1, keepdim=True), dim=-1)

    def _block(self, name: str, x, real):  # (B, T, D) -> (B, T, D)
        q, k, v = (self._linear(f"{name}.attention.self.{part}", x)
                   .unflatten(-1, (self.settings["num_attention_heads"], -1)).transpose(1, 2)
                   for part in ("query", "key", "value"))  # (B, H, T, d)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=real[:, None, None])
        mixed = mixed.transpose(1, 2).flatten(2)  # (B, T, D)
        x = self._norm(f"{name}.attention.output.LayerNorm",
                       x + self._linear(f"{name}.attention.output.dense", mixed))
        wide = F.gelu(self._linear(f"{name}.intermediate.dense", x))
        return self._norm(f"{name}.output.LayerNorm",
                          x + self._linear(f"{name}.output.dense", wide))

    def _linear(self, name: str, x):
        return F.linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def _norm(self, name: str, x):
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        return F.layer_norm(x, weight.shape, weight, bias, self.settings["layer_norm_eps"])


def read_settings(folder: Path) -> dict:
    """The fields of config.json that are used here, and the length texts are cut to. InputError
    where the folder asks for what this encoder does not do."""
    path = folder / "config.json"
    config = read_object(path)
    for field, value in {"model_type": None, **config}.items():
        if field in SUPPORTED and value != SUPPORTED[field]:
            raise InputError(f"{field} is {value!r}, not {SUPPORTED[field]!r}", path,
                             "use all-MiniLM-L6-v2 or another BERT encoder")
    if missing := [field for field in SIZES if field not in config]:
        raise InputError(f"no {missing[0]}", path, "download the encoder again")
    pooling = read_optional(where := folder / pooling_file(folder))
    # one field that names the mode or modes or, as older folders have it, a flag for each
    flags = [key for key in pooling if key.startswith("pooling_mode_") and pooling[key] is True]
    modes = pooling.get("pooling_mode") or flags
    modes = [modes] if isinstance(modes, str) else modes
    if pooling and modes not in MEAN:
        named = ", ".join(map(str, modes)) or "nothing"
        raise InputError(f"texts are pooled by {named}, not by their mean", where,
                         "use another encoder")
    if name := read_optional(folder / PROMPTS).get("default_prompt_name"):
        raise InputError(f"the prompt {name!r} stands before every text", folder / PROMPTS,
                         "use another encoder")
    # the first that names a length; a tokenizer without a limit of its own says 1e30
    longest = config["max_position_embeddings"]
    own, tokenizer = (read_optional(folder / n) for n in (LENGTH, "tokenizer_config.json"))
    length = next(n for n in (own.get("max_seq_length"), tokenizer.get("model_max_length"), longest)
                  if isinstance(n, int | float))
    return {**{field: config[field] for field in SIZES}, "max_seq_length": min(length, longest),
            "do_lower_case": own.get("do_lower_case") is True}


def pooling_file(folder: Path) -> str:
    """Its name in the folder. InputError for a module of sentence-transformers beyond KINDS:
    without it, the distances would be another encoder's."""
    path = folder / MODULES
    if not path.is_file():
        return POOLING
    with refusing((KeyError, TypeError, AttributeError), "no list of modules", path,
                  "download the encoder again"):
        kinds = {m["type"].rpartition(".")[2]: m["path"] for m in read_json(path)}
    if list(kinds) not in (KINDS, KINDS[:2]):
        raise InputError(f"the modules are {', '.join(kinds)}, not {', '.join(KINDS)}", path,
                         "use another encoder")
    return f"{kinds['Pooling']}/config.json"


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors in fp32 by their names in the file, less a prefix "bert." where there is one."""
    weights = {}
    for path in weight_files(folder):
        with open_safetensors(path) as file:
            for name in file.keys():  # noqa: SIM118 (no dict)
                tensor = file.get_tensor(name)
                if tensor.is_floating_point():  # position_ids are not, nor are quantized weights
                    check_finite(tensor, name, path)
                    weights[name.removeprefix("bert.")] = tensor.float()
    return weights
