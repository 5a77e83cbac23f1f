"""benchmarks/separation.py: do the odds of a refusal tell harmful requests from benign ones?"""

from xml.etree import ElementTree

import numpy as np

from benchmarks.separation import caught, curve, main, scores, table
from model import load_model
from support.files import write_jsonl
from tokenizer import Tokenizer

HARMFUL = np.array([True, True, True, False, False, False])


def cells(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()[2:]]


def test_a_shift_of_all_scores_changes_the_line_and_not_the_auc():
    base = np.log([0.4, 0.3, 0.1, 0.2, 0.05, 0.01])  # 8 of 9 pairs are in order
    rows = cells(table({"base": base, "wary": base + np.log(2), "wise": base + HARMFUL},
                       HARMFUL))
    assert [row[1].split()[0] for row in rows] == ["0.889", "0.889", "1.000"]
    assert rows[1][2] == "+0.000 [+0.000, +0.000]" and rows[2][2].startswith("+0.111")
    assert [row[-2:] for row in rows] == [["0.0", "0.0"], ["66.7", "0.0"], ["66.7", "0.0"]]


def test_what_is_caught_where_benign_prompts_are_declined_as_often():
    harmful, benign = np.array([20, 15, 5]), np.arange(20)
    assert caught(harmful, benign, 0.0) == 1 / 3  # above all 20
    assert caught(harmful, benign, 0.2) == 1 / 3  # four are above 15, which itself is not
    assert caught(harmful, benign, 0.25) == 2 / 3
    points = curve(harmful, benign)
    assert points[0] == (0, 0) and points[-1] == (100, 100) and points == sorted(points)


def test_a_refusal_may_begin_in_several_ways(tiny_folder):
    model, tokenizer = load_model(tiny_folder, dtype="float32"), Tokenizer(tiny_folder)
    one, other, both = (np.exp(scores(model, tokenizer, ["What?", "Why?"], ways, None))
                        for ways in (["No"], ["Sorry"], ["No", "Sorry"]))
    np.testing.assert_allclose(both, one + other, rtol=1e-5)


def test_from_prompts_to_a_picture(tiny_folder, adapter, tmp_path, capsys):
    file, picture = tmp_path / "prompts.jsonl", tmp_path / "curves.svg"
    write_jsonl(file, [{"id": str(i), "prompt": f"What of {i}?", "category": "c",
                        "harmful": i % 2 == 0} for i in range(6)])
    command = ["--model", str(tiny_folder), "--prompts", str(file)]
    assert main([*command, "--adapter", f"a & b={adapter}", "--picture", str(picture)]) == 0
    told = capsys.readouterr().out
    assert told.startswith("3 harmful prompts, 3 benign ones") and len(cells(told)) == 4
    assert "a & b" in "".join(ElementTree.parse(picture).getroot().itertext())
    for wrong in (["--adapter", "nameless"], ["--adapter", f"base={adapter}"]):
        assert main([*command, *wrong]) == 2
    write_jsonl(file, [{"id": "1", "prompt": "What?", "category": "c", "harmful": True}])
    assert main(command) == 2
