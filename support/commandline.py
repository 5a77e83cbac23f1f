"""What a command line is made of: options that are checked as they are read, failures in a line."""

import argparse
import io
import math
import os
import signal
import sys

from support.files import InputError

EXIT = ("exit codes: 0 done, 2 bad input, 3 finished short of the target, 4 a figure of --require"
        " falls short, 130 interrupted")
# The CPU's allocator and C++; CUDA (its context, say) and Triton; cuBLAS.
NO_MEMORY = ("DefaultCPUAllocator", "std::bad_alloc", "CUDA error: out of memory",
             "[CUDA]: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
COMMAND = "python ptalign.py"  # how one calls it; support/installed.py has another


def number(kind, *, least, most=math.inf, open_end=False, zero=False):
    """An argparse type: a finite int or float from `least` to `most`. `open_end` leaves the least
    itself out, `zero` lets 0 in besides."""
    bound = ("0 or " if zero else "") + (f"above {least}" if open_end else f"at least {least}")
    bound += f" and at most {most}" if most < math.inf else ""

    def parse(text: str):
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is no {kind.__name__}") from None
        inside = least < value <= most or (value == least and not open_end)
        if not (inside or (zero and value == 0)) or value == math.inf:
            finite = " and finite" if value == math.inf else ""
            raise argparse.ArgumentTypeError(f"{text} must be {bound}{finite}")
        return value
    return parse


def names(text: str) -> list[str]:
    found = [name.strip() for name in text.split(",") if name.strip()]
    if not found:
        raise argparse.ArgumentTypeError(f"no name in {text!r}")
    return found


class Help(argparse.ArgumentDefaultsHelpFormatter):
    """Defaults in the help, but for options that are off or empty unless given."""
    def _get_help_string(self, action):
        off = action.default is False or action.default in (None, "")
        return action.help if off else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    def __init__(self, **options):
        super().__init__(epilog=EXIT, formatter_class=Help, **{"prog": COMMAND, **options})

    def _get_value(self, action, text: str):
        """An empty text is a shell's variable that is not set: no file and no number has it. What
        is not UTF-8 no record could hold. (A command's own arguments all pass as the command's
        first.)"""
        if action.nargs != argparse.PARSER:
            if not text:
                raise argparse.ArgumentError(action, "is empty")
            if any("\ud800" <= mark <= "\udfff" for mark in text):
                raise argparse.ArgumentError(action, "is not UTF-8 text")
        return super()._get_value(action, text)

    def error(self, message: str):
        """One line in the program's own form; argparse's includes the whole usage."""
        raise InputError(message, self.prog, "see --help")


def file_error(error: OSError) -> InputError:
    """The line about what the system refused; some errors have no words but their name. One without
    a number is a library's own, such as of a shared library that it misses."""
    if error.errno is None and str(error):
        return InputError(str(error), "said by an installed package", "install it again")
    place = error.filename or "--out"
    return InputError(error.strerror or type(error).__name__, place, "check space and rights")


class Stream(io.TextIOWrapper):
    """Standard output, which says so where it fails, or standard error, whose loss ends no run.
    What it still holds is dropped then, or Python would fail over it once more at its end."""

    def write(self, text: str) -> int:
        return self._named(super().write, text)

    def flush(self) -> None:
        self._named(super().flush)

    def _named(self, call, *text):
        try:
            return call(*text)
        except OSError as error:
            if isinstance(error, BrokenPipeError) and self.fileno() == 1:
                raise
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
            if self.fileno() == 1:
                error.filename = "standard output"
                raise


def begin() -> None:
    """What a process does before all else. Standard streams that were closed (`>&-`) get stand-ins,
    before a file takes their number. Until `loaded` nothing has begun, and an import that runs may
    swallow an exception: a signal ends the program then and there."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 (open to the end)
    sys.stdout.reconfigure(errors="replace")  # a terminal without a character gets a "?" for it
    for name in ("stdout", "stderr"):
        if type(old := getattr(sys, name)) is io.TextIOWrapper:  # a test has its own
            setattr(sys, name, Stream(old.detach(), old.encoding, old.errors, None,
                                      old.line_buffering, old.write_through))
    _on_signals((signal.default_int_handler, signal.SIG_DFL), _leave)


def loaded() -> None:
    """From here on SIGTERM ends a run as Ctrl-C does, in order."""
    _on_signals((_leave,), signal.default_int_handler)


def _leave(*_) -> None:
    os.write(2, b"ptalign: interrupted before anything was begun\n")
    os._exit(130)


def _on_signals(old, new) -> None:
    """One that is ignored, as in a shell's background, stays so."""
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) in old:
            signal.signal(number, new)


def out_of_memory(error: Exception) -> bool:
    """Torch has an error of its own for what its allocator lacks on a GPU. Of a CPU's memory, and
    of a GPU that other programs have filled, only the message tells, and other faults name memory
    too: "an illegal memory access", Triton's "out of resource"."""
    return (isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
            or any(mark in str(error) for mark in NO_MEMORY))
