"""The chat command: a conversation with a model, with its adapter on or off.

    python ptalign.py chat --model MODEL --adapter ADAPTER
    echo "How do I say no to a friend?" | python ptalign.py chat --model MODEL

A line of standard input is a message. The answer goes to standard output as it comes, and a newline
ends it; all else goes to standard error. On a terminal Ctrl-C stops an answer, and a message that
does not fit is reported and forgotten; in a pipe both end the program."""

import contextlib
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from config import read_config
from generate import Sampling, draw_seed, stream
from lora import adapter_disabled, load_adapter
from model import load_model
from support.adapters import read_adapter_config
from support.decoding import spoken
from support.files import InputError, refusing
from support.hub import model_folder
from support.progress import say
from tokenizer import RAW_STOP, Tokenizer

TOP_P = 0.95
HELP = """/base, /tuned  switch the adapter off, on; the conversation stays
/reset         forget the conversation
/quit          leave, as at the end of the input
Ctrl-C         stop the answer; at the prompt, leave"""


class Conversation:
    """The turns so far. Seed, history and message decide the answer (in bf16: on one machine)."""

    def __init__(self, model, tokenizer: Tokenizer, sampling: Sampling, *, format: str, seed: int,
                 system: str | None):
        self.model, self.tokenizer, self.format, self.seed = model, tokenizer, format, seed
        self.sampling, self.tuned = sampling, True
        self.system = [{"role": "system", "content": system}] if system else []
        self.turns: list[list[dict]] = []  # a message and its answer each

    def fit(self, message: str) -> list[int]:
        """The prompt's token ids; the oldest turns are dropped until the answer has room too."""
        room = self.model.config.max_position_embeddings - self.sampling.max_new_tokens
        asked = {"role": "user", "content": message}
        for dropped in range(len(self.turns) + 1):
            talk = [*self.system, *chain(*self.turns[dropped:]), asked]
            ids = self.tokenizer.encode_prompt(talk, self.format)
            if len(ids) <= room:
                if dropped:
                    say(f"note: the context is full; oldest turns dropped: {dropped}")
                del self.turns[:dropped]
                return ids
        raise InputError(f"the message makes {len(ids)} tokens where {room} fit",
                         "standard input", "shorten it or lower --max-new-tokens")

    def answer(self, message: str) -> Iterator[str]:
        """The answer in pieces. The turn is kept, also if broken off; a thought alone is not."""
        ids, answer = self.fit(message), ""
        seed = draw_seed(self.seed, len(self.turns))
        with contextlib.nullcontext() if self.tuned else adapter_disabled(self.model):
            try:
                for piece in stream(self.model, self.tokenizer, ids, self.sampling, seed=seed):
                    piece = piece if answer else piece.lstrip()  # a template's or the raw space
                    answer += piece
                    yield piece
            finally:
                if answer := spoken(answer).strip():
                    self.turns.append([{"role": "user", "content": message},
                                       {"role": "assistant", "content": answer}])


def chat(*, model: str, adapter: str | None, system: str | None, format: str | None,
         max_new_tokens: int, temperature: float, device: str, dtype: str, seed: int,
         base_dtype: str | None = None) -> int:
    """Read messages and print answers until the input ends; returns the exit code (130: Ctrl-C)."""
    if adapter:
        read_adapter_config(Path(adapter))  # a mistyped name is reported before the download
    tokenizer = Tokenizer(folder := model_folder(model))
    format = format or tokenizer.default_format
    ids = tokenizer.encode_prompt("Hello", format)  # a bad template is told at once
    if system:
        with refusing(InputError, "the chat template takes no system text", "--system",
                      "leave it out or use --format raw"):
            ids = tokenizer.encode_prompt([{"role": "system", "content": system},
                                           {"role": "user", "content": "Hello"}], format)
    if len(ids) + max_new_tokens > (context := read_config(folder).max_position_embeddings):
        raise InputError(f"{len(ids)} + {max_new_tokens} new tokens exceed a context of {context}",
                         "--max-new-tokens", "lower it" + " or shorten --system" * bool(system))
    base = load_model(folder, device=device, dtype=dtype, base_dtype=base_dtype)
    if adapter:
        load_adapter(base, Path(adapter))
    sampling = Sampling(max_new_tokens, temperature=temperature, top_p=TOP_P,
                        stop=(RAW_STOP,) if format == "raw" else ())
    conversation = Conversation(base, tokenizer, sampling, format=format, seed=seed, system=system)
    terminal = sys.stdin.isatty()
    if terminal:
        say("/help lists the commands")
    try:
        for line in read_lines(terminal):
            if line == "/quit":
                break
            if line.startswith("/") and line[1:].isalpha():
                print(obey(conversation, line, adapter=bool(adapter)), file=sys.stderr)
            else:
                reply(conversation, line, terminal)
    except KeyboardInterrupt:
        line_end = "\n" if terminal else ""  # a terminal shows ^C after the prompt
        print(f"{line_end}ptalign: interrupted; the conversation is not kept", file=sys.stderr)
        return 130
    return 0


def read_lines(terminal: bool) -> Iterator[str]:
    """Lines of standard input that are not blank; on a terminal each is asked for."""
    prompt, line_end = ("> ", "\n") if terminal else ("", "")
    while True:
        print(prompt, end="", file=sys.stderr, flush=True)
        with refusing(UnicodeError, "not UTF-8 text", "standard input", "re-encode it"):
            line = sys.stdin.readline()
            line.encode()  # half a surrogate pair stands for a byte that is no UTF-8
        if not line:
            print(line_end, end="", file=sys.stderr)  # the shell's prompt begins its own line
            return
        if line := line.lstrip("\ufeff").strip():  # some editors put a mark in front
            yield line


def obey(conversation: Conversation, command: str, *, adapter: bool) -> str:
    """Do what a line like /base asks; returns the message about it."""
    if command == "/help":
        return HELP
    if command == "/reset":
        conversation.turns.clear()
        return "the conversation is forgotten"
    if command not in ("/base", "/tuned"):
        return f"no command {command}; /help lists them"
    if not adapter:
        return "there is no adapter: --adapter names one"
    conversation.tuned = command == "/tuned"
    return f"the adapter is {'on' if conversation.tuned else 'off'}"


def reply(conversation: Conversation, message: str, terminal: bool) -> None:
    """Print the answer to one message as it comes; on a terminal a failure ends only the answer."""
    try:
        with contextlib.closing(conversation.answer(message)) as pieces:  # closed, a part is kept
            for piece in pieces:
                print(piece, end="", flush=True)
        print(flush=True)
    except (KeyboardInterrupt, InputError) as error:
        if not terminal:
            raise
        if isinstance(error, KeyboardInterrupt):
            print(flush=True)
        else:
            print(f"ptalign: error: {error}", file=sys.stderr)
