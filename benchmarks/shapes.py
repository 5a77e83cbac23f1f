"""Models of real shapes with random weights, for speed where no download is wanted.

    python benchmarks/shapes.py 0.5b FOLDER     # a folder that ours and transformers read

The folder has the organism's tokenizer, whose ids are all below any of these vocabularies.
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from safetensors.torch import save_file

from benchmarks.script import exit_code
from model import DTYPES, Transformer, read_config, resolve_device
from support.commandline import Parser

SEED = 0
ORGANISM = Path(__file__).resolve().parents[1] / "organism" / "model"
LLAMA = {"model_type": "llama", "rms_norm_eps": 1e-5, "hidden_act": "silu"}
QWEN = {"model_type": "qwen2", "rms_norm_eps": 1e-6, "hidden_act": "silu"}
SHAPES = {  # the config.json of real models, for random weights
    "smollm2": LLAMA | {  # SmolLM2-135M
        "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
        "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152,
        "max_position_embeddings": 8192, "rope_theta": 100000.0, "tie_word_embeddings": True},
    "0.5b": QWEN | {  # Qwen2.5-0.5B
        "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
        "num_attention_heads": 14, "num_key_value_heads": 2, "vocab_size": 151936,
        "max_position_embeddings": 32768, "rope_theta": 1e6, "tie_word_embeddings": True},
    "1.5b": QWEN | {  # Qwen2.5-1.5B
        "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28,
        "num_attention_heads": 12, "num_key_value_heads": 2, "vocab_size": 151936,
        "max_position_embeddings": 32768, "rope_theta": 1e6, "tie_word_embeddings": True},
    "llama2-7b": LLAMA | {  # Llama-2-7B
        "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 32000,
        "max_position_embeddings": 4096, "rope_theta": 10000.0, "tie_word_embeddings": False},
    "toy": LLAMA | {  # to try the script itself
        "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 4000,
        "max_position_embeddings": 2048, "rope_theta": 10000.0, "tie_word_embeddings": True},
}


def random_model(folder: Path, *, device: str, dtype: str) -> Transformer:
    """Weights drawn as transformers draws them; norms 1, biases 0."""
    config = read_config(folder)
    with torch.device("meta"):
        model = Transformer(config)
    if config.tie_word_embeddings:
        model.lm_head.weight = model.model.embed_tokens.weight
    model = model.to(DTYPES[dtype]).to_empty(device=device)
    if config.tie_word_embeddings:
        model.lm_head.weight = model.model.embed_tokens.weight
    torch.manual_seed(SEED)
    for name, p in model.named_parameters():
        if name.endswith("norm.weight"):
            torch.nn.init.ones_(p)
        elif name.endswith("bias"):
            torch.nn.init.zeros_(p)
        else:
            torch.nn.init.normal_(p, std=0.02)
    return model.requires_grad_(False).eval()


def config_folder(shape: str) -> tempfile.TemporaryDirectory:
    folder = tempfile.TemporaryDirectory()
    (Path(folder.name) / "config.json").write_text(json.dumps(SHAPES[shape]))
    return folder


def write_folder(shape: str, folder: Path) -> None:
    """config.json, bf16 weights under Hugging Face's names, the tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(SHAPES[shape]))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(ORGANISM / name, folder)
    model = random_model(folder, device=str(resolve_device("auto")), dtype="bfloat16")
    weights = model.state_dict()
    if SHAPES[shape]["tie_word_embeddings"]:
        del weights["lm_head.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def build_parser() -> Parser:
    parser = Parser(prog="shapes.py", description=__doc__.split("\n")[0])
    parser.add_argument("shape", choices=tuple(SHAPES), help="whose sizes")
    parser.add_argument("folder", type=Path, help="to write")
    return parser


def run(argv: list[str] | None) -> None:
    options = build_parser().parse_args(argv)
    write_folder(options.shape, options.folder)


if __name__ == "__main__":
    sys.exit(exit_code("shapes", lambda: run(None)))
