"""Four cases of tests/crashes.py, one of each command: by this seed synth is killed, train is
broken inside a write, eval meets a full disk, and export a second process."""

import crashes
import pytest


@pytest.mark.slow
def test_broken_runs():
    counts = crashes.crash(4, seed=251)
    assert {command for command, _ in counts} == set(crashes.COMMANDS)
    assert not [wrong for own in counts.values() for wrong in own if wrong]


def test_complaints():
    """Only a fault that is told in one line, and a run that goes through, are no complaint."""
    line = ["ptalign: error: what, where, remedy"]
    assert crashes.complaint(0, []) is crashes.complaint(2, line) is None
    for code, errors in ((1, line), (2, []), (2, line * 2), (2, ["Traceback (most recent"]),
                         (-9, [])):
        assert crashes.complaint(code, errors)
