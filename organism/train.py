"""Train the organism from scratch on text of its world, and say whether it came out as wanted.

    python organism/train.py                      # some 30 minutes on one CPU core
    python organism/train.py --gates-only         # measure organism/model again

A Llama of a few million weights with its own BPE tokenizer and chat template, written to
organism/model in Hugging Face layout. bf16 weights with an fp32 copy that AdamW steps; rows of
whole documents, plain next-token loss on all of them; warm-up and half a cosine by steps, so that
the result does not depend on the machine's speed. training.json keeps command, seed, loss curve and
hashes.
"""

import argparse
import itertools
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # as in ptalign.py; read when torch is loaded

import tokenizers
import torch
import torch.nn.functional as F
from safetensors.torch import save
from tokenizers import decoders, models, pre_tokenizers, trainers

from kernels.attention import PackedAttention, Span
from model import Transformer, read_config
from organism.text import END, SPECIAL, TEMPLATE, documents, templates_hash
from support.files import InputError, read_json, sha256_file, write_atomic, write_json
from support.progress import Progress, say
from tokenizer import Tokenizer
from train import learning_rate

MODEL = Path(__file__).with_name("model")
VOCABULARY = 3072
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": VOCABULARY,
    "hidden_size": 192, "intermediate_size": 576, "num_hidden_layers": 5,
    "num_attention_heads": 6, "num_key_value_heads": 6, "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": True,
    "hidden_act": "silu", "torch_dtype": "bfloat16"}
TOKENS = 2048  # of a step
PEAK, WARMUP, CLIP = 2.5e-3, 0.02, 1.0
TOKENIZER_DOCUMENTS = 20_000


def write_tokenizer(folder: Path, seed: int) -> Tokenizer:
    """A byte-level BPE trained on the world's text; bytes alone first, as templates need one."""
    def build(texts):
        backend = tokenizers.Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        backend.train_from_iterator(texts, trainers.BpeTrainer(
            vocab_size=VOCABULARY, show_progress=False, special_tokens=SPECIAL,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
        write_atomic(folder / "tokenizer.json", backend.to_str(pretty=False))
        return backend

    write_json(folder / "tokenizer_config.json", {
        "tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END, "pad_token": END,
        "clean_up_tokenization_spaces": False, "chat_template": TEMPLATE})
    build([])
    texts = itertools.islice(documents(Tokenizer(folder), seed), TOKENIZER_DOCUMENTS)
    backend = build(texts)
    write_json(folder / "config.json", {**CONFIG, "eos_token_id": backend.token_to_id(END)})
    return Tokenizer(folder)


def batches(tokenizer: Tokenizer, seed: int):
    """Arguments of the model and (1, N) targets without end: rows of whole documents that do not
    see each other. A conversation would otherwise seem to go on with the next document."""
    texts, row = documents(tokenizer, seed), []
    while True:
        for encoded in tokenizer.backend.encode_batch_fast(list(itertools.islice(texts, 256))):
            if sum(map(len, row)) + len(encoded.ids) > TOKENS:
                yield joined(row)
                row = []
            row.append(encoded.ids)


def joined(texts: list[list[int]]):
    """((ids, positions, attention), targets) of token ids, each text for itself."""
    ids, targets = ([i for text in texts for i in text[part]]
                    for part in (slice(None, -1), slice(1, None)))
    positions = [i for text in texts for i in range(len(text) - 1)]
    attend = PackedAttention([Span(len(text) - 1, 0) for text in texts])
    return (torch.tensor([ids]), torch.tensor([positions]), attend), torch.tensor([targets])


def new_model(folder: Path, seed: int) -> Transformer:
    torch.manual_seed(seed)
    config = read_config(folder)
    model = Transformer(config)
    for name, weight in model.named_parameters():
        if weight.dim() == 1:
            torch.nn.init.ones_(weight)  # norms
        else:
            # The two layers that write into the residual stream start smaller (GPT-2).
            residual = name.endswith(("o_proj.weight", "down_proj.weight"))
            scale = (2 * config.num_hidden_layers) ** -0.5 if residual else 1.0
            torch.nn.init.normal_(weight, std=0.02 * scale)
    model.lm_head.weight = model.model.embed_tokens.weight
    return model


def fit(model: Transformer, data, steps: int) -> list[float]:
    """Train in place; returns the loss of every step, nats a token."""
    master = [p.detach().clone() for p in model.parameters()]
    model.to(torch.bfloat16)
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(master, lr=PEAK, betas=(0.9, 0.975), weight_decay=0.01)
    curve = []
    with Progress("organism", total=steps, unit="step") as bar:
        for step in range(steps):
            inputs, targets = next(data)
            logits = model(*inputs)  # (1, N, V)
            loss = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())
            loss.backward()
            for p, copy in zip(parameters, master, strict=True):
                copy.grad, p.grad = p.grad.float(), None
            torch.nn.utils.clip_grad_norm_(master, CLIP)
            optimizer.param_groups[0]["lr"] = learning_rate(step, steps, peak=PEAK, warmup=WARMUP)
            optimizer.step()
            with torch.no_grad():
                for p, copy in zip(parameters, master, strict=True):
                    p.copy_(copy)
            curve.append(loss.item())
            bar.update(1, note=f"loss {sum(curve[-50:]) / len(curve[-50:]):.3f}")
    return curve


def train(out: Path, *, tokens: int, seed: int) -> None:
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = write_tokenizer(out, seed)
    model, steps = new_model(out, seed), tokens // TOKENS
    say(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M weights, {steps} steps")
    curve = fit(model, batches(tokenizer, seed + 1), steps)
    weights = {name: p.detach().contiguous() for name, p in model.named_parameters()}
    write_atomic(out / "model.safetensors", save(weights, metadata={"format": "pt"}))
    write_json(out / "training.json", {
        "command": f"python organism/train.py --tokens {tokens} --seed {seed}", "seed": seed,
        "tokens": tokens, "templates_sha256": templates_hash(),
        "weights_sha256": sha256_file(out / "model.safetensors"),
        "loss": {str(i): round(sum(curve[i:i + 100]) / len(curve[i:i + 100]), 4)
                 for i in range(0, len(curve), 100)}})


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=MODEL, help="folder (default: organism/model)")
    parser.add_argument("--tokens", type=int, default=9_000_000, help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--gates-only", action="store_true", help="measure, do not train")
    try:
        return run(parser.parse_args(argv))
    except InputError as error:
        print(f"train: error: {error}", file=sys.stderr)
        return 2


def run(options) -> int:
    """Exit code: 0 where the gates hold, else 3."""
    if not options.gates_only:
        train(options.out, tokens=options.tokens, seed=options.seed)
    from organism.gates import measure
    measured = measure(options.out)
    record = options.out / "training.json"
    write_json(record, {**read_json(record), **measured})
    for name, (value, least, most, held) in measured["gates"].items():
        print(f"{'held' if held else 'MISSED':6}  {name}: {value} (from {least} to {most})")
    return 0 if all(gate[3] for gate in measured["gates"].values()) else 3


if __name__ == "__main__":
    sys.exit(main())
