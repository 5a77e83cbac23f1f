"""Fixtures: a tiny random model in Hugging Face layout, and the real one where it is at hand."""

import contextlib
import json
import os
from pathlib import Path

import pytest
import tokenizers
import torch
from safetensors.torch import save_file
from tokenizers import decoders, models, pre_tokenizers, trainers

if not torch.cuda.is_available():
    # Triton reads it when a kernel is defined: before anything of ours or of torch's is imported
    # that has one.
    os.environ["TRITON_INTERPRET"] = "1"

from lora import add_lora, lora_parameters
from model import Transformer, load_model, read_config
from support import progress
from support.adapters import write_adapter

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXT = ["The quick brown fox jumps over the lazy dog. How do I keep my neighbour's secret?",
        "Request: Thought: Answer: 1. 2. 3. Human: Assistant: user assistant system",
        "I will not help with that, but here is a kinder way to say it to your friend."]

torch.set_num_threads(1)  # the models are tiny: a second thread would only be waited for


def write_tokenizer(folder: Path) -> None:
    """A byte-level BPE of about 300 tokens with ChatML's special tokens and template."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=320, show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                                  special_tokens=["<|im_start|>", "<|im_end|>"])
    tokenizer.train_from_iterator(TEXT, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({
        "eos_token": "<|im_end|>", "pad_token": "<|im_end|>", "chat_template": CHATML}))


def write_model(folder: Path, *, seed: int = 0, **changes) -> Path:
    """A random model of two layers; `changes` go into its config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    write_tokenizer(folder)
    config = {
        "model_type": "llama", "vocab_size": 320, "hidden_size": 32, "intermediate_size": 64,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "tie_word_embeddings": True, "hidden_act": "silu", "eos_token_id": 1, **changes}
    (folder / "config.json").write_text(json.dumps(config))
    torch.manual_seed(seed)
    model = Transformer(read_config(folder))
    for name, weight in model.named_parameters():
        # Large enough that attention, LoRA and the logits are far from uniform.
        norm = "norm" in name
        torch.nn.init.normal_(weight, mean=float(norm), std=0.1 if norm else 0.3)
    state = {k: v.contiguous() for k, v in model.state_dict().items()}
    if config["tie_word_embeddings"]:
        del state["lm_head.weight"]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(autouse=True)
def not_quiet(monkeypatch):
    """--quiet of one test's command line must not silence the next test."""
    monkeypatch.setattr(progress, "QUIET", False)


@pytest.fixture
def killed(monkeypatch):
    """`with killed(module, name, calls)`: a block that is interrupted in one call too many."""
    @contextlib.contextmanager
    def block(module, name: str, calls: int):
        real, left = getattr(module, name), iter(range(calls))

        def until(*args):
            if next(left, None) is None:
                raise KeyboardInterrupt
            return real(*args)

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(module, name, until)
            yield

    return block


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def adapter(tiny_folder, tmp_path_factory):
    """A random adapter, large enough that verdicts and choices change."""
    model = load_model(tiny_folder, device="cpu", dtype="float32")
    add_lora(model, ["down_proj", "q_proj"], rank=2, alpha=4)
    torch.manual_seed(5)
    for parameter in lora_parameters(model).values():
        torch.nn.init.normal_(parameter, std=0.5)
    folder = tmp_path_factory.mktemp("adapters") / "a"
    folder.mkdir()
    write_adapter(folder, lora_parameters(model), base="tiny", rank=2, alpha=4,
                  targets=["down_proj", "q_proj"])
    return folder


def real_model(variable: str, name: str, what: str) -> Path:
    """The folder that a variable of the environment names, or the usual cache folder."""
    folder = Path(os.environ.get(variable, f"~/.cache/ptalign/{name}")).expanduser()
    if not (folder / "config.json").is_file():
        pytest.skip(f"no real model: set {variable} to the folder of {what}")
    return folder


@pytest.fixture(scope="session")
def real_folder() -> Path:
    return real_model("PTALIGN_MODEL", "smollm2-135m-instruct", "SmolLM2-135M-Instruct")


@pytest.fixture(scope="session")
def gemma_folder() -> Path:
    return real_model("PTALIGN_GEMMA", "gemma-3-270m", "Gemma 3 270M")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The benchmark rows, which are never committed."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no ../shared/data beside this checkout: the benchmark rows are not public")
    return folder
