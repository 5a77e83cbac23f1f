"""progress.py: what is seen off a terminal (on one, tqdm's own bar: test_hub_failures.py)."""

import gc
import sys

import pytest

from support import progress
from support.progress import Progress, say


@pytest.fixture(autouse=True)
def often(monkeypatch):
    monkeypatch.setattr(progress, "PLAIN_SECONDS", -1)  # a line at every update


def test_plain_lines(capsys):
    """The rate counts only what was done here; a note belongs to its own update, and is told by
    itself where no step comes."""
    with Progress("train", total=40, unit="step", done=5) as bar:
        bar.update(0, note="packing")
        bar.update(10, note="loss 1.5")
        bar.update(5)
    begun, first, second = capsys.readouterr().err.splitlines()
    assert begun.startswith("train: 5/40 step (") and begun.endswith("), packing")
    assert first.startswith("train: 15/40 step (") and first.endswith("), loss 1.5")
    assert second.startswith("train: 20/40 step (") and second.endswith(")")


def test_no_escape_reaches_the_terminal(capsys):
    """A name out of a downloaded file stands in some warnings."""
    say("warning: \x1b]0;owned\x07 “é”\nand more")
    assert capsys.readouterr().err == "warning: \ufffd]0;owned\ufffd “é”\nand more\n"


def test_last_line(capsys, monkeypatch):
    """What came since the last line is told at the end, and nothing where nothing came."""
    monkeypatch.setattr(progress, "PLAIN_SECONDS", 15)
    with Progress("eval", total=3, unit="item") as bar:
        bar.update(2, note="x")
        assert capsys.readouterr().err == ""
    line, = capsys.readouterr().err.splitlines()
    assert line.startswith("eval: 2/3 item (") and line.endswith(")")
    with Progress("eval", total=3, unit="item", done=3):
        pass
    assert capsys.readouterr().err == ""


def test_quiet(capsys, monkeypatch):
    monkeypatch.setattr(progress, "QUIET", True)
    with Progress("eval", total=3, unit="item") as bar:
        bar.update(0, note="loading")
        bar.update(2)
    say("a line")
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("terminal", [False, True])
def test_interrupted_at_any_line(capsys, monkeypatch, terminal):
    """A signal may end tqdm's constructor anywhere; what it left must be cleaned up in silence."""
    wrong, lines = [], 0
    monkeypatch.setattr(sys, "unraisablehook", lambda fault: wrong.append(repr(fault.exc_value)))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)

    def trace(frame, event, _):
        nonlocal left
        if (frame.f_globals["__name__"], frame.f_code.co_name) != ("tqdm.std", "__init__"):
            return None
        left -= event == "line"
        if left < 0:
            raise KeyboardInterrupt
        return trace

    while lines < 500:
        left, before = lines, sys.gettrace()
        try:
            sys.settrace(trace)
            Progress("train", total=3, unit="step").close()
        except KeyboardInterrupt:
            lines += 1
        else:
            break
        finally:
            sys.settrace(before)
        gc.collect()
    assert 50 < lines < 500 and not wrong, set(wrong)
    capsys.readouterr()
