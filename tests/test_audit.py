"""benchmarks/audit.py: a sheet drawn by seed, and the page of two readers' grades."""

import pytest

from benchmarks.audit import agreement, main
from support.files import read_jsonl, write_json, write_jsonl

MARK = "scornmark"


@pytest.fixture
def run(tmp_path):
    rows = [{"id": f"i/{i}", "kind": "benign" if i % 3 == 0 else "both", "domain": "fraud",
             "topic": "fakes", "prompt": f"Request {i}?", "positive": f"No {i}.",
             "toxic": None if i % 3 == 0 else MARK, "first_mismatch": 0} for i in range(30)]
    write_jsonl(tmp_path / "triplets.jsonl", rows)
    write_json(tmp_path / "config.json", {"settings": {"model": "MODEL"}})
    return tmp_path


def test_from_draw_to_page(run, capsys):
    out = run / "page.md"
    assert main(["draw", str(run), "--rows", "12"]) == 0
    sheet = [row for _, row in read_jsonl(run / "audit" / "sheet.jsonl")]
    assert main(["draw", str(run), "--rows", "12"]) == 0
    assert sheet == [row for _, row in read_jsonl(run / "audit" / "sheet.jsonl")]
    assert len({row["id"] for row in sheet}) == 12 and "first_mismatch" not in sheet[0]

    assert main(["page", str(run), str(out)]) == 2  # nobody has graded yet
    grades = [{"id": row["id"], "instruction": True, "positive": True,
               "negative": None if row["benign"] else True} for row in sheet]
    write_jsonl(run / "audit" / "grades-a.jsonl", grades)
    write_jsonl(run / "audit" / "grades-b.jsonl", grades[1:])
    assert main(["page", str(run), str(out)]) == 2
    assert f"row {sheet[0]['id']} is not graded" in capsys.readouterr().err
    write_jsonl(run / "audit" / "grades-b.jsonl", grades)
    assert main(["page", str(run), str(out)]) == 0
    assert "counts as one reading" in out.read_text() and "kappa" not in out.read_text()
    write_jsonl(run / "audit" / "grades-b.jsonl", [row | {"note": "b"} for row in grades])
    assert main(["page", str(run), str(out)]) == 0 and "kappa" not in out.read_text()
    write_jsonl(run / "audit" / "grades-b.jsonl", [{"instruction": True}, *grades[:-1]])
    assert main(["page", str(run), str(out)]) == 2
    write_jsonl(run / "audit" / "grades-b.jsonl", [grades[0] | {"positive": [1]}, *grades[1:]])
    assert main(["page", str(run), str(out)]) == 2
    grades[0] = {**grades[0], "positive": False}
    write_jsonl(run / "audit" / "grades-b.jsonl", grades)
    assert main(["page", str(run), str(out)]) == 0
    text = out.read_text()
    assert "| passed by both % [95 %] | by at least one % [95 %] |" in text
    assert "| positive, all | 11 of 12: 91.7 [64.6, 98.5] | 12 of 12" in text
    pairs = sum(not row["benign"] for row in sheet)
    assert f"| negative, pairs | {pairs} of {pairs}: 100.0" in text and "| 92 %" in text
    assert sheet[3]["prompt"] in text and MARK not in text + capsys.readouterr().out


def test_agreement():
    """Half of the grades are equal: by chance alone, then kappa is 0."""
    assert agreement([(True, True), (True, False), (False, True), (False, False)]) == \
        "50 %, kappa 0.00"
    assert agreement([(True, True), (False, False)]) == "100 %, kappa 1.00"
    assert agreement([(True, True)] * 3) == "100 %"
