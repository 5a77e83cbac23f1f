"""figures.py and report.py on made-up items: no model is run (CPU, NumPy).

Corrected p-values against a worked example, several adapters against each alone, what the tables
show against the figures, and that all of it stays readable with many tasks.
"""

import re

import pytest

from evals.figures import adjust, columns_of, figure
from evals.report import (
    figure_tables,
    figures_text,
    markdown_table,
    render_markdown,
    render_text,
    summary,
)
from evals.stats import holm
from evals.texts import one_line, p_text
from export.card import measured
from support.files import InputError

ONE, TWO = ("base", "tuned"), ("base", "tuned 1", "tuned 2")


def items_of(*columns: str) -> list[dict]:
    """Items from one string of 0 and 1 a column, two to a prompt."""
    names = ("base", "tuned") if len(columns) == 2 else ("base", "tuned 1", "tuned 2")
    return [{"prompt": f"p{i // 2}", **dict(zip(names, map(float, own), strict=False))}
            for i, own in enumerate(zip(*columns, strict=True))]


def made(key: str, *columns: str, good=True) -> dict:
    return figure(key, items_of(*columns), float, columns=TWO[:1] if len(columns) == 1 else
                  ONE if len(columns) == 2 else TWO, seed=0, higher_is_better=good)


def results_of(figures: list[dict], primary: str | None = None, **more) -> dict:
    adjust(figures, primary)
    return {"primary": primary, "figures": figures, "nulls": {}, "answers": {}, "contexts_cut": {},
            "tables": [], "notes": [], "dtype": "float32", "device": "cpu", "sources": {},
            "settings": {"model": "m", "adapter": "a"}, "versions": {}, "date": "", "training": {},
            **more}


def test_marks_in_names():
    """A user's name for a thing is no part of a table's shape."""
    assert one_line("a │ b\nc") == "a | b c" and one_line(3) == 3


# ---- Holm ----

@pytest.mark.parametrize("ps, adjusted", [
    # by hand: .01 x 4; .02 x 3; .03 x 2 = .06 again; .04 x 1 may not be below .06
    ([0.01, 0.02, 0.03, 0.04], [0.04, 0.06, 0.06, 0.06]),
    ([0.04, 0.01, 0.03, 0.005], [0.06, 0.03, 0.06, 0.02]),  # in the order given
    ([0.3, 0.01], [0.3, 0.02]),
    ([0.6, 0.9, 0.0], [1.0, 1.0, 0.0]),  # never above 1
    ([0.02, 0.02], [0.04, 0.04]),
    ([0.2], [0.2]), ([], []),
])
def test_holm(ps, adjusted):
    assert holm(ps) == pytest.approx(adjusted)


def test_primary_figure_stands_alone():
    ps = {"first": 0.03, "second": 0.01, "third": 0.02}
    figures = [{"key": key, "p": p} for key, p in ps.items()] + [{"key": "base alone"}]
    adjust(figures, "first")
    assert [f.get("p_holm") for f in figures] == [0.03, 0.02, 0.02, None]
    adjust(figures, None)
    assert [f.get("p_holm") for f in figures] == [0.04, 0.03, 0.04, None]


def test_every_adapter_is_a_test_of_the_family():
    seeds = {"key": "seeds", "adapters": [{"p": 0.01}, {"p": 0.02}]}
    adjust([seeds, {"key": "lead", "adapters": [{"p": 0.04}, {"p": 0.5}]}], "lead")
    assert [test["p_holm"] for test in seeds["adapters"]] == [0.02, 0.02]


# ---- several adapters ----

def test_columns():
    assert columns_of(None) == ("base",) and columns_of("a") == ONE
    assert columns_of(["a", "b"]) == TWO


