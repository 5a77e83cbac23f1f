"""benchmarks/requests.py with a scripted model: every request that a judge saw has one fate."""

import json

from scribe import Scribe
from test_synth import long_folder  # noqa: F401 (fixture)

from benchmarks import requests
from synthesis.seeds import SHIPPED


def test_fates_add_up(long_folder, tmp_path, monkeypatch, capsys):
    """Two files of seeds, of which one lacks a domain, stand side by side."""
    monkeypatch.setattr(requests, "local_model", lambda *_, **__: Scribe(judges=True))
    less = json.loads(SHIPPED.read_text())
    less["domains"] = [d for d in less["domains"] if d["name"] != "computer crime"]
    (tmp_path / "less.json").write_text(json.dumps(less))
    command = ["--model", str(long_folder), "--calls", "20", "--out", str(tmp_path / "out"),
               str(SHIPPED), str(tmp_path / "less.json")]
    assert requests.main(command) == 0
    told = capsys.readouterr().out
    assert requests.main(command) == 0 and capsys.readouterr().out == told  # from the record
    head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")]
                      for line in told.splitlines() if line.startswith("|")]
    assert head[1:] == [f"{name}: {fate}" for name in ("seeds", "less") for fate in requests.FATES]
    counts = {name: list(map(int, cells)) for name, *cells in rows}
    total = counts.pop("all")
    assert [sum(column) for column in zip(*counts.values(), strict=True)] == total
    assert total[0] > 0 < total[1] and counts["computer crime"][3:] == [0, 0, 0]
    assert "everyday life" not in counts
    # The scribe calls a request about a kettle harmless, and writes few of these.
    assert total[0] > total[1] * 2


def test_a_missing_file_is_one_line(long_folder, tmp_path, capsys):
    assert requests.main(["--model", str(long_folder), "--out", str(tmp_path), "nowhere.json"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
