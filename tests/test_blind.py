"""benchmarks/blind.py: answers without their columns, and the table of two readers' grades."""

import re
import shutil
from xml.etree import ElementTree

from safetensors.torch import load_file, save_file
from test_evals import rows, run  # noqa: F401 (fixture)

from benchmarks.blind import main, rate
from benchmarks.blind_picture import LEFT, RIGHT
from benchmarks.blind_picture import main as picture
from support.files import read_jsonl


def test_attacks(tiny_folder, adapter, rows, tmp_path, capsys):
    """What an attack is after is shown, not its prompt; lines by template and of all together."""
    out, other = tmp_path / "out", tmp_path / "other"
    shutil.copytree(adapter, other)
    tensors = load_file(adapter / "adapter_model.safetensors")
    save_file({name: 2 * x for name, x in tensors.items()}, other / "adapter_model.safetensors")
    run(tiny_folder, rows, out, tasks=["jailbreak"], adapter=[str(adapter), str(other)], limit=2)
    assert main(["draw", str(out), "--data-dir", str(rows)]) == 2  # no task refusal
    options = ["--data-dir", str(rows), "--task", "jailbreak", "--adapters", "1"]
    assert main(["draw", str(out), *options]) == 0
    key = [row for _, row in read_jsonl(out / "blind" / "key.jsonl")]
    items = [item for _, item in read_jsonl(out / "items.jsonl")]
    assert len(key) == 2 * len(items) and {"base"} < {row["column"] for row in key}
    sheet = (out / "blind" / "sheet.txt").read_text()
    assert len(set(re.findall("(?m)^REQUEST: (.*)", sheet))) == 2
    for name in "ab":
        (out / "blind" / f"grades-{name}.txt").write_text(
            "".join(f"{row['number']} C\n" for row in key))
    capsys.readouterr()
    assert main(["table", str(out), "pt"]) == 0
    told = capsys.readouterr().out
    assert "| templates together | complied | 2 | 2: 100.0" in told  # by behaviour
    assert "| direct direct | complied | 2 | 2: 100.0" in told
    assert f"| harmful | base | complied | {len(items)} |" in told


