"""Models that think aloud: an answer is what stands after its last </think>.

One rule for everything that reads an answer: the data's rows, verdicts, judges and chat's history.
The mark of a thought that a prompt opened is put in front of what the model writes (generate.py),
so that one which the token limit cuts shows as a thought, with no answer yet."""

import re

THOUGHT = re.compile(r".*</think(?:ing)?>|<think(?:ing)?>.*", re.DOTALL)
OPENED = re.compile(r"<(think(?:ing)?)>\s*\Z")


def spoken(text: str) -> str:
    """An answer without its thoughts; a thought that is not closed is followed by no answer."""
    return THOUGHT.sub("", text)


def opened(prompt: str) -> str:
    """The mark of the thought that a prompt leaves open, with the white space behind it, or ""."""
    match = OPENED.search(prompt)
    return match[0] if match else ""


def closing(prompt: str) -> str:
    """What makes the thought that a prompt leaves open an empty one, as Qwen3's template has it."""
    match = OPENED.search(prompt)
    return "\n" * (2 - prompt.endswith("\n")) + f"</{match[1]}>\n\n" if match else ""
