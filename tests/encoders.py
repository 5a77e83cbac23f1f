"""A tiny random sentence encoder in sentence-transformers' layout, and texts of its words."""

from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer as Backend
from tokenizers import models, normalizers, pre_tokenizers, processors

from support.files import write_json

VOCABULARY = (
    "[PAD] [UNK] [CLS] [SEP] the tea is warm cold kind and so he she they may wait drink it "
    "with care never mind how dull bus was late ask your friend . , ? ! ##s ##ly")
WORDS = VOCABULARY.split()
TEXTS = ["the tea is warm.", "", "ask your friend, she may wait", "Dull! " * 40, "the bus was late"]


def write_encoder(folder: Path, **changes) -> Path:
    """A random BERT of two layers in sentence-transformers' layout."""
    folder.mkdir(parents=True, exist_ok=True)
    D, F = 24, 40
    config = {"model_type": "bert", "hidden_act": "gelu", "hidden_size": D,
              "intermediate_size": F, "num_hidden_layers": 2, "num_attention_heads": 3,
              "max_position_embeddings": 64, "type_vocab_size": 2, "vocab_size": len(WORDS),
              "layer_norm_eps": 1e-12, "pad_token_id": 0, **changes}
    write_json(folder / "config.json", config)
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": 32})
    backend = Backend(models.WordPiece({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    backend.enable_truncation(8)  # as the published file does, which cuts at 128
    backend.enable_padding(length=8)
    backend.save(str(folder / "tokenizer.json"))
    shapes = {"embeddings.word_embeddings.weight": (len(WORDS), D),
              "embeddings.position_embeddings.weight": (64, D),
              "embeddings.token_type_embeddings.weight": (2, D)}
    linears = {"attention.self.query": (D, D), "attention.self.key": (D, D),
               "attention.self.value": (D, D), "attention.output.dense": (D, D),
               "intermediate.dense": (F, D), "output.dense": (D, F)}
    norms = ["embeddings.LayerNorm"]
    for layer in (f"encoder.layer.{i}." for i in range(2)):
        for name, shape in linears.items():
            shapes |= {f"{layer}{name}.weight": shape, f"{layer}{name}.bias": shape[:1]}
        norms += [f"{layer}attention.output.LayerNorm", f"{layer}output.LayerNorm"]
    for name in norms:
        shapes |= {f"{name}.weight": (D,), f"{name}.bias": (D,)}
    torch.manual_seed(1)
    weights = {name: torch.randn(shape) * 0.4 + float("LayerNorm.weight" in name)
               for name, shape in shapes.items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
