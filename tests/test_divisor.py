"""benchmarks/divisor.py: a run of either divisor, and what it finds on file."""

import pytest
from test_train import ROWS

from benchmarks import divisor
from support.files import write_jsonl


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setattr(divisor, "WORK", tmp_path / "work")
    monkeypatch.setattr(divisor, "LOG", tmp_path / "log.jsonl")
    monkeypatch.setattr(divisor, "REAL", [{"epochs": "1", "batch-tokens": "64", "rank": "2"}])
    write_jsonl(tmp_path / "rows.jsonl", ROWS)
    return tmp_path


def test_both_divisors(place, capsys, monkeypatch):
    """A line each. Started again it makes nothing, and other data are another run."""
    words = ["--real", str(divisor.MODEL), str(place / "rows.jsonl"), "--seeds", "0"]
    assert divisor.main(words) == 0
    told = capsys.readouterr().out
    assert told.count("| 64 | step | 1 |") == told.count("| 64 | run | 1 |") == 1
    monkeypatch.setattr(divisor, "make", None)
    assert divisor.main(words) == 0 and capsys.readouterr().out == told
    write_jsonl(place / "rows.jsonl", ROWS[:-1])
    with pytest.raises(TypeError):
        divisor.main(words)
