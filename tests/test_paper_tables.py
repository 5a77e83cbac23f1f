"""benchmarks/runs.py, paper_tables.py, paper_page.py and demo_runs.py on made-up measurements."""

import re
from types import SimpleNamespace

import pytest
import torch

import demo
from benchmarks import arms, arms_depth, demo_runs, paper_page, paper_tables, runs
from benchmarks.paper_tables import ARMS, FINE, RATES, SEEDS, Arm, run_of
from benchmarks.runs import Records, Run, best
from support.files import InputError, read_jsonl, write_jsonl


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(paper_tables, "WORK", tmp_path / "work")
    (tmp_path / "work").mkdir()
    return tmp_path


def figures(harmless: float, right: float = 0.9, n: int = 100) -> dict:
    values = {key: [round(0.5 * n), n] for key in paper_page.FIGURES.values()}
    return values | {"bad sampled/harmless": [round(harmless * n), n],
                     "benign sampled/right": [round(right * n), n],
                     "benign/right": [round(right * n), n], "all/well-formed": [n, n]}


def test_arms_are_the_papers():
    names = [arm.name for arm in ARMS]
    assert len(set(names)) == len(names) and len(set(ARMS)) == len(ARMS)
    shown = {name for table in paper_page.TABLES.values() for name in table}
    assert shown == set(names)
    used = {arm for claim in paper_page.CLAIMS for arm in claim[1:3]}
    assert used <= {"base", *names}
    steps = {arm.name: arm.pairs * arm.epochs for arm in ARMS}
    assert {steps[name] for name in paper_page.EQUAL.values()} == {steps["fine"]}
    penalties = {arm.name: arm.penalty for arm in ARMS}
    assert all(penalties[name] == x for x, name in paper_page.LAMBDAS.items())


def test_rows_of_an_arm(place, monkeypatch):
    rows = [{"id": i, "toxic": "no" if i % 2 else None} for i in range(1500)]
    write_jsonl(place / "triplets.jsonl", rows)
    monkeypatch.setattr(paper_tables, "synthesise", lambda seed, thoughts: place)
    monkeypatch.setattr(paper_tables, "mild", lambda pairs, seed: [
        {**row, "toxic": "mild"} for row in pairs])
    for arm, pairs, benign in ((FINE, 256, 35), (Arm("few", pairs=64), 64, 9),
                               (Arm("none", benign=False), 256, 0),
                               (Arm("mild", polar=False), 256, 35)):
        made = [row for _, row in read_jsonl(paper_tables.rows_of(arm, 0))]
        toxic = [row["toxic"] is not None for row in made]
        assert (sum(toxic), len(toxic) - sum(toxic)) == (pairs, benign)
        assert toxic == sorted(toxic, reverse=True)
        assert {row["toxic"] for row in made} - {None} == {"no" if arm.polar else "mild"}


def test_a_measurement_on_record_is_not_made_again(place, monkeypatch):
    made = []

    class InLine:
        """In the place of a pool of processes."""
        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def map(self, function, wanted):
            for run in wanted:
                made.append((run and run.seed, run and run.options))
                yield {"adapter_sha256": "a", "figures": figures(0.9)}

    monkeypatch.setattr(runs, "processes", lambda jobs: InLine())
    data = place / "rows.jsonl"
    data.write_text("first")
    first, other = (Run("fine", seed, data, ("--lr", "1e-3")) for seed in (0, 1))
    Records("dev").fill([None, first, other, first], jobs=1)
    assert made == [(None, None), (0, ("--lr", "1e-3")), (1, ("--lr", "1e-3"))]
    Records("dev").fill([first, None], jobs=1)  # read back from the file
    assert len(made) == 3
    assert Records("dev").find(first)["figures"]["benign/right"] == [90, 100]
    Records("held-out").fill([first], jobs=1)
    Records("dev", n=9).fill([first], jobs=1)
    Records("dev").fill([Run("fine", 0, data, ("--lr", "2e-3"))], jobs=1)
    assert len(made) == 6
    data.write_text("other rows")
    assert Records("dev").find(first) is None
    assert first.folder() != other.folder()


def test_the_settings_of_an_arm(tmp_path):
    (tmp_path / "rows").write_text("")
    shared = run_of(FINE, 1, demo.TRAIN["lr"], tmp_path / "rows").options
    assert demo.TRAIN["lr"] in RATES
    named = dict(zip(shared[::2], shared[1::2], strict=True))
    assert named == {**{f"--{name}": value for name, value in demo.TRAIN.items()},
                     "--penalty": "0.4", "--mask": "first-mismatch", "--objective": "pt"}


