"""chat.py: the chat command on a tiny random model, in a pipe and on a terminal.

What it prints is compared with `generate` on the prompt that the history makes. A random model's
answers are noise and seldom end by themselves, which is what these tests want.
"""

import fcntl
import io
import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import write_model

import chat
import ptalign
from generate import Sampling, draw_seed, generate
from lora import add_lora, load_adapter, lora_parameters
from model import load_model
from support.adapters import write_adapter
from support.files import InputError
from tokenizer import RAW, Tokenizer

ROOT = Path(ptalign.__file__).parent
NEW = 12  # tokens of an answer


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """model/, its adapter/, and models with another template or none."""
    root = tmp_path_factory.mktemp("talk")
    write_model(root / "model")
    model = load_model(root / "model", device="cpu", dtype="float32")
    add_lora(model, ["q_proj", "down_proj"], rank=2, alpha=4)
    torch.manual_seed(1)
    for parameter in lora_parameters(model).values():
        torch.nn.init.normal_(parameter, std=0.3)
    (root / "adapter").mkdir()
    write_adapter(root / "adapter", lora_parameters(model), base="model", rank=2, alpha=4,
                  targets=["down_proj", "q_proj"])
    write_model(root / "short", max_position_embeddings=120)
    for name, template in (
            ("plain", None),
            ("strict", "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}"
                       "{% endif %}{{ messages[-1].content }}"),
            ("deaf", "{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}")):
        write_model(root / name)
        (root / name / "tokenizer_config.json").write_text(json.dumps(
            {"eos_token": "<|im_end|>", "chat_template": template}))
    return root


class Typed(io.StringIO):
    """Standard input; `error` is raised where it ends (Ctrl-C at the prompt)."""

    def __init__(self, text: str, *, terminal=False, error=None):
        super().__init__(text)
        self.terminal, self.error = terminal, error

    def isatty(self):
        return self.terminal

    def readline(self, *_):
        line = super().readline()
        if not line and self.error:
            raise self.error
        return line


@pytest.fixture
def say(world, monkeypatch, capsys):
    """say(text, *options) -> (exit code, stdout, stderr) of the chat command."""
    def run(text, *options, model="model", adapter=None, terminal=False, error=None):
        typed = text if isinstance(text, io.IOBase) else Typed(text, terminal=terminal, error=error)
        monkeypatch.setattr(sys, "stdin", typed)
        adapters = ["--adapter", str(world / adapter)] if adapter else []
        code = ptalign.main(["chat", "--model", str(world / model), *adapters, "--dtype",
                             "float32", "--max-new-tokens", str(NEW), *map(str, options)])
        return code, *capsys.readouterr()
    return run


class Peer:
    """The same conversation by `generate` alone."""

    def __init__(self, world, *, model="model", adapter=None, temperature=0.7, seed=0, stop=()):
        self.tokenizer = Tokenizer(world / model)
        self.network = load_model(world / model, device="cpu", dtype="float32")
        if adapter:
            load_adapter(self.network, world / adapter)
        self.sampling = Sampling(NEW, temperature=temperature, top_p=chat.TOP_P, stop=stop)
        self.seed = seed

    def __call__(self, text: str, turn: int, *, special=False) -> str:
        seed = draw_seed(self.seed, turn)
        ids = self.tokenizer.encode(text, special=special)
        return generate(self.network, self.tokenizer, [ids], self.sampling, [seed])[0].text.lstrip()


def chatml(*messages) -> str:
    """system first if there is one, then user and assistant in turn, the last a user's."""
    text = ""
    for role, content in messages:
        text += f"<|im_start|>{role}\n{content}<|im_end|>\n"
    return text + "<|im_start|>assistant\n"


# ---- answers ----

def test_pipe(world, say):
    """Answers and nothing else on stdout, nothing on stderr; the history is in the prompt."""
    peer = Peer(world)
    first = peer(chatml(("user", "hi")), 0)
    second = peer(chatml(("user", "hi"), ("assistant", first.strip()), ("user", "and you?")), 1)
    assert first != second and len(first) > 5
    assert say("hi\n\n  and you? \n") == (0, f"{first}\n{second}\n", "")
    assert say("hi") == (0, f"{first}\n", "")  # no newline at the end of the input
    assert say("") == (0, "", "")


