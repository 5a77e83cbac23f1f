"""benchmarks/to_gguf.py and llama_cpp.py: llama.cpp on a converted folder against transformers, and
support/endpoint.py on its server.

On the CPU. Random models of both families first, where a wrong order of q's and k's rows, a lost
bias or an untied head changes every answer; SmolLM2 where it is at hand. A test that needs
llama.cpp is slow: its wheel is built for any machine.
"""

import json
import sys
from dataclasses import replace

import pytest
import torch
from conftest import write_model

from benchmarks import generate, servers, timing
from benchmarks.llama_cpp import WORTH_SAVING, Server
from benchmarks.timing import Unavailable
from benchmarks.to_gguf import llama_order, run, write_gguf
from generate import Sampling
from generate import generate as own_generate
from model import load_model
from support.endpoint import Endpoint
from support.files import InputError
from tokenizer import Tokenizer

TEXTS = ["The capital of France is", "How do I keep a secret?", "Water boils at", "1. Answer:"]
SAMPLED = {"temperature": 1.0, "top_p": 0.95}


def peer(folder, kind: str, *, context: int = 256) -> Server:
    for package in ("xllamacpp", "gguf"):
        pytest.importorskip(package, reason=f"{package} is not installed (requirements-dev.txt)")
    return Server(folder, kind, slots=len(TEXTS), context=context)


def greedy(folder, prompts: list[list[int]], count: int) -> list[list[int]]:
    """Of transformers in float32, whose rounding is nearer to f16's than bfloat16's is."""
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    plain = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    return [model.generate(torch.tensor([ids]), max_new_tokens=count, min_new_tokens=count,
                           pad_token_id=0, **plain)[0, len(ids):].tolist() for ids in prompts]


def agreeing(wanted: list[list[int]], rows: list[dict]) -> int:
    """How many answers are wholly the same."""
    return sum(row["tokens"] == tokens for row, tokens in zip(rows, wanted, strict=True))


def encoded(folder) -> list[list[int]]:
    tokenizer = Tokenizer(folder)
    return [tokenizer.encode(text, special=False) for text in TEXTS]


def test_halves_become_neighbours():
    rows = torch.arange(8.0)[:, None].expand(8, 3)  # two heads of four numbers
    assert llama_order(rows, 2)[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


@pytest.mark.parametrize("changes", [{"model_type": "mistral"}, {"attention_bias": True}, {
    "rope_scaling": {"rope_type": "linear", "factor": 2.0}}])
def test_what_would_come_out_wrong_is_refused(tmp_path, changes):
    pytest.importorskip("gguf", reason="gguf is not installed (requirements-dev.txt)")
    with pytest.raises(InputError, match="not a plain model"):
        write_gguf(write_model(tmp_path / "m", **changes), tmp_path / "m.gguf", "F16")
    assert not (tmp_path / "m.gguf").exists()


def test_the_command_writes_a_file(tiny_folder, tmp_path):
    """A tied head is left out, and only matrices are rounded."""
    gguf = pytest.importorskip("gguf", reason="gguf is not installed (requirements-dev.txt)")
    run([str(tiny_folder), str(tmp_path / "m.gguf"), "--type", "Q8_0"])
    tensors = {t.name: t for t in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    assert "output.weight" not in tensors and len(tensors) == 2 + 2 * 9
    assert all(t.tensor_type.name == ("F32" if "norm" in name else "Q8_0")
               for name, t in tensors.items())


def test_without_the_wheel_the_peer_says_so(tiny_folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    with pytest.raises(Unavailable, match=r"(xllamacpp|gguf) is not installed"):
        Server(tiny_folder, "F16", slots=1, context=64)


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": False}, {
    "model_type": "qwen2", "num_key_value_heads": 4}])
def test_greedy_tokens_of_random_models(tmp_path, changes):
    folder = write_model(tmp_path / "m", **changes)
    server, prompts = peer(folder, "F16"), encoded(folder)
    wanted = greedy(folder, prompts, 8)
    assert len({token for answer in wanted for token in answer}) > 8  # no repeated token
    # A model of random weights has near ties; a wrong conversion agrees in none.
    assert agreeing(wanted, server.complete(prompts, 8, {}, prefix=0)) >= len(TEXTS) - 1


@pytest.mark.slow
def test_a_prefix_is_computed_once_and_nothing_is_kept(tiny_folder):
    server = peer(tiny_folder, "F16")
    prefix = encoded(tiny_folder)[1] * 5
    prompts = [prefix + prompt for prompt in encoded(tiny_folder)]
    whole = server.complete(prompts, 6, {}, prefix=0)
    assert len(prefix) >= WORTH_SAVING
    for row, prompt in zip(server.complete(prompts, 6, {}, len(prefix)), prompts, strict=True):
        assert row["timings"]["cache_n"] == len(prefix)
        assert row["timings"]["prompt_n"] == len(prompt) - len(prefix)
    again = server.complete(prompts, 6, {}, prefix=0)
    assert [row["tokens"] for row in again] == [row["tokens"] for row in whole]
    assert not any(row["timings"]["cache_n"] for row in whole + again)


