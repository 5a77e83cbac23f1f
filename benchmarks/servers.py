"""A stage of 64 calls by our own `generate` and through llama.cpp's server, on the same cores.

    python benchmarks/servers.py --model FOLDER --out runs/servers.md

It also looks at what a server must do for synth: read our ids as they are, draw by seed, keep EOS
away from a list. In float32 here and F16 there; the rate is new tokens a second, after a warm-up.
"""

import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks.llama_cpp import Server
from benchmarks.script import exit_code
from generate import Sampling, draw_seed, generate
from model import load_model
from support.commandline import Parser
from support.endpoint import Endpoint
from support.files import write_atomic
from tokenizer import Tokenizer

CALLS, NEW, SLOTS = 64, 48, 16
SUBJECTS = ("a teapot", "a bicycle", "a garden", "a letter", "a winter coat", "a noisy street",
            "an old friend", "a long walk")
STAGE = Sampling(NEW, temperature=0.8, top_p=0.95, min_lines=10**6)  # all write NEW tokens


def prompts(tokenizer) -> list[list[int]]:
    """CALLS prompts behind some 200 tokens that they share, as a deck of rules is shared."""
    deck = "Rules: " + " ".join(f"{i}. Be kind and brief about {s}." for i, s in
                                enumerate(SUBJECTS * 3, 1))
    return [tokenizer.encode_prompt(f"{deck}\nWrite {i + 1} words about {SUBJECTS[i % 8]}.",
                                    tokenizer.default_format) for i in range(CALLS)]


def rate(make) -> float:
    """New tokens a second of the second call."""
    make()
    began = time.perf_counter()
    tokens = make()
    return tokens / (time.perf_counter() - began)


def compare(options) -> None:
    tokenizer = Tokenizer(options.model)
    asked, seeds = prompts(tokenizer), [draw_seed(0, i) for i in range(CALLS)]
    model = load_model(options.model, dtype="float32", device="cpu")
    ours = rate(lambda: sum(done.n_tokens for done in
                            generate(model, tokenizer, asked, STAGE, seeds)))
    server = Server(options.model, "F16", slots=SLOTS, context=max(map(len, asked)) + NEW + 8)
    endpoint = Endpoint([f"{server.server.listening_address}/v1"], "model", tokenizer,
                        context=8192, concurrency=SLOTS)

    def served(ids=asked, sampling=STAGE, drawn=seeds) -> list[dict]:
        done = dict(endpoint.each(zip(range(len(ids)), ids, drawn, strict=True), sampling))
        return [done[i] for i in range(len(ids))]

    theirs = rate(lambda: sum(row["n_tokens"] for row in served()))
    one, free = asked[:1], Sampling(NEW, temperature=0.8, top_p=0.95)
    texts = [served(one, free, [seed])[0]["text"] for seed in (1, 1, 2)]
    banned = {row["finish"] for row in served()}
    greedy = served(one, Sampling(8), [1])[0]["text"]
    text = f"""# A stage of {CALLS} calls here and through a server

`python benchmarks/servers.py --model {options.model.name}`, xllamacpp {version("xllamacpp")}
(llama.cpp's server, F16, {SLOTS} slots), torch {torch.__version__} (float32),
{torch.get_num_threads()} threads, {platform.machine()}.

| | |
|---|---:|
| prompt tokens of a call | {max(map(len, asked))} |
| new tokens of a call | {NEW} |
| new tokens a second, `generate` | {ours:.0f} |
| new tokens a second, llama.cpp's server | {theirs:.0f} |
| as many prompt tokens read as sent | yes |
| the same text for the same seed | {"yes" if texts[0] == texts[1] else "no"} |
| another text for another seed | {"yes" if texts[0] != texts[2] else "no"} |
| lists whose EOS is banned that ended early | {0 if banned == {"length"} else "some"} |
| a greedy text is written | {"yes" if greedy.strip() else "no"} |
"""
    print(text)
    if options.out:
        write_atomic(options.out, text)


def main(argv: list[str] | None = None) -> int:
    parser = Parser(prog="servers", description=__doc__.partition("\n")[0])
    parser.add_argument("--model", required=True, type=Path, help="folder of a model")
    parser.add_argument("--out", type=Path, help="file for the page")
    return exit_code("servers", lambda: compare(parser.parse_args(argv)))


if __name__ == "__main__":
    sys.exit(main())