@pytest.mark.parametrize("temperature, seed", [(0, 0), (1.5, 7)])
def test_settings(world, say, temperature, seed):
    peer = Peer(world, temperature=temperature, seed=seed)
    want = peer(chatml(("system", "Be kind."), ("user", "hi")), 0)
    code, out, _ = say("hi", "--temperature", temperature, "--seed", seed, "--system", "Be kind.")
    assert (code, out) == (0, f"{want}\n")


def test_raw(world, say):
    """A base model's plain form; it is stopped before it speaks for the user."""
    peer = Peer(world, model="plain", stop=("\nHuman:",))
    first = peer(RAW["user"].format("hi"), 0, special=True)
    text = RAW["user"].format("hi") + " " + first.strip() + RAW["user"].format("so?")
    assert say("hi\nso?", model="plain")[1] == f"{first}\n{peer(text, 1, special=True)}\n"
    assert say("hi", "--format", "raw")[1] == f"{first}\n"  # the same weights


def test_base_and_tuned(world, say):
    """One loaded model; the conversation goes on when the adapter is switched."""
    base, tuned = Peer(world), Peer(world, adapter="adapter")
    hi = chatml(("user", "hi"))
    code, out, err = say("hi\n/reset\n/base\nhi\n/reset\n/tuned\nhi\n", adapter="adapter")
    answers = [tuned(hi, 0), base(hi, 0), tuned(hi, 0)]
    assert code == 0 and out == "".join(f"{a}\n" for a in answers) and answers[0] != answers[1]
    assert err.splitlines() == ["the conversation is forgotten", "the adapter is off",
                                "the conversation is forgotten", "the adapter is on"]
    second = base(chatml(("user", "hi"), ("assistant", answers[0].strip()), ("user", "oh")), 1)
    assert say("hi\n/base\noh\n", adapter="adapter")[1] == f"{answers[0]}\n{second}\n"


def test_commands(say):
    code, out, err = say("/help\n/base\n/sing\n/quit\nhi\n")
    assert code == 0 and out == ""
    assert "/reset" in err and "no adapter" in err and "no command /sing" in err
    assert say("/etc/hosts is what?")[1] != ""  # no command: it holds more than a word
    assert "/reset" in say("\ufeff/help\n")[2]  # a file of an editor that puts a mark in front


def test_context(world, say):
    """The oldest turns go, and it is told; the answer is that to what is left."""
    lines = [f"message {i}" for i in range(4)]
    code, out, err = say("\n".join(lines), "--system", "Be kind.", model="short")
    answers = out.split("\n")
    assert code == 0 and err.count("oldest turns dropped: ") >= 1
    peer, kept = Peer(world, model="short"), []
    tokenizer, told = peer.tokenizer, ""
    for line in lines:
        while True:
            turns = [m for ask, got in kept for m in (("user", ask), ("assistant", got))]
            text = chatml(("system", "Be kind."), *turns, ("user", line))
            if len(tokenizer.encode(text, special=False)) <= 120 - NEW:
                break
            kept.pop(0)
        answer = peer(text, len(kept))
        told += answer + "\n"
        kept.append((line, answer.strip()))
    assert out == told and len(kept) < len(lines) and answers[-1] == ""


# ---- bad input ----

@pytest.mark.parametrize("line, options, named", [
    ("word " * 200, {"model": "short"}, ["standard input", "--max-new-tokens", "108 fit"]),
    (io.TextIOWrapper(io.BytesIO(b"caf\xe9\n"), encoding="utf-8"), {}, ["UTF-8"]),
    (io.TextIOWrapper(io.BytesIO(b"caf\xe9\n"), encoding="utf-8", errors="surrogateescape"), {},
     ["UTF-8"]),
], ids=["too long", "latin-1", "latin-1 in the C locale"])
def test_refused(say, line, options, named):
    code, out, err = say(line, **options)
    assert code == 2 and out == "" and err.startswith("ptalign: error: ") and err.count("\n") == 1
    assert all(word in err for word in named), err


@pytest.mark.parametrize("options, remedy", [
    (["--max-new-tokens", 120], "lower it\n"),
    (["--system", "kind " * 200], "lower it or shorten --system\n")])
def test_flags_that_leave_no_room(say, options, remedy):
    """Told at once, and not of the message."""
    code, out, err = say("hi", *options, model="short")
    assert code == 2 and out == "" and err.endswith(f"a context of 120, --max-new-tokens, {remedy}")