@pytest.mark.slow
def test_sampling_is_as_asked(tiny_folder):
    """Every answer has its full length, no sampler is at work but those two, and answers differ."""
    server, prompts = peer(tiny_folder, "Q8_0"), encoded(tiny_folder)
    rows = server.complete(prompts, 16, SAMPLED, prefix=0)
    assert [len(row["tokens"]) for row in rows] == [16] * len(prompts)
    used = rows[0]["generation_settings"]
    assert used["samplers"] == ["top_p", "temperature"] and used["temperature"] == 1
    assert used["top_p"] == pytest.approx(0.95) and used["top_k"] == used["min_p"] == 0
    assert used["repeat_penalty"] == 1 and used["ignore_eos"]
    plain = server.complete(prompts, 16, {}, prefix=0)
    assert agreeing([row["tokens"] for row in plain], rows) == 0


@pytest.mark.slow
def test_the_benchmark_runs_it(tiny_folder, tmp_path, monkeypatch):
    """Beside ours in each case; where gguf is missing it is listed with that reason."""
    for package in ("xllamacpp", "gguf"):
        pytest.importorskip(package, reason=f"{package} is not installed (requirements-dev.txt)")
    monkeypatch.setattr(timing, "copy_bandwidth", lambda _: 1e10)
    command = ["--model", str(tiny_folder), "--device", "cpu", "--rows", "2", "--new-tokens", "3",
               "--rounds", "1", "--only", "ours,llama.cpp,llama.cpp-q8", "--out"]
    assert generate.main([*command, str(tmp_path / "a.json")]) == 0
    whole = json.loads((tmp_path / "a.json").read_text())
    assert len(whole["results"]) == 6 and not whole["missing"]
    assert all(set(result["peers"]) == {"ours", "llama.cpp", "llama.cpp-q8"}
               for result in whole["results"])
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert generate.main([*command, str(tmp_path / "b.json"), "--cases", "chat"]) == 0
    assert "llama.cpp (gguf is not installed)" in (tmp_path / "b.md").read_text()


@pytest.mark.slow
def test_endpoint(tiny_folder):
    """support/endpoint.py on a real server: its probes pass, greedy text is `generate`'s but for
    near ties, another seed draws another text, and a list whose EOS is banned goes to its limit."""
    server, tokenizer = peer(tiny_folder, "F16"), Tokenizer(tiny_folder)
    place = Endpoint([f"{server.server.listening_address}/v1"], "tiny", tokenizer, context=256,
                     concurrency=len(TEXTS))
    prompts, model = encoded(tiny_folder), load_model(tiny_folder, device="cpu", dtype="float32")

    def served(sampling: Sampling, seed: int) -> list[dict]:
        rows = dict(place.each([(i, ids, seed) for i, ids in enumerate(prompts)], sampling))
        return [rows[i] for i in range(len(prompts))]

    plain, drawn = Sampling(8), Sampling(24, temperature=1.0, top_p=0.95)
    wanted = own_generate(model, tokenizer, prompts, plain)
    same = [row["text"] == done.text for row, done in zip(served(plain, 1), wanted, strict=True)]
    assert sum(same) >= len(TEXTS) - 1
    texts = [{row["text"] for row in served(drawn, seed)} for seed in (1, 2)]
    assert not texts[0] & texts[1]
    listed = served(replace(drawn, min_lines=10**6), 3)
    assert {(row["finish"], row["n_tokens"]) for row in listed} == {("length", 24)}


@pytest.mark.slow
def test_the_servers_benchmark(tiny_folder, tmp_path):
    for package in ("xllamacpp", "gguf"):
        pytest.importorskip(package, reason=f"{package} is not installed (requirements-dev.txt)")
    assert servers.main(["--model", str(tiny_folder), "--out", str(tmp_path / "page.md")]) == 0
    page = (tmp_path / "page.md").read_text()
    assert "| another text for another seed | yes |" in page and "ended early | 0 |" in page


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.parametrize("kind, least", [("F16", 3), ("Q8_0", 2)])
def test_greedy_text_of_a_real_model(real_folder, kind, least):
    """Rounding may part one answer late; Q8_0 is a little another model."""
    server, prompts = peer(real_folder, kind), encoded(real_folder)
    text = TEXTS[1] + " Don't\n\n  1234"
    split = server.post("/tokenize", {"content": text})["tokens"]
    assert split == Tokenizer(real_folder).encode(text, special=False)
    rows = server.complete(prompts, 16, {}, prefix=0)
    assert agreeing(greedy(real_folder, prompts, 16), rows) >= least
