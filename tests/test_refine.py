"""benchmarks/refine.py with a scripted model: a finished run's calls are made nowhere again."""

import json

from scribe import Scribe
from test_synth import long_folder, run  # noqa: F401 (fixtures)

from benchmarks import refine
from support.files import write_jsonl


def calls_of(folder) -> set[str]:
    return {call["id"] for name in ("calls.jsonl", "calls.toxic.jsonl")
            for line in (folder / name).read_text().splitlines()
            for call in json.loads(line)["calls"]}


def test_nothing_is_made_again(run, tmp_path, monkeypatch, capsys):
    # Under this seed no answer fails twice for a reason to be told: such a one is drawn anew.
    assert run(tmp_path / "run", "--seed", "1") == 0
    capsys.readouterr()
    monkeypatch.setattr("synthesis.ledger.local_model", lambda *_, **__: Scribe(stop_at=0))
    assert refine.main([str(tmp_path / "run")]) == 0
    told = capsys.readouterr().out
    assert told.count("| rewritten with the reason |") == 2 == told.count("| drawn again |")
    for arm in ("rewrite", "redraw"):
        assert calls_of(tmp_path / f"run-{arm}") == calls_of(tmp_path / "run")


def test_other_seeds(run, tmp_path, capsys):
    run(tmp_path / "run")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    config["settings"]["seeds_sha256"] = "0" * 64
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    assert refine.main([str(tmp_path / "run")]) == 2
    assert "--seeds-file" in capsys.readouterr().err and not (tmp_path / "run-rewrite").exists()


def test_only_what_had_a_reason_to_be_told(tmp_path):
    """Of five items one has no second failure, one fails for a reason that is not told, and one is
    a claim."""
    def reject(item, attempt, reason, stage="answers"):
        return {"id": f"i/{item}/positive/{attempt}", "stage": stage, "reason": reason}

    rejects = [reject(0, 0, "complied"), reject(1, 1, "complied"), reject(1, 2, "echo"),
               reject(2, 1, "complied"), reject(3, 1, "cut"), reject(3, 2, "cut"),
               reject(2, 2, "similar", stage="instructions"), reject(4, 1, "echo")]
    write_jsonl(tmp_path / "rejects.jsonl", rejects)
    write_jsonl(tmp_path / "instructions.jsonl", [
        {"id": f"i/{i}", "ask": "claims" if i == 4 else "instructions"} for i in range(5)])
    counts = refine.last_attempts(tmp_path, "positive")
    assert counts == {"echo": 1, "accepted": 1} and not refine.last_attempts(tmp_path, "toxic")
    assert refine.gained(counts) == ["2", "50.0 [9.5, 90.5]", "echo 1"]
