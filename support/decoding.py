"""The text of an answer while it grows token by token, and what of it will not change any more.

Of a model that thinks aloud, the answer is what follows the last </think>: one rule for the data's
rows, verdicts, judges and chat's history. Generated text begins with the mark of a thought that its
prompt opened, so that a thought cut by the token limit is known as one. Here is also what keeps
tokens from being repeated."""

import re
from collections import defaultdict
from collections.abc import Sequence
from functools import cache

BEGINS, ENDS = re.compile(r"<think(?:ing)?>"), re.compile(r"</think(?:ing)?>")
OPENED = re.compile(r"<think(?:ing)?>\s*\Z|\Z")
LAST = 16  # tokens at a prompt's end, which show whether it leaves a thought open
DECODED_ANEW = 16  # with each new token so many before it are decoded anew, at most twice as many


class Decoding:
    """The text of a growing answer to a `prompt`; only its last tokens are decoded anew."""

    def __init__(self, decode, prompt: Sequence[int] = ()):
        thought = opened(decode(prompt[-LAST:])) if prompt else ""
        self.whole = lambda tokens: thought + decode(tokens)
        self.start = self.settled = 0  # the first token decoded anew; those whose text stands
        self.text = self.opening = ""  # the text that stands; what of it `start` begins with

    def latest(self, tokens: list[int]) -> str:
        """`whole(tokens)`. Tokens whose text stands are decoded with the new ones, as a first token
        may lose its space. All are, where bytes make no character: they may change what the bytes
        before them are taken for."""
        tail = self.whole(tokens[self.start:])
        if "\ufffd" in tail or not tail.startswith(self.opening):
            text = self.whole(tokens)
        else:
            text = self.text + tail[len(self.opening):]
        if len(tokens) - self.settled >= DECODED_ANEW and not text.endswith("\ufffd"):
            self.start, self.settled, self.text = self.settled, len(tokens), text
            self.opening = self.whole(tokens[self.start:])
        return text


class NGrams:
    """The runs of n tokens in a growing text, so that none comes twice: Hugging Face calls this
    no_repeat_ngram_size. 0 is off."""

    def __init__(self, n: int, tokens: Sequence[int]):
        self.n, self.last = n, ()  # the last n - 1 tokens
        self.after = defaultdict(set)  # n - 1 tokens in a row -> those that have followed them
        for token in tokens if n else ():
            self.add(token)

    def add(self, token: int) -> None:
        if len(self.last) == self.n - 1:
            self.after[self.last].add(token)
        self.last = (*self.last, token)[1 - self.n:] if self.n > 1 else ()

    def repeating(self) -> list[int]:
        """The next tokens by which a run would come a second time."""
        return sorted(self.after.get(self.last, ()))


@cache
def telling(tokenizer, ends: frozenset[str], n: int) -> frozenset[int]:
    """Those of n tokens after which a growing text may end with one of the characters `ends` and
    any white space: their own text holds one, or some bytes of one, or it is blank. Each is decoded
    twice in a row, as a decoder may take the space off a text's first token."""
    if not ends:
        return frozenset()
    texts = ((i, tokenizer.decode([i, i])) for i in range(n) if i not in tokenizer.eos_ids)
    return frozenset(i for i, text in texts if not text.strip() or not ends.isdisjoint(text)
                     or "\ufffd" in text)


def settled(text: str, stop: tuple[str, ...]) -> int:
    """How many characters no further token can change: all but the beginning of a stop string, and
    the U+FFFD that stand for the first bytes of a character."""
    whole = len(text.rstrip("\ufffd"))
    begun = [n for s in stop for n in range(1, len(s)) if text.endswith(s[:n])]
    return min(whole, len(text) - max(begun, default=0))


def spoken(text: str) -> str:
    """An answer without its thoughts; a thought that is not closed is followed by no answer. The
    mark of one that stands within the answer is spoken of."""
    rest = ENDS.split(text)[-1]
    return "" if BEGINS.match(rest.lstrip()) else rest


def opened(prompt: str) -> str:
    """The mark of the thought that a prompt leaves open, with the white space behind it, or ""."""
    return OPENED.search(prompt)[0]


def closing(prompt: str) -> str:
    """What makes the thought that a prompt leaves open an empty one, as Qwen3's template has it."""
    mark = opened(prompt)
    return "\n" * (2 - mark.count("\n")) + f"</{mark.strip()[1:]}\n\n" if mark else ""