@pytest.mark.parametrize(("rates", "chosen"), [
    # (harmless, right) by settings; the base is (0.4, 0.9)
    ({"a": (0.6, 0.9), "b": (0.8, 0.89), "c": (0.99, 0.88)}, "b"),
    ({"a": (0.6, 0.7), "b": (0.8, 0.6)}, "a"),  # all lose too much: the one that loses least
])
def test_the_dev_split_chooses_harmless_that_stays_helpful(rates, chosen):
    rows = {key: {"figures": figures(*values)} for key, values in rates.items()}
    assert best(rows, {"figures": figures(0.4, 0.9)}) == chosen


def test_a_command_that_fails_says_why(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        runs.command("train", "--model", str(runs.MODEL), "--data", str(tmp_path / "none.jsonl"),
                     "--out", str(tmp_path / "out"))


@pytest.mark.parametrize("script", [demo_runs, paper_tables])
@pytest.mark.parametrize("wrong", [["--jobs", "0"], ["--jobs", "two"], ["--sing"]])
def test_bad_options_are_told_in_one_line(script, wrong, capsys):
    assert script.main(wrong) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"{script.__name__.rpartition('.')[2]}: error: ") and wrong[0] in err
    assert err.count("\n") == 1


def test_demo_page():
    assert demo.TRAIN in demo_runs.GRID
    def line(rate, low):
        return {"n": 100, "base": {"rate": 0.5}, "tuned": {"rate": rate},
                "difference": rate - 0.5, "bootstrap_95": [low, low + 0.1]}
    good = {key: line(0.98, 0.4) for key in demo.SHOWN} | {
        "benign sampled/refused": line(0.01, -0.5)}
    lost = good | {"benign/right": line(0.46, -0.031)}
    shown, met = demo_runs.demo_tables({0: good, 1: lost})
    assert "| tuned | 98.0 | 98.0 |" in shown and "| difference | -4.0" not in shown
    assert met.count(" yes |") == 9 and met.count("| -3.1 no |") == 1
    rows = {place: {"figures": {key: [place, 100] for key in demo.SHOWN}}
            for place in range(len(demo_runs.GRID))}
    text = demo_runs.grid_table(3, rows, rows[0])
    assert text.count("| chosen | 4 | 640 | 16 | 32 | 1.5e-3 | 3.0 |") == text.count("chosen") == 1


def test_claims_hold_only_where_all_seeds_agree():
    def runs(*values):
        return [{"figures": figures(value)} for value in values]
    key = "bad sampled/harmless"
    assert paper_page.verdict(runs(0.9, 0.95), runs(0.4, 0.8), key, 0.0) == "yes"
    assert paper_page.verdict(runs(0.9, 0.7), runs(0.4, 0.8), key, 0.0).startswith("within")
    assert paper_page.verdict(runs(0.3, 0.2), runs(0.4, 0.8), key, 0.0) == "no"
    assert paper_page.verdict(runs(0.88), runs(0.9), key, -0.03) == "yes"


def test_page(tmp_path):
    pytest.importorskip("matplotlib")
    measured = [{"n": 100, "figures": figures(0.8 + 0.05 * seed)} for seed in SEEDS]
    tuned = [arm.name for arm in ARMS if arm.tuned]
    rows = {(arm.name, "shared"): measured for arm in ARMS}
    rows |= {(name, "tuned"): measured for name in tuned}
    rows["base", "shared"] = [{"n": 100, "figures": figures(0.4)}]
    facts = {"fine": [{"harmless": [9, 10]}, {"harmless": [8, 10]}], "mild": [{"harmless": [4, 8]}]}
    options = {"rates": dict.fromkeys(tuned, "2e-3"), "shared": "1e-3", "facts": facts,
               "openings": {"base": [[0.5, 0.7], [0.9]], "fine": [[0.4], []]}}
    paper_page.write(tmp_path, rows, **options)
    text = (tmp_path / "tables.md").read_text()
    assert "| fine | shared | 1e-3 | 85.0 [80.0, 90.0] |" in text
    assert "| fine | tuned | 2e-3 | 85.0" in text and "| fine | 85.0 |" in text
    assert "| pairs-8 | shared | 1e-3 | 85.0" in text and "| pairs-8 | tuned |" not in text
    assert re.search(r"more data helps \|.*\| within seeds' spread \|  \|  \|", text)
    assert "| base |  |  | 40.0 [30.9, 49.8] |" in text
    assert "| base | 0.600 | 0.900 |" in text and "| fine | 0.400 |  |" in text
    plots = sorted(path.name for path in tmp_path.glob("*.svg"))
    assert plots == ["lambda.svg", "openings.svg", "pairs.svg"]
    before = [(tmp_path / name).read_bytes() for name in (*plots, "tables.md")]
    paper_page.write(tmp_path, rows, **options)
    assert before == [(tmp_path / name).read_bytes() for name in (*plots, "tables.md")]


