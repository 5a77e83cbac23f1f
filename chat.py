"""The chat command: a conversation with a model, with its adapter on or off.

    python ptalign.py chat --model MODEL --adapter ADAPTER
    echo "How do I say no to a friend?" | python ptalign.py chat --model MODEL

A line of standard input is a message. The answer goes to standard output, whole characters as they
come, and a newline ends it; whatever else there is to say goes to standard error. On a terminal
there is a prompt, Ctrl-C stops an answer, and a message that does not fit is told and forgotten; in
a pipe both end the program.
"""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

from generate import Sampling, draw_seed, stream
from lora import adapter_disabled, load_adapter, read_adapter_config
from model import load_model
from support.files import InputError
from support.hub import model_folder
from support.progress import say
from tokenizer import RAW_PROMPT, RAW_STOP, Tokenizer

TOP_P = 0.95
HELP = """/base, /tuned  switch the adapter off, on; the conversation stays
/reset         forget the conversation
/quit          leave, as at the end of the input
Ctrl-C         stop the answer; at the prompt, leave"""


class Conversation:
    """The turns so far and the answer to the next: history in front, the oldest dropped if need be.

    The same seed, history and message give the same answer (in bf16 on the same machine).
    """

    def __init__(self, model, tokenizer: Tokenizer, sampling: Sampling, *, format: str, seed: int,
                 system: str | None):
        self.model, self.tokenizer, self.format, self.seed = model, tokenizer, format, seed
        self.sampling, self.system, self.tuned = sampling, system, True
        self.turns: list[tuple[str, str]] = []  # (message, answer)
        if system and not self._reads(system):
            raise InputError("the chat template takes no system text", "--system",
                             "leave it out or use --format raw")

    def _reads(self, system: str) -> bool:
        """Whether a prompt holds the system text: some templates leave it out, others raise."""
        try:
            return system.strip() in self.text("Hello", [])
        except InputError:
            return False

    def text(self, message: str, turns: list[tuple[str, str]]) -> str:
        """All that stands before the answer to `message` after these turns."""
        if self.format == "raw":
            said = [RAW_PROMPT.format(prompt=ask) + self.tokenizer.answer_text(answer, "raw")
                    for ask, answer in turns]
            return (self.system or "") + "".join(said) + RAW_PROMPT.format(prompt=message)
        messages = [{"role": "system", "content": self.system}] if self.system else []
        for ask, answer in turns:
            messages += [{"role": "user", "content": ask}, {"role": "assistant", "content": answer}]
        messages.append({"role": "user", "content": message})
        return self.tokenizer.render(messages, add_generation_prompt=True)

    def fit(self, message: str) -> list[int]:
        """The prompt's token ids; the oldest turns are dropped until the answer has room too."""
        room = self.model.config.max_position_embeddings - self.sampling.max_new_tokens
        for dropped in range(len(self.turns) + 1):
            text = self.text(message, self.turns[dropped:])
            # A template writes its own BOS; the plain form leaves it to the tokenizer.
            ids = self.tokenizer.encode(text, special=self.format == "raw")
            if len(ids) <= room:
                break
        else:
            raise InputError(f"the message makes {len(ids)} tokens where {max(room, 0)} fit",
                             "standard input", "shorten it or lower --max-new-tokens")
        if dropped:
            del self.turns[:dropped]
            say(f"note: the context is full; oldest turns dropped: {dropped}")
        return ids

    def answer(self, message: str) -> Iterator[str]:
        """The answer in pieces; the turn is kept, also if broken off, unless nothing was said."""
        ids, said = self.fit(message), ""
        seed = draw_seed(self.seed, len(self.turns))
        with contextlib.nullcontext() if self.tuned else adapter_disabled(self.model):
            try:
                for piece in stream(self.model, self.tokenizer, ids, self.sampling, seed=seed):
                    piece = piece if said else piece.lstrip()  # a template's or the plain space
                    said += piece
                    yield piece
            finally:
                if said := said.strip():
                    self.turns.append((message, said))


def chat(*, model: str, adapter: str | None, system: str | None, format: str | None,
         max_new_tokens: int, temperature: float, device: str, dtype: str, seed: int) -> int:
    """Read messages and print answers until the input ends; returns the exit code.

    Raises InputError for bad input; 130 is Ctrl-C at the prompt.
    """
    if adapter:
        read_adapter_config(Path(adapter))  # a mistyped name is told before the download
    folder = model_folder(model)
    tokenizer = Tokenizer(folder)
    format = format or tokenizer.default_format
    tokenizer.prompt_text("Hello", format)  # no template, or one that fails: before the weights
    network = load_model(folder, device=device, dtype=dtype)
    if adapter:
        load_adapter(network, Path(adapter))
    stop = (RAW_STOP,) if format == "raw" else ()
    sampling = Sampling(max_new_tokens, temperature=temperature, top_p=TOP_P, stop=stop)
    talk = Conversation(network, tokenizer, sampling, format=format, seed=seed, system=system)
    terminal = sys.stdin.isatty()
    if terminal:
        say("/help lists the commands")
    try:
        for line in read_lines(terminal):
            if line == "/quit":
                break
            if line.startswith("/") and line[1:].isalpha():
                print(obey(talk, line, adapter=bool(adapter)), file=sys.stderr)
            else:
                reply(talk, line, terminal)
    except KeyboardInterrupt:
        if terminal:
            print(file=sys.stderr)  # it shows ^C after the prompt
        print("ptalign: interrupted; the conversation is not kept", file=sys.stderr)
        return 130
    return 0


def read_lines(terminal: bool) -> Iterator[str]:
    """Lines of standard input that are not blank; on a terminal each is asked for."""
    while True:
        if terminal:
            print("> ", end="", file=sys.stderr, flush=True)
        try:
            line = sys.stdin.readline()
            line.encode()  # half a surrogate pair stands for a byte that is no UTF-8
        except UnicodeError:
            raise InputError("not UTF-8 text", "standard input", "re-encode it") from None
        if not line:
            if terminal:
                print(file=sys.stderr)  # the shell's prompt begins a line of its own
            return
        if line := line.strip():
            yield line


def obey(talk: Conversation, command: str, *, adapter: bool) -> str:
    """Do what a line like /base says; returns what to tell of it."""
    if command == "/help":
        return HELP
    if command == "/reset":
        talk.turns.clear()
        return "the conversation is forgotten"
    if command not in ("/base", "/tuned"):
        return f"no command {command}; /help lists them"
    if not adapter:
        return "there is no adapter: --adapter names one"
    talk.tuned = command == "/tuned"
    return f"the adapter is {'on' if talk.tuned else 'off'}"


def reply(talk: Conversation, message: str, terminal: bool) -> None:
    """Print the answer to one message, as it comes."""
    pieces = talk.answer(message)
    try:
        with contextlib.closing(pieces):  # broken off, it still goes into the history
            for piece in pieces:
                print(piece, end="", flush=True)
        print(flush=True)
    except KeyboardInterrupt:
        if not terminal:
            raise
        print(flush=True)
    except InputError as error:
        if not terminal:
            raise
        print(f"ptalign: error: {' '.join(str(error).split())}", file=sys.stderr)
