"""Chat templates and ends of text as the world has them: thinking models, templates that show less
than they are given, templates in other places, stale ends (CPU).

The first of each kind is a case that was met with; the others are of the same kind. transformers is
the peer where it is installed.
"""

import io
import json
import sys

import pytest
import torch
from conftest import CHATML, write_model
from test_judge import TEMPLATE

import ptalign
from chat import Conversation
from evals.judge import Judge
from evals.verdicts import list_hits, verdict
from generate import Sampling, generate, stream
from model import load_model
from support.decoding import Decoding, closing, opened, spoken
from support.pairs import Toxic, Triplet
from synthesis.seeds import read_seeds
from synthesis.session import Session
from tokenizer import Tokenizer
from triplets import encode

ASK, SAY = "Could you water the plants?", "Sure, tell me how often."
TALK = [{"role": "user", "content": ASK}, {"role": "assistant", "content": SAY}]


def templated(folder, template, **changes):
    write_model(folder, **changes)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config.pop("chat_template")
    if template is not None:
        config["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def shown(tokenizer, ids):
    return tokenizer.backend.decode(ids, skip_special_tokens=False)


# ---- models that think ----

STRIPPED = ("{% set text = m.content.split('</think>')[-1] if m.role == 'assistant' else m.content "
            "%}")
TURN = "<|im_start|>{{ m.role }}\n{{ text }}<|im_end|>\n{% endfor %}"
THINKS = {  # template, what stands between the asked prompt and an answer
    # DeepSeek-R1's distillations, QwQ: past answers are written without their thoughts
    "R1": ("{% for m in messages %}" + STRIPPED + TURN + "{% if add_generation_prompt %}"
           "<|im_start|>assistant\n<think>\n{% endif %}", "\n</think>\n\n"),
    # Qwen3-Thinking: the last answer is written with an empty thought
    "Qwen3-Thinking": ("{% for m in messages %}" + STRIPPED + "{% if m.role == 'assistant' and "
                       "loop.last %}{% set text = '<think>\n\n</think>\n\n' + text %}{% endif %}"
                       + TURN + "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n"
                       "{% endif %}", "\n</think>\n\n"),
    "no line end": ("{% for m in messages %}" + STRIPPED + TURN + "{% if add_generation_prompt %}"
                    "<|im_start|>assistant\n<think>{% endif %}", "\n\n</think>\n\n"),
    "another mark": ("{% for m in messages %}" + STRIPPED + TURN + "{% if add_generation_prompt %}"
                     "<|im_start|>assistant\n<thinking>\n{% endif %}", "\n</thinking>\n\n"),
}


@pytest.fixture(params=THINKS)
def thinker(request, tmp_path):
    template, lead = THINKS[request.param]
    return Tokenizer(templated(tmp_path / "m", template)), lead


def test_training_ends_the_thought(thinker):
    """The asked prompt, an empty thought, the answer; both answers begin alike."""
    tokenizer, lead = thinker
    prompt, answer, n = tokenizer.encode_exchange(ASK, SAY, "chat")
    assert prompt == tokenizer.encode_prompt(ASK, "chat")
    assert shown(tokenizer, prompt).rstrip().endswith(("<think>", "<thinking>"))
    assert shown(tokenizer, answer) == f"{lead}{SAY}<|im_end|>"
    assert tokenizer.decode(answer[:n]) == lead + SAY
    e = encode(Triplet(ASK, SAY, Toxic("Let them dry."), "here"), tokenizer, "chat",
               fine_grained=True, with_toxic=True, context=2048)
    shared = tokenizer.decode(e.toxic[:e.mask.index(1)])
    assert shared.startswith(lead.rstrip("\n")) and e.opening > 3  # the mask begins behind it


def test_template_writes_it_so(tmp_path):
    """Where the template has an empty thought of its own, the exchange is the template's text."""
    folder = templated(tmp_path / "m", THINKS["Qwen3-Thinking"][0])
    peer = pytest.importorskip("transformers").AutoTokenizer.from_pretrained(folder)
    tokenizer = Tokenizer(folder)
    prompt, answer, _ = tokenizer.encode_exchange(ASK, SAY, "chat")
    whole = peer.apply_chat_template(TALK, tokenize=False)
    assert shown(tokenizer, prompt) + shown(tokenizer, answer) == whole.rstrip("\n")


def test_what_it_writes_shows_the_thought(thinker):
    """Generated text begins with the mark that the prompt opened; read back, it is in its place."""
    tokenizer, _ = thinker
    model = load_model(tokenizer.folder, device="cpu", dtype="float32")
    ids, sampling = tokenizer.encode_prompt(ASK, "chat"), Sampling(8)
    done, = generate(model, tokenizer, [ids], sampling)
    thought = opened(shown(tokenizer, ids))
    assert done.text.startswith(thought) and thought.startswith("<think")
    assert "".join(stream(model, tokenizer, ids, sampling)) == done.text
    assert spoken(done.text) == "" and verdict(done.text) == ("evaded", "empty")
    text = tokenizer.prompt_text(ASK, "chat") + tokenizer.answer_text(done.text, "chat")
    assert text == shown(tokenizer, ids) + done.text.removeprefix(thought)
    plain = tokenizer.encode_prompt(ASK, "raw")
    assert not generate(model, tokenizer, [plain], sampling)[0].text.startswith("<think")


def test_chat_keeps_what_is_said(thinker, monkeypatch):
    tokenizer, _ = thinker
    model = load_model(tokenizer.folder, device="cpu", dtype="float32")
    talk = Conversation(model, tokenizer, Sampling(8), format="chat", seed=0, system=None)
    assert "".join(talk.answer(ASK)).startswith("<think") and talk.turns == []  # cut in its thought
    said = iter(f"<think>\nOften?\n</think>\n\n{SAY}".partition("?"))
    monkeypatch.setattr("chat.stream", lambda *_, **__: said)
    assert SAY in "".join(talk.answer(ASK)) and talk.turns == [TALK]
    assert "Often" not in str(talk.turns)


def test_synth_asks_for_no_thought(thinker):
    tokenizer, lead = thinker
    session = Session(tokenizer, read_seeds(ptalign.__file__.replace("ptalign.py",
                                                                     "synthesis/seeds.json")))
    prompt = session.prompt("Be kind.", [("Hi", "Hello")], ASK, "Thought:")
    assert prompt.endswith(f"{lead}Thought:") and opened(prompt) == closing(prompt) == ""


THOUGHT = "Okay, that would hurt her trust, so I should say no.\n"
REFUSES = "I'm sorry, but I can't help with reading someone's diary."


@pytest.mark.parametrize("text, found", [
    (f"{THOUGHT}</think>\n\n{REFUSES}", "declined"),
    (f"<think>\n{THOUGHT}</think>\n\n{REFUSES}", "declined"),
    (f"<think>I can't say that.</think>\n{SAY} It takes a small can.", "complied"),
    (f"<think>\n{THOUGHT}", "evaded"),  # the token limit cut it
    (f"{THOUGHT}</think> Well. <think>Or no?</think>\n{REFUSES}", "declined"),  # the last one
    (f"<thinking>{THOUGHT}</thinking>{REFUSES}", "declined"),
])
def test_verdict_behind_the_thought(text, found):
    assert verdict(text)[0] == found
    assert list_hits(text)["gcg-7"] == (found == "declined")


@pytest.mark.parametrize("changes", [{}, {"template": "Q: {question}\nA: {answer}", "turn": True}])
def test_judge_reads_what_is_said(tmp_path, changes):
    """Not the thoughts of whom it judges, and without one of its own."""
    folder = templated(tmp_path / "m", THINKS["R1"][0])
    path = tmp_path / "t.json"
    path.write_text(json.dumps(TEMPLATE | changes))
    prompt = Judge(str(folder), str(path)).prompt(ASK, f"<think>{THOUGHT}</think>\n{REFUSES}")
    assert REFUSES in prompt and "trust" not in prompt and opened(prompt) == ""
    assert prompt.endswith("<think>\n\n</think>\n\n") == ("turn" in changes)


def test_spoken_takes_no_time():
    """A long text without a thought, as most rows of a large file are: one pass."""
    text = "a word and another, " * 50_000
    assert spoken(text) == text and spoken(f"{text}</think>yes") == "yes"


# ---- what a template shows ----

def test_prompt_that_ends_in_a_space(tmp_path):
    """What is trained begins with the very tokens that are asked."""
    T = ("{% for m in messages %}{% if m.role == 'user' %}USER: {{ m.content }} ASSISTANT: "
         "{% else %}{{ m.content }}<|im_end|>{% endif %}{% endfor %}")
    tokenizer = Tokenizer(templated(tmp_path / "m", T))
    for answer in (SAY, "46 of them.", "$46 a week."):
        for ask in (ASK, [*TALK, TALK[0]]):  # and behind earlier turns
            prompt, ids, _ = tokenizer.encode_exchange(ask, answer, "chat")
            assert prompt == tokenizer.encode_prompt(ask, "chat")
            assert shown(tokenizer, prompt + ids) == (
                tokenizer.prompt_text(ask, "chat") + answer + "<|im_end|>")


@pytest.mark.parametrize("template, who", [
    ("{{ bos_token }}Hello!", "user"), ("{{ messages[0].content }}:", "assistant"),
    ("{% for m in messages if m.role == 'human' %}{{ m.content }}{% endfor %}", "user"),
])
def test_template_that_leaves_out(tmp_path, capsys, template, who):
    """The prompt must show the request, the conversation the answer; told before the weights."""
    folder = templated(tmp_path / "m", template)
    (folder / "model.safetensors").unlink()
    data = tmp_path / "d.jsonl"
    data.write_text(json.dumps({"prompt": ASK, "positive": SAY, "toxic": None}))
    assert ptalign.main(["train", "--model", str(folder), "--data", str(data), "--out",
                         str(tmp_path / "a")]) == 2
    line, = capsys.readouterr().err.splitlines()
    assert f"leaves the {who}'s text out, {folder}, use --format raw" in line


# ---- where a template may be ----

ELSEWHERE = {  # files of the model's folder, what is told
    "named ones": ({"tokenizer_config.json": {"chat_template": [
        {"name": "tool_use", "template": CHATML}, {"name": "rag", "template": CHATML}]}},
        "tool_use, rag"),
    "a dict of them": ({"tokenizer_config.json": {"chat_template": {"rag": CHATML}}}, "rag"),
    "files of them": ({"additional_chat_templates/rag.jinja": CHATML}, "rag"),
    "a processor's": ({"chat_template.json": {"chat_template": CHATML}}, "chat_template.json"),
}


def talked(monkeypatch, capsys, model, *options):
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hello\n"))
    code = ptalign.main(["chat", "--model", str(model), "--max-new-tokens", "4", *options])
    return code, capsys.readouterr().err


@pytest.mark.parametrize("files, told", ELSEWHERE.values(), ids=ELSEWHERE)
def test_template_that_is_not_the_default(tmp_path, monkeypatch, capsys, files, told):
    folder = templated(tmp_path / "m", None)
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        if isinstance(content, dict):
            old = json.loads(path.read_text()) if path.exists() else {}
            content = json.dumps({**old, **content})
        path.write_text(content)
    code, err = talked(monkeypatch, capsys, folder)
    assert code == 0 and err.startswith("warning: prompts take the raw form: ") and told in err
    assert talked(monkeypatch, capsys, folder, "--format", "raw") == (0, "")
    (folder / "chat_template.jinja").write_text(CHATML)
    assert talked(monkeypatch, capsys, folder) == (0, "")


COMMIT = "89abcdef0123456789abcdef0123456789abcdef"


@pytest.mark.parametrize("offline", [True, False])
@pytest.mark.parametrize("known", [True, False])
def test_template_that_the_cache_may_lack(tmp_path, monkeypatch, capsys, offline, known):
    """Told offline, unless another tool found that the repository has none (transformers does)."""
    repository = tmp_path / "models--acme--tiny"
    folder = templated(repository / "snapshots" / COMMIT, None)
    if known:
        (repository / ".no_exist" / COMMIT).mkdir(parents=True)
        (repository / ".no_exist" / COMMIT / "chat_template.jinja").touch()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
    code, err = talked(monkeypatch, capsys, folder)
    told = "chat_template.jinja is not in the cache, and offline" in err
    assert code == 0 and told == (offline and not known)
    assert talked(monkeypatch, capsys, folder, "--format", "raw") == (0, "")


def test_base_model(tmp_path, monkeypatch, capsys):
    """Without a template and without a sign of one the raw form needs no word."""
    assert talked(monkeypatch, capsys, templated(tmp_path / "m", None)) == (0, "")


# ---- where answers end ----

@pytest.mark.parametrize("generation, config, ends, told", [
    ({"eos_token_id": 1}, 2, [1], False),  # config.json is stale: LlamaConfig's default
    ({"eos_token_id": [1, 0]}, [2, 3], [0, 1], False),
    ({"temperature": 0.6}, [1, 0], [0, 1], False),  # names none: config.json's
    (None, 0, [0, 1], False),
    (None, 2, [1, 2], True),  # nothing says that it is stale, but it is no special token
    ({"eos_token_id": [1, 5]}, 1, [1, 5], True),
])
def test_ends(tmp_path, capsys, generation, config, ends, told):
    folder = write_model(tmp_path / "m", eos_token_id=config)
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    tokenizer = Tokenizer(folder)
    assert tokenizer.eos_ids == set(ends)
    assert ("an ordinary token" in capsys.readouterr().err) == told
    auto = pytest.importorskip("transformers").AutoModelForCausalLM
    theirs = auto.from_pretrained(folder).generation_config.eos_token_id
    if not (generation and "eos_token_id" not in generation):  # there transformers has no end
        assert tokenizer.eos_ids == {*(theirs if isinstance(theirs, list) else [theirs]), 1}


def test_decoding_is_untouched(tiny_folder):
    """A plain model's texts begin as ever."""
    tokenizer = Tokenizer(tiny_folder)
    model = load_model(tiny_folder, device="cpu", dtype="float32")
    ids = tokenizer.encode_prompt(ASK, "chat")
    done, = generate(model, tokenizer, [ids], Sampling(8))
    with torch.no_grad():
        first = int(model(torch.tensor([ids]))[0, -1].argmax())
    assert done.text.startswith(Decoding(tokenizer.decode).latest([first]).rstrip("\ufffd"))