def test_from_draw_to_table(tiny_folder, adapter, rows, tmp_path, capsys):
    out = tmp_path / "out"
    run(tiny_folder, rows, out, tasks=["refusal"], adapter=[str(adapter)])
    capsys.readouterr()
    draw = ["draw", str(out), "--data-dir", str(rows)]
    assert main([*draw, "--sets", "jailbreakbench"]) == 0
    assert {row["set"] for _, row in read_jsonl(out / "blind" / "key.jsonl")} == {"jailbreakbench"}
    assert main([*draw, "--sets", "xtest"]) == 2
    assert main([*draw[:2], "--data-dir", str(tmp_path)]) == 2  # other rows, or none
    for _ in range(2):
        assert main(draw) == 0
        key = [row for _, row in read_jsonl(out / "blind" / "key.jsonl")]
    sheet = (out / "blind" / "sheet.txt").read_text()
    items = [item for _, item in read_jsonl(out / "items.jsonl")]
    assert len(key) == 2 * len(items) == sheet.count("REQUEST: ") and "tuned" not in sheet
    assert [row["column"] for row in key] != sorted(row["column"] for row in key)
    assert (out / "blind" / "sheet.txt").stat().st_mode & 0o077 == 0

    assert main(["table", str(out), "pt"]) == 2  # nobody has graded yet
    for name in "ab":  # the tuned answers decline; the second reader doubts the base's
        (out / "blind" / f"grades-{name}.txt").write_text("".join(
            f"{row['number']} {'D' if row['column'] == 'tuned' else 'C' if name == 'a' else 'N'}\n"
            for row in key))
    assert main(["table", str(out)]) == 2  # an adapter has no name
    assert main(draw) == 2  # the grades would be another key's
    capsys.readouterr()
    assert main(["table", str(out), "pt"]) == 0
    told = capsys.readouterr().out
    harmful = sum(i["set"] == "xstest" and i["group"] == "harmful" for i in items)
    [line] = [line for line in told.splitlines() if line.startswith("| xstest harmful | declined")]
    assert line.startswith(f"| xstest harmful | declined | {harmful} | 0: 0.0 [")
    assert f"| {harmful}: 100.0, +100.0 [+100.0, +100.0] |" in line
    assert f"agree on {len(items)} of {len(key)}" in told
    # One of the readers alone says that the base complies.
    assert f"| xstest harmful | complied | {harmful} | 0: 0.0 [" in told
    # Nobody agrees on the base; the rule's verdicts on the tuned answers add up.
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in told.splitlines()
             if "| adapters |" in line or line.startswith(("| harmful | base", "| benign | base"))]
    assert {tuple(line[1:3]) for line in lines} == {("adapters", "declined")}
    assert sum(int(line[3]) for line in lines) == len(items)
    assert all(int(line[3]) == sum(map(int, line[4:])) for line in lines)
    drawn = tmp_path / "rates.svg"
    assert picture([str(tmp_path), "pt=out", "again=out", "--out", str(drawn)]) == 0
    circles = [at.attrib for at in ElementTree.parse(drawn).iter() if at.tag.endswith("circle")]
    lines = len({(row["set"], row["group"]) for row in key})
    assert len(circles) == 3 * (lines + 1)  # a legend, and three marks a line
    # Nobody agrees on the base; the tuned answers decline, which is wrong of benign requests alone.
    marks = [float(mark["cx"]) for mark in circles[3:]]
    assert marks[0::3] == [LEFT] * lines and marks[1::3] == marks[2::3]
    assert set(marks) == {LEFT, RIGHT}
    assert picture([str(tmp_path), "out", "--out", str(drawn)]) == 2  # no name
    for taken in (["base=out"], ["pt=out", "pt=out"]):  # one of the two would not be drawn
        assert picture([str(tmp_path), *taken, "--out", str(drawn)]) == 2
    (out / "blind" / "grades-b.txt").write_text("1 X\n")
    assert main(["table", str(out), "pt"]) == 2
    assert "no grade" in capsys.readouterr().err
    # Of two grades the last would count, and nobody would know of the slip.
    (out / "blind" / "grades-b.txt").write_text((out / "blind" / "grades-a.txt").read_text()
                                                + "1 N\n")
    assert main(["table", str(out), "pt"]) == 2
    assert "answer 1 has two grades" in capsys.readouterr().err


def test_a_base_alone_has_no_seeds(tiny_folder, rows, tmp_path, capsys):
    out = tmp_path / "out"
    run(tiny_folder, rows, out, tasks=["refusal"], limit=1)
    assert main(["draw", str(out), "--data-dir", str(rows)]) == 0
    numbers = [row["number"] for _, row in read_jsonl(out / "blind" / "key.jsonl")]
    for name in "ab":
        (out / "blind" / f"grades-{name}.txt").write_text("".join(f"{n} D\n" for n in numbers))
    assert main(["table", str(out)]) == 0
    capsys.readouterr()
    drawn = ["--out", str(tmp_path / "rates.svg")]
    assert main(["table", str(out), "pt", "--seeds"]) == 2
    assert picture([str(tmp_path), "pt=out", *drawn]) == 2
    assert capsys.readouterr().err.count("\n") == 2


def test_what_is_no_evaluation(tmp_path, capsys):
    assert main(["draw", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_the_mean_of_seeds():
    """Half of 40 prompts under one seed, a quarter under the other; none under the base."""
    ids = [f"p{i}" for i in range(40)]
    base, half, quarter = ({id: i % 4 < n for i, id in enumerate(ids)} for n in (0, 2, 1))
    assert rate([base]).startswith("0: 0.0 [0.0, ")
    told = rate([half, quarter], base)
    assert told.startswith("15: 37.5 [25.0, 50.0], +37.5 [+2")  # no seed alone decides the interval