def test_poor_terminal(world):
    """A character that the output's encoding lacks is shown as "?" and does not end the talk."""
    line = ["chat", "--model", str(world / "model"), "--temperature", "3"]
    ended = subprocess.run([sys.executable, "ptalign.py", *line], cwd=ROOT, input=b"hi\n",
                           capture_output=True, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert ended.returncode == 0 and b"Traceback" not in ended.stderr and b"?" in ended.stdout


@pytest.mark.parametrize("model", ["strict", "deaf"])
def test_no_system(say, model):
    """A template that refuses a system text, and one that would leave it out unseen."""
    code, out, err = say("hi", "--system", "Be kind.", model=model)
    assert code == 2 and out == "" and "--system" in err
    assert say("hi", model=model)[0] == 0


# ---- a terminal ----

def test_prompt(say):
    """Asked for on stderr, which leaves stdout to the answers."""
    code, out, err = say("hi\n", terminal=True)
    assert code == 0 and out == say("hi\n")[1]
    assert err == "/help lists the commands\n> > \n"


def test_interrupt_at_prompt(say):
    for terminal in (True, False):
        code, _, err = say("hi\n", terminal=terminal, error=KeyboardInterrupt())
        assert code == 130 and err.splitlines()[-1] == (
            "ptalign: interrupted; the conversation is not kept")


def broken_off(monkeypatch):
    """The first answer is interrupted after three tokens."""
    whole, calls = chat.stream, []

    def stream(*arguments, **options):
        calls.append(arguments[2])
        for i, piece in enumerate(whole(*arguments, **options)):
            if i == 3 and len(calls) == 1:
                raise KeyboardInterrupt
            yield piece

    monkeypatch.setattr(chat, "stream", stream)
    return calls


def test_interrupted_answer(world, say, monkeypatch):
    """It is kept as far as it was said, and the next message is asked for."""
    calls = broken_off(monkeypatch)
    code, out, err = say("hi\nwell?\n", terminal=True)
    part = out.split("\n")[0]
    assert code == 0 and err.endswith("> > > \n") and part
    want = chatml(("user", "hi"), ("assistant", part.strip()), ("user", "well?"))
    assert calls[1] == Tokenizer(world / "model").encode(want, special=False)
    broken_off(monkeypatch)
    code, out, err = say("hi\nwell?\n")  # in a pipe it ends the program
    assert code == 130 and out == part and err.startswith("ptalign: interrupted")


def test_too_long_on_terminal(say):
    """Told, and the conversation goes on as if it had not been typed."""
    plain = say("hi\nand?\n", model="short")[1]
    code, out, err = say(f"hi\n{'word ' * 200}\nand?\n", model="short", terminal=True)
    assert code == 0 and out == plain and "ptalign: error: " in err


def test_nothing_said(world):
    """An answer of no words makes no turn."""
    model = load_model(world / "model", device="cpu", dtype="float32")
    conversation = chat.Conversation(model, Tokenizer(world / "model"), Sampling(4),
                                     format="chat", seed=0, system=None)
    conversation.tokenizer.eos_ids = frozenset(range(320))
    assert list(conversation.answer("hi")) == [] and conversation.turns == []
    with pytest.raises(InputError, match="tokens where"):
        conversation.fit("word " * 3000)


@pytest.mark.slow
def test_real_terminal(world):
    """SIGINT to the process itself: in an answer it stops the answer, at the prompt it leaves."""
    keyboard, screen = pty.openpty()
    line = ["chat", "--model", str(world / "model"), "--max-new-tokens", "1900", "--dtype",
            "float32"]
    # A test run in a shell's background inherits an ignored SIGINT.
    process = subprocess.Popen([sys.executable, "ptalign.py", *line], cwd=ROOT, stdin=screen,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    for stream in (process.stdout, process.stderr):
        fcntl.fcntl(stream, fcntl.F_SETFL, os.O_NONBLOCK)

    def until(stream, text: bytes) -> bytes:
        """What came, once `text` is in it; anything will do for an empty one."""
        got, deadline = b"", time.monotonic() + 300
        while not (got and text in got) and time.monotonic() < deadline:
            got += stream.read() or b""
            time.sleep(0.02)
        assert got and text in got, got
        return got

    try:
        until(process.stderr, b"> ")
        os.write(keyboard, b"hello\n")
        until(process.stdout, b"")  # the answer has begun
        process.send_signal(signal.SIGINT)
        until(process.stderr, b"> ")
        process.send_signal(signal.SIGINT)
        told = until(process.stderr, b"not kept")
        assert process.wait(timeout=60) == 130 and b"Traceback" not in told
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()
        os.close(keyboard)
        os.close(screen)
