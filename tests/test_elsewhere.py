"""docs/elsewhere.md: what other programs make of an adapter and of a merged model.

transformers and PEFT run where they are installed; of vLLM, whose wheel wants a GPU, its rule for
names is checked; of llama.cpp the lines that `export` prints, and (slow) its greedy text on a
merged model by the file that benchmarks/to_gguf.py writes.
"""

import json
import shlex

import pytest
import torch
from safetensors.torch import load_file
from test_export import ROWS, exported, main, run  # noqa: F401 (a fixture)
from test_llama_cpp import peer

from generate import Sampling, generate
from lora import load_adapter
from model import load_model
from support.adapters import WEIGHTS
from tokenizer import Tokenizer

PROMPTS = [row["prompt"] for row in ROWS[2:]]
NEW = 24  # tokens


def ours(run) -> list[str]:
    """Greedy answers of base and adapter, not merged, in fp32."""
    tokenizer = Tokenizer(run / "model")
    model = load_model(run / "model", device="cpu", dtype="float32")
    load_adapter(model, run / "adapter")
    ids = [tokenizer.encode_prompt(prompt, "chat") for prompt in PROMPTS]
    return [done.text for done in generate(model, tokenizer, ids, Sampling(max_new_tokens=NEW))]


def test_peft_text(run, tmp_path):
    """transformers + PEFT on the exported adapter: the same greedy text."""
    transformers = pytest.importorskip("transformers", reason="a development package")
    peft = pytest.importorskip("peft", reason="a development package")
    out = exported(run, tmp_path / "out", "--to", "peft")
    base = transformers.AutoModelForCausalLM.from_pretrained(run / "model")
    model = peft.PeftModel.from_pretrained(base, out)
    tokenizer = transformers.AutoTokenizer.from_pretrained(run / "model")
    for prompt, text in zip(PROMPTS, ours(run), strict=True):
        inputs = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], return_dict=True, add_generation_prompt=True,
            return_tensors="pt")
        new = model.generate(**inputs, do_sample=False, max_new_tokens=NEW)
        told = tokenizer.decode(new[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True)
        assert told == text and text


def test_names_as_vllm_reads_them(run, tmp_path):
    """vLLM takes base_model.model.MODULE.lora_A.weight and .lora_B.weight, MODULE being a linear of
    the base whose last name stands in target_modules, and a config of these fields
    (vllm/lora/utils.py: parse_fine_tuned_lora_name; vllm/lora/peft_helper.py)."""
    out = exported(run, tmp_path / "out", "--to", "peft")
    config = json.loads((out / "adapter_config.json").read_text())
    shapes = {name.removesuffix(".weight"): tensor.shape
              for name, tensor in load_file(run / "model" / "model.safetensors").items()}
    assert config["r"] == 4 and config["lora_alpha"] == 32 and config["bias"] == "none"
    assert not config["modules_to_save"] and not config["use_dora"]
    for name, tensor in load_file(out / WEIGHTS).items():
        first, second, *module, side, last = name.split(".")
        assert (first, second, last) == ("base_model", "model", "weight")
        assert side in ("lora_A", "lora_B") and module[-1] in config["target_modules"]
        wide, narrow = shapes[".".join(module)]
        assert tensor.shape == ((4, narrow) if side == "lora_A" else (wide, 4))


@pytest.mark.parametrize("to, script", [("merged", "convert_hf_to_gguf.py"),
                                        ("peft", "convert_lora_to_gguf.py")])
def test_converter_line(run, tmp_path, capsys, to, script):
    """Quoted for a shell; the adapter's names the base's folder, whose config.json it reads."""
    out = exported(run, tmp_path / "an export", "--to", to)
    line = capsys.readouterr().err.splitlines()[-1].partition("Ollama: ")[2]
    base = ["--base", str(run / "model")] if to == "peft" else []
    assert shlex.split(line) == ["python", script, str(out), *base, "--outfile", f"{out}.gguf"]


@torch.no_grad()
@pytest.mark.slow
def test_llama_cpp_text(run, tmp_path):
    """A merged model in f16: each greedy token is our likeliest one too, but for near ties, of
    which random weights have many."""
    out = exported(run, tmp_path / "out")
    tokenizer, model = Tokenizer(out), load_model(out, device="cpu", dtype="float32")
    prompts = [tokenizer.encode_prompt(prompt, "chat") for prompt in PROMPTS]
    server, found = peer(out, "F16", context=256), []
    for ids, row in zip(prompts, server.complete(prompts, NEW, {}, prefix=0), strict=True):
        logits = model(torch.tensor([ids + row["tokens"]]))[0, len(ids) - 1:-1]  # (NEW, V)
        logits[:, sorted(tokenizer.eos_ids)] = -torch.inf  # this server goes past the end
        lost = logits.amax(-1) - logits[torch.arange(NEW), row["tokens"]]
        assert lost.max() < 0.1
        found += lost.tolist()
    assert sum(x == 0 for x in found) > 0.9 * len(found)


def test_nf4_adapter_is_a_plain_one(run, tmp_path):
    """What was trained on a 4-bit base has the same files: nothing of the base's form is in it."""
    assert main("train", "--model", run / "model", "--data", run / "data.jsonl", "--out",
                tmp_path / "a", "--dtype", "float32", "--base-dtype", "nf4", "--rank", 4) == 0
    names = [set(load_file(folder / WEIGHTS)) for folder in (run / "adapter", tmp_path / "a")]
    assert names[0] == names[1]
    out = exported(run, tmp_path / "out", adapter=tmp_path / "a")
    assert load_model(out, device="cpu", dtype="float32") and "base_dtype nf4" in (
        out / "README.md").read_text()
