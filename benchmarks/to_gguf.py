"""A Hugging Face folder as the GGUF file that llama.cpp reads, in f16 or Q8_0.

    python benchmarks/to_gguf.py FOLDER OUT.gguf --type Q8_0

For llama and qwen2 with plain rotary embeddings and a byte-level BPE. As llama.cpp's own converter
does it: matrices in the type asked for, norms and biases in float32, a tied head left out, and the
rows of llama's q and k reordered, as its rotary embedding turns neighbours (0, 1), (2, 3) where
Hugging Face's turns halves (0, E/2), (1, E/2 + 1). Qwen2's stay: llama.cpp turns halves there.

Letters: H heads, E numbers of a head, D width.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks.script import exit_code
from model import Config, load_model, read_config
from ptalign import Parser
from support.files import InputError, read_object
from tokenizer import Tokenizer

TYPES = ("F16", "Q8_0")
FAMILIES = ("llama", "qwen2")
QWEN2_SPLIT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
               r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")


def llama_order(weight: torch.Tensor, heads: int) -> torch.Tensor:  # (H·E, D) -> (H·E, D)
    """In each head 0, E/2, 1, E/2 + 1, ...: the two halves become neighbours."""
    rows, width = weight.shape
    halves = weight.view(heads, 2, rows // heads // 2, width)
    return halves.transpose(1, 2).reshape(rows, width)


def splitting(folder: Path, raw: dict) -> str:
    """llama.cpp's name for how tokenizer.json splits a text before its merges."""
    found = raw.get("pre_tokenizer") or {}
    steps = found.get("pretokenizers", [found])
    kinds = [step.get("type") for step in steps]
    if kinds == ["ByteLevel"] and steps[0].get("use_regex"):
        return "gpt-2"
    if kinds == ["Digits", "ByteLevel"] and steps[0]["individual_digits"]:
        return "smollm"
    if kinds == ["Split", "ByteLevel"] and steps[0]["pattern"] == {"Regex": QWEN2_SPLIT}:
        return "qwen2"
    raise InputError("llama.cpp has no name here for this way of splitting text",
                     folder / "tokenizer.json", "use SmolLM2, Qwen2.5 or the organism")


def add_tokenizer(writer, folder: Path, V: int) -> None:
    """Vocabulary and merges; rows of the head that no token has get a name of their own."""
    from gguf import TokenType
    raw, tokenizer = read_object(folder / "tokenizer.json", remedy="use another"), Tokenizer(folder)
    tokens, types = [f"[PAD{i}]" for i in range(V)], [TokenType.UNUSED] * V
    for token, i in raw["model"]["vocab"].items():
        tokens[i], types[i] = token, TokenType.NORMAL
    for added in raw["added_tokens"]:
        tokens[added["id"]] = added["content"]
        types[added["id"]] = TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(splitting(folder, raw))
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    # Older files write a merge as one string, newer ones as a pair.
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m)
                             for m in raw["model"]["merges"]])
    writer.add_eos_token_id(min(tokenizer.eos_ids))
    writer.add_add_bos_token(bool(tokenizer.encode("")))


def add_config(writer, config: Config) -> None:
    """What llama.cpp needs to know of config.json."""
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.ropes[0].theta)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)


def add_weights(writer, folder: Path, family: str, config: Config, kind: str) -> None:
    from gguf import MODEL_ARCH, GGMLQuantizationType, get_tensor_name_map
    from gguf.quants import quantize
    names = get_tensor_name_map(MODEL_ARCH[family.upper()], config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, weight in load_model(folder, device="cpu").state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        linear = name.split(".")[-2]
        if family == "llama" and linear in heads:
            weight = llama_order(weight, heads[linear])
        wide = GGMLQuantizationType[kind if weight.dim() == 2 else "F32"]
        data = quantize(weight.float().numpy(), wide)
        writer.add_tensor(names.get_name(name, (".weight", ".bias")), data, raw_dtype=wide)


def write_gguf(folder: Path, out: Path, kind: str) -> None:
    """`kind` is one of TYPES. InputError for a model that would come out wrong."""
    from gguf import GGUFWriter, LlamaFileType
    folder = Path(folder)
    family = read_object(folder / "config.json", remedy="use another").get("model_type")
    config = read_config(folder)
    plain = all(rope.kind == "default" for rope in config.ropes)
    biased = family == "llama" and (config.qkv_bias or config.o_bias)  # they'd be reordered too
    if family not in FAMILIES or not plain or biased or any(config.windows):
        raise InputError(f"not a plain model of {' or '.join(FAMILIES)}", folder, "use another")
    writer = GGUFWriter(out, family)
    writer.add_file_type(LlamaFileType[f"MOSTLY_{kind}"])
    add_config(writer, config)
    add_tokenizer(writer, folder, config.vocab_size)
    add_weights(writer, folder, family, config, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def build_parser() -> Parser:
    parser = Parser(prog="to_gguf.py", description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="of config.json, weights and tokenizer.json")
    parser.add_argument("out", type=Path, help="file to write")
    parser.add_argument("--type", choices=TYPES, default="F16", help="of the matrices")
    return parser


def run(argv: list[str] | None) -> None:
    options = build_parser().parse_args(argv)
    write_gguf(options.folder, options.out, options.type)


if __name__ == "__main__":
    sys.exit(exit_code("to_gguf", lambda: run(None)))
