"""Bounds for what others wrote: a chat template is a program, and a tokenizer.json that is read
without complaint may still make the library panic."""

import contextlib
import os
import resource
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from support.files import InputError

SECONDS, MEMORY = 1, 256 << 20  # of processor time; bytes
LONGEST = 1 << 20  # characters of one text: a tokenizer takes 300 bytes of memory for each
ONE = threading.Lock()
PAGES = Path("/proc/self/statm")  # of this process; Linux alone has it


def refuse_long(text: str, where) -> str:
    """The same text; InputError where encoding it would take long and end in nothing."""
    if len(text) > LONGEST:
        raise InputError(f"a prompt of {len(text)} characters", where, "shorten it")
    return text


def _out_of_time(*_):
    raise TimeoutError(f"over {SECONDS} s")


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """TimeoutError or MemoryError where the with block takes more than SECONDS or MEMORY. Outside
    the main thread, where no signal arrives, nothing is bounded; without Linux only time is."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = soft
    with contextlib.suppress(OSError):
        now = int(PAGES.read_text().split()[0]) * resource.getpagesize()
        most = min((now + MEMORY, *(end for end in (soft, hard) if end != resource.RLIM_INFINITY)))
    handler = signal.signal(signal.SIGVTALRM, _out_of_time)
    try:
        resource.setrlimit(resource.RLIMIT_AS, (most, hard))
        # Again and again: jinja swallows what is raised while it folds constants.
        signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS, SECONDS)
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, handler)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def careful(call: Callable, where) -> Callable:
    """A function of `tokenizers` whose failures are InputErrors. A panic is no Exception, and Rust
    prints it first, with the text in it: standard error is closed as long as the call takes."""
    def careful_call(*arguments, **options):
        # A second one would keep the first one's silence.
        with ONE, open(os.devnull, "wb") as nowhere:
            kept = os.dup(2)
            try:
                os.dup2(nowhere.fileno(), 2)
                return call(*arguments, **options)
            except (InputError, KeyboardInterrupt, SystemExit, MemoryError):
                raise
            except BaseException as error:
                reason = str(error) if type(error) is Exception else type(error).__name__
            finally:
                os.dup2(kept, 2)
                os.close(kept)
        raise InputError(f"tokenizers fails with it ({reason[:120]})", where,
                         "download tokenizer.json again")

    return careful_call
