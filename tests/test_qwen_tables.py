"""benchmarks/qwen_tables.py on made-up evaluations: what it prints is what they measured."""

import pytest

from benchmarks import qwen_tables
from evals.figures import adjust, figure
from support.files import write_json, write_jsonl

KEY = "refusal/chat/strongreject/harmful/declined"


def evaluation(folder, declined: dict[str, list[int]]) -> dict:
    """results.json of a run in which column c declined as `declined[c]` says, prompt by prompt."""
    items = [{"prompt": str(number), **{c: float(values[number]) for c, values in declined.items()}}
             for number in range(len(declined["base"]))]
    figures = [figure(KEY, items, float, columns=tuple(declined), seed=0)]
    adjust(figures, None)
    folder.mkdir()
    write_json(folder / "results.json", {"figures": figures})
    return figures[0]


def test_arms_stand_beside_the_base(tmp_path, capsys):
    none, half, whole = [0] * 40, [1, 0] * 20, [1] * 40
    evaluation(tmp_path / "dev-pt", {"base": half, "tuned 1": whole, "tuned 2": whole})
    evaluation(tmp_path / "dev-mle", {"base": half, "tuned": none})
    assert qwen_tables.main([str(tmp_path), "dev"]) == 0
    told = capsys.readouterr().out
    assert "Training seeds: pt 2, mle 1. Not measured yet: dpo, no-mask" in told
    rates, changes = [line for line in told.splitlines() if line.startswith("| StrongREJECT")]
    assert rates.endswith("| 100.0 [100.0, 100.0] | 0.0 |") and "| 40 | 50.0 [" in rates
    assert changes.count("‡") == 2 and "+50.0 [" in changes and "-50.0 [" in changes


def test_a_change_by_one_seed_alone_is_not_marked(tmp_path, capsys):
    half, whole = [1, 0] * 20, [1] * 40
    evaluation(tmp_path / "dev-pt", {"base": half, "tuned 1": whole, "tuned 2": half})
    assert qwen_tables.main([str(tmp_path), "dev"]) == 0
    told = capsys.readouterr().out
    [change] = [line for line in told.splitlines() if line.startswith("| StrongREJECT")][1:]
    assert "+25.0 [" in change and "‡" not in change


def test_adapters_of_any_evaluation(tmp_path, capsys):
    """Side by side, under the names that are given; figures that were not measured are left out."""
    evaluation(tmp_path / "dev-own", {"base": [0] * 40, "tuned 1": [1] * 40, "tuned 2": [0] * 40})
    write_jsonl(tmp_path / "dev-own" / "items.jsonl", [])
    evaluated = ["--of", "dev-own"]
    assert qwen_tables.main([str(tmp_path), "rates", "pt", "mle", *evaluated]) == 0
    told = capsys.readouterr().out
    assert "| n | base | pt | mle |" in told and told.count("| StrongREJECT") == 1
    assert "| 100.0, +100.0 [+100.0, +100.0] ‡ | 0.0, 0.0 [0.0, 0.0] |" in told
    assert qwen_tables.main([str(tmp_path), "rates", "pt", *evaluated]) == 2


def test_parts_of_a_set(tmp_path, capsys):
    """Two sources, two seeds of one arm and one of the other; benign rows, other sets and items
    that have no group, as attacks', are none of it."""
    def item(id, base, *tuned, group="harmful", set="safety_tuned_llamas"):
        columns = {"base": base, **{f"tuned {i}": v for i, v in enumerate(tuned, 1)}}
        return {"set": set, "id": id, "group": group, "prompt": id,
                **{name: {"verdict": v} for name, v in columns.items()}}

    for arm, seeds in (("pt", 2), ("mle", 1)):
        evaluation(tmp_path / f"dev-{arm}", {"base": [1], "tuned": [1]})
        write_jsonl(tmp_path / f"dev-{arm}" / "items.jsonl", [
            item("stl-A-1", "declined", *["complied"] * seeds),
            item("stl-A-2", "complied", *["declined", "evaded"][:seeds]),
            item("stl-Q-B-1", "evaded", *["declined"] * seeds),
            item("stl-A-3", "declined", *["declined"] * seeds, group="benign"),
            item("s-1", "declined", *["declined"] * seeds, set="strongreject"),
            {"set": "k=5", "id": "k=5/j-1", "prompt": "j", "base": {"verdict": "declined"}}])
    assert qwen_tables.main([str(tmp_path), "parts"]) == 0
    assert capsys.readouterr().out.splitlines()[2:] == [
        "| A | 1 of 2 | 1 of 4 | 1 of 2 |", "| Q-B | 0 of 1 | 2 of 2 | 1 of 1 |"]


def test_held_out_pairs(tmp_path, capsys):
    """Each finished run's first and last row, which are of pairs of its own: mle-1 was cut off."""
    for name, first, last in (("pt-0", 0.5, 0.1), ("pt-1", 0.4, 0.2), ("mle-0", 0.5, 0.9),
                              ("mle-1", 0.5, 0.8)):
        (tmp_path / name).mkdir()
        if name != "mle-1":
            write_json(tmp_path / name / "adapter_config.json", {})
        write_jsonl(tmp_path / name / "validation.jsonl", [
            {"step": step, "log_p_positive": -1.0, "log_p_toxic": -2.0, "p_toxic": p,
             "entropy": 3.0} for step, p in ((0, first), (9, last))])
    assert qwen_tables.main([str(tmp_path), "held-out"]) == 0
    told = [line.split(" | ")[::3] for line in capsys.readouterr().out.splitlines()[2:]]
    assert told == [["| pt-0", "0.50 -> 0.10"], ["| pt-1", "0.40 -> 0.20"],
                    ["| mle-0", "0.50 -> 0.90"]]


@pytest.mark.parametrize(("harmful", "benign", "best"), [
    ((0.6, 0.9, 0.8), (0.2, 0.2, 0.1), "2e-4"),  # none declines more benign ones than the base
    ((0.6, 0.9, 0.8), (0.2, 0.4, 0.1), "4e-4"),  # the best one does
    ((0.6, 0.9, 0.8), (0.3, 0.5, 0.4), "1e-4")])  # all do
def test_the_learning_rate_is_chosen_by_rule(tmp_path, capsys, harmful, benign, best):
    figures = [{"key": f"refusal/chat/strongreject/{side}/declined",
                "adapters": [{"difference": share - base} for share in shares]}
               for side, base, shares in (("harmful", 0.5, harmful), ("benign", 0.2, benign))]
    (tmp_path / "dev-rates").mkdir()
    write_json(tmp_path / "dev-rates" / "results.json", {"figures": figures})
    assert qwen_tables.main([str(tmp_path), "rate", "1e-4", "2e-4", "4e-4"]) == 0
    assert capsys.readouterr().out == f"{best}\n"


def test_an_empty_folder_is_told(tmp_path, capsys):
    assert qwen_tables.main([str(tmp_path), "tables"]) == 2
    assert "run run.sh tables first" in capsys.readouterr().err


def test_one_learning_rate_is_the_one_that_is_chosen(tmp_path, capsys):
    (tmp_path / "dev-rates").mkdir()
    write_json(tmp_path / "dev-rates" / "results.json", {"figures": [
        {"key": f"refusal/chat/xstest/{side}/declined", "difference": 0.1, "p": 0.5}
        for side in ("harmful", "benign")]})
    assert qwen_tables.main([str(tmp_path), "rate", "2e-4"]) == 0
    assert capsys.readouterr().out == "2e-4\n"
