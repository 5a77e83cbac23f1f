"""What a person watching sees on stderr: lines and progress bars. Tables go to stdout elsewhere."""

import sys
import time

from tqdm import tqdm

QUIET = False  # set once by the command line (--quiet)
PLAIN_SECONDS = 15  # off a terminal a line at most this often, so that log files stay short


def say(message: str) -> None:
    if not QUIET:
        tqdm.write(message, file=sys.stderr)


class Progress:
    """A bar with rate and ETA on a terminal, a plain line now and then off one.

    with Progress("eval hhh", total=442, unit="item") as bar:
        bar.update(3, note="harmless .55")
    """

    def __init__(self, label: str, *, total: int, unit: str = "it", done: int = 0):
        self.label, self.total, self.unit = label, total, unit
        # What was there at the start says nothing of the rate; `told` is what the last line said.
        self.done = self.resumed = self.told = done
        self.began = self.spoke = time.monotonic()
        terminal = sys.stderr.isatty() and not QUIET
        self.bar = tqdm(desc=label, total=total, unit=unit, initial=done) if terminal else None

    def update(self, n: int = 1, *, note: str = "") -> None:
        self.done += n
        if self.bar is not None:
            self.bar.set_postfix_str(note, refresh=False)
            self.bar.update(n)
        elif time.monotonic() - self.spoke > PLAIN_SECONDS:
            self.spoke = time.monotonic()
            self._line(note)

    def _line(self, note: str) -> None:
        self.told = self.done
        seconds = time.monotonic() - self.began
        text = tqdm.format_meter(self.done, self.total, seconds, prefix=self.label, unit=self.unit,
                                 initial=self.resumed, postfix=note, bar_format="{desc}: {n_fmt}/"
                                 "{total_fmt} {unit} ({rate_fmt}, {elapsed}<{remaining}){postfix}")
        say(text)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.bar is not None:
            self.bar.close()
        elif self.done > self.told:
            self._line("")
