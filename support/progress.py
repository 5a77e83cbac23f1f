"""What a person watching sees on stderr: lines and progress bars. Tables go to stdout elsewhere."""

import io
import statistics
import sys

from tqdm import tqdm

from support.files import printable

QUIET = False  # set once by the command line (--quiet)
PLAIN_SECONDS = 15  # off a terminal a line at most this often, so that log files stay short
STALLED = 5  # steps in a row, each over three times the median, before a warning
PLAIN = "{desc}: {n_fmt}/{total_fmt} {unit} ({rate_fmt}, {elapsed}<{remaining}){postfix}"


def say(message: str) -> None:
    if not QUIET:
        tqdm.write(printable(message), file=sys.stderr)


def warn_of_stalls(seconds: list[float], device: str) -> None:
    """Another busy process on the same cores makes OpenMP's threads wait for each other. `seconds`
    are those of every step so far; a run of slow ones is reported once."""
    seconds = seconds[-1000:]  # enough for a median, which sorts them at every step
    bound = 3 * statistics.median(seconds)
    slow = next((n for n, s in enumerate(reversed(seconds)) if s <= bound), 0)  # the last ones
    if device == "cpu" and slow == STALLED:
        say(f"warning: the last {STALLED} steps took over three times as long as usual. If another"
            " program is using these cores, set OMP_NUM_THREADS to what it leaves, 1 at least, and"
            " run the same command again.")


class Progress(tqdm):
    """A bar with rate and ETA on a terminal, a plain line now and then off one."""

    begun = False  # where a signal ends the constructor, tqdm closes what is not there

    def __init__(self, label: str, *, total: int, unit: str, done: int = 0):
        self.terminal, self.told = sys.stderr.isatty(), done
        plain = dict(file=io.StringIO(), mininterval=PLAIN_SECONDS, miniters=1, bar_format=PLAIN,
                     smoothing=0)
        super().__init__(desc=label, total=total, unit=unit, initial=done, disable=QUIET,
                         **({} if self.terminal else plain))
        self.begun = True

    def update(self, n: int = 1, *, note: str = "") -> None:
        """Without a step, a note that is news: it is shown, off a terminal not too often."""
        self.set_postfix_str(note, refresh=False)
        super().update(n)
        if note and not n and not self.disable:
            now = self._time()
            if now - self.last_print_t >= self.mininterval:
                self.told, self.last_print_t = self.n - 1, now
                self.refresh()

    def display(self, *place, **named) -> None:  # where tqdm has something to show
        if self.terminal:
            super().display(*place, **named)
        elif self.n > self.told:
            self.told = self.n
            say(str(self))

    def close(self) -> None:
        if not self.begun:
            return
        if not self.terminal:
            self.set_postfix_str("", refresh=False)  # a note belongs to its own update
        super().close()