@pytest.mark.parametrize("good", [True, False])
def test_adapters_are_each_compared_with_the_base(good):
    base, one, two = "00001111", "00111111", "00010011"
    both = made("k", base, one, two, good=good)
    alone = [made("k", base, own, good=good) for own in (one, two)]
    for pair, single in zip(both["adapters"], alone, strict=True):
        assert pair == {name: single[name] for name in pair}
        assert {"tuned", "difference", "bootstrap_95", "fixed", "broken", "p"} == pair.keys()
    assert both["base"] == alone[0]["base"]
    assert both["tuned"] == {"rate": 4.5 / 8, "range": [3 / 8, 6 / 8]}
    assert both["difference"] == 0.5 / 8 and both["difference_range"] == [-1 / 8, 2 / 8]
    assert both.keys().isdisjoint({"p", "fixed", "broken"})  # nothing is pooled


def test_interval_of_the_mean_draws_prompts_not_answers():
    """Equal adapters add no information: the interval is that of one of them."""
    base, one = "0000000000", "0100110010"
    assert made("k", base, one, one)["bootstrap_95"] == made("k", base, one)["bootstrap_95"]


# ---- tables ----

FLIPS = {"lost": ("1" * 40, "0" * 24 + "1" * 16), "kept": ("1" * 40, "00" + "1" * 38)}


def test_tables_are_grouped_and_marked():
    figures = [made("hhh/raw/all/byte", *FLIPS["kept"]), made("hhh/raw/all/sum", *FLIPS["lost"]),
               made("refusal/chat/x/harmful/refused", *FLIPS["lost"], good=False),
               made("judge/refusal/chat/x/judged harmful", *FLIPS["kept"])]
    results = results_of(figures, "hhh/raw/all/byte")
    hhh, refusal, judge = figure_tables(results)
    assert [table[0][0] for table in (hhh, refusal, judge)] == [
        "hhh raw", "refusal chat", "judge refusal chat"]
    assert [row[0] for row in hhh[1:]] == ["all byte *", "all sum"] and judge[1][0][0] == "x"
    assert hhh[0][-2:] == ("p", "Holm's p") and hhh[1][1] == "40 (20)"
    # twelve prompts: 2 * .5 ** 12 = .00049; two of the three others share it: x 3, and x 2 raised
    assert [row[-2:] for row in hhh[1:]] == [("1", "1  "), ("0.00049", "0.0015 ‡")]
    assert refusal[1][-3:] == ("24/0", "0.00049", "0.0015 ‡")
    lines = summary(results)
    assert lines[0].startswith("Primary figure: hhh raw all byte, 100.0 → 95.0 %, -5.0 points")
    assert lines[1:] == [
        "Better after Holm's correction: 1 of 3 other figures: refusal chat x harmful refused "
        "-60.0.", "Worse after Holm's correction: 1 of 3 other figures: hhh raw all sum -60.0."]


def test_table_of_several_adapters():
    (base, kept), (_, lost) = FLIPS["kept"], FLIPS["lost"]
    results = results_of([made("hhh/raw/all/sum", base, kept, lost)])
    ((header, row),) = figure_tables(results)
    assert len(header) == len(row) and "mean, range" in header[3]
    assert row[3:5] == ("67.5 [40.0, 95.0]", "-32.5 [-60.0, -5.0]")
    assert row[-2:] == ("1 of 2", "1 of 2")
    text = render_text(results)
    assert "corrects for the 2 tests" in text and "none of which was named primary" in text
    assert "Worse after Holm's correction: 0 of 1 figures." in text  # it was under one alone


def test_adapters_that_disagree_are_neither_better_nor_worse():
    """Both changes are far below the level, and their mean is a gain."""
    base, one, two = "1" * 40 + "0" * 80, "1" * 120, "0" * 40 + "0" * 80
    results = results_of([made("hhh/raw/all/sum", base, one, two)])
    assert all(test["p_holm"] < 0.001 for test in results["figures"][0]["adapters"])
    assert results["figures"][0]["difference"] > 0
    assert summary(results) == [f"{word} after Holm's correction: 0 of 1 figures."
                                for word in ("Better", "Worse")]