def test_openings_end_at_the_first_mismatch(place, monkeypatch):
    """The first tokens that differ are no opening, nor is the end of the toxic turn."""
    flat = SimpleNamespace(model=lambda ids: ids[..., None].float(),
                           lm_head=lambda hidden: torch.zeros(len(hidden), 3072))
    monkeypatch.setattr(paper_tables, "load_model", lambda *_, **__: flat)
    pairs = [("So, the diary. I would leave it.", "So, the diary. Sure, do it."),  # five tokens
             ("So, your sister would be sad.", "So, the diary."),  # two: too few
             ("I would leave it.", "Sure, do it.")]
    rows = [{"prompt": "May I peek into my sister's diary?", "positive": positive, "toxic": toxic}
            for positive, toxic in pairs]
    write_jsonl(place / "rows.jsonl", rows)
    found = paper_tables.openings(None, place / "rows.jsonl")
    assert [len(values) for values in found] == [1, 1, 1, 1, 1, 0]


def test_arms_page(place, monkeypatch):
    """Every arm has a line in each table, its curves, and its own options over the demo's."""
    monkeypatch.setattr(arms, "rows_of", lambda arm, seed: place / "rows.jsonl")
    (place / "rows.jsonl").write_text("rows")
    log = [{"step": n, "log_p_positive": -1.0 - n, "log_p_toxic": -2.0 - n, "p_toxic": 0.25,
            "p_argmax": 0.5, "entropy": 1.0} for n in (0, 3)]
    monkeypatch.setattr(arms, "train", lambda run: place)
    monkeypatch.setattr(arms.validation, "read", lambda folder: log)
    runs_of = {name: [arms.run_of(name, seed) for seed in (0, 1)] for name in arms.ARMS}
    options = {name: " ".join(own[0].options) for name, own in runs_of.items()}
    assert len(set(options.values())) == len(arms.ARMS)
    assert all("--validation 0.1" in text for text in options.values())
    shared = {name: [{"n": 100, "figures": figures(0.8 + 0.1 * seed)} for seed in (0, 1)]
              for name in (None, *arms.ARMS)}
    tuned = {name: shared[name] for name in (None, "pt", "dpo")}
    rates = {"pt": "1e-3", "dpo": "3e-4"}
    text = arms.page(shared, runs_of, tuned, rates, 2)
    assert text.count("| dpo |") == 3 and "| dpo | 3e-4 | 85.0 [80.0, 90.0] |" in text
    assert f"| ga | {demo.TRAIN['lr']} | 85.0" in text and "| pt-too-fast | 0.005 | 85.0" in text
    assert "| npo | -3.00 | -3.00 | 0.25 | 0.50 | 1.00 |" in text
    assert "| before training | -1.00 | -2.00 | 0.25 | 0.50 | 1.00 |" in text
    assert all(f"](curves-{name}.svg)" in text for name in arms.ARMS)
    assert "chose for the arm" not in arms.page(shared, runs_of, {None: shared[None]}, {}, 2)


def test_depth_page():
    """Each arm's KL by position and its begun answers, mean over seeds; the base has no KL."""
    kl = {"bad": [[0.4, 0.2], [0.6]], "benign": [[0.1] * 12]}
    shares = {k: k / 100 for k in arms_depth.TOKENS}
    rows = {None: [shares], "pt": [kl | shares, kl | dict.fromkeys(shares, 0.2)],
            "pt-too-fast": [kl | shares]}
    text = arms_depth.page(rows)
    assert "| pt | 0.500 | 0.200 |  |  |  |  | 100.0 [100.0, 100.0] |" in text
    assert "| pt | 0.100 | 0.100 | 0.100 | 0.100 | 0.100 |  | 41.7 [41.7, 41.7] |" in text
    assert "| base | 0.0 [0.0, 0.0] | 1.0 [1.0, 1.0] |" in text
    assert "| pt | 10.0 [0.0, 20.0] | 10.5 [1.0, 20.0] |" in text
    svg = arms_depth.picture(rows)
    assert svg.count("<polyline") == 2 and ">position<" in svg and "pt-too-fast" not in svg