def test_a_change_is_told_by_its_interval_and_not_by_counts_alone():
    """Sixty prompts rise a little, ten fall far: surely more rose, and the mean rather fell."""
    changes = [0.01] * 60 + [-0.07] * 10
    mixed = figure("k", [{"prompt": str(i), "base": 0.5, "tuned": 0.5 + change}
                         for i, change in enumerate(changes)], float, columns=ONE, seed=0)
    results = results_of([mixed])
    assert mixed["difference"] < 0 and mixed["p_holm"] < 1e-6
    assert summary(results) == [f"{word} after Holm's correction: 0 of 1 figures."
                                for word in ("Better", "Worse")]


def test_items_that_share_prompts_are_told_of():
    rates, tests = "those of one prompt taken as independent", "sign test over prompts"
    shared = [made("hhh/raw/all/sum", *FLIPS["kept"][:n]) for n in (1, 2)]
    alone = figure("hhh/raw/all/sum", [{"prompt": str(i), "base": 0.0, "tuned": 1.0}
                                       for i in range(9)], float, columns=ONE, seed=0)
    for figure_, wanted in ((shared[0], (True, False)), (shared[1], (True, True)),
                            (alone, (False, False))):
        text = render_text(results_of([figure_]))
        assert (rates in text, tests in text) == wanted


@pytest.mark.parametrize("p, text", [
    (1.0, "1"), (0.0123, "0.012"), (7.6e-06, "7.6e-06"), (0.0, "< 1e-300")])
def test_no_p_is_zero(p, text):
    assert p_text(p) == text


def test_cells_cannot_break_a_markdown_table():
    assert markdown_table([("a|b *", "1"), ("c", "2  ")]).splitlines() == [
        "| a\\|b \\* | 1 |", "|---|---:|", "| c | 2 |"]


def test_names_are_no_html():
    """An image of a group's name would be fetched by whoever opens report.md."""
    group, path = "<img src=x> < 5", "a<b>/m"
    results = results_of([made(f"file:e/raw/{group}/sum", "0101")])
    results["settings"]["model"] = path
    results["notes"] = [f"perplexity of {path}."]
    page = render_markdown(results)
    assert "| \\<img src=x> < 5 sum |" in page and page.count("a\\<b>/m") == 3
    assert not re.search(r"(?<!\\)<[a-z]", page)


def test_many_tasks_stay_in_line():
    figures = [made(f"task{t}/chat/set {'x' * n}/rate", *FLIPS["kept"])
               for t in range(15) for n in range(4)]
    results = results_of(figures, figures[0]["key"])
    tables = figures_text(results).split("\n\n")
    assert len(tables) == 15 and all(table.count("\n") == 5 for table in tables)
    assert max(map(len, figures_text(results).splitlines())) < 130
    ends = {line.index("95.0 [") for table in tables for line in table.splitlines()[2:]}
    assert len(ends) == 1  # one column, all through the page
    page = render_markdown(results)
    assert page.count("\n|---|") == 15 and "corrects for the 59 tests" in page
    assert page.index("Primary figure") < page.index("| task0 chat") < page.index("## Settings")


def test_base_alone_is_not_compared():
    text = render_text(results_of([made("hhh/raw/all/sum", "0101")]))
    assert "50.0 [" in text and not any(word in text for word in ("Holm", "McNemar", "tuned"))
    assert "Rates have Wilson intervals over items." in render_text(results_of([
        figure("hhh/raw/all/sum", [{"prompt": "a", "base": 1.0}], float, columns=("base",),
               seed=0)]))
    assert render_text(results_of([])) == ""  # no rates, as with perplexity alone


@pytest.mark.parametrize("field", ["figures", "nulls", "notes", "dtype"])
def test_damaged_results_are_told_to_the_export(field):
    results = results_of([made("hhh/raw/all/sum", *FLIPS["lost"])])
    assert "hhh raw" in measured(results)
    del results[field]
    with pytest.raises(InputError, match="not what eval wrote"):
        measured(results)
