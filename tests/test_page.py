"""page.py on made-up results: which figures stand on top, what is drawn, what a browser shows.

The browser is a headless Chromium; where there is none on the PATH, its test is skipped.
"""

import html
import json
import re
import shutil
from itertools import chain

import pytest
from test_report import made, results_of

from benchmarks.screenshot import NAMES, chromium
from evals.figures import columns_of
from evals.page import HEADLINES, MOST, arm_names, headlines, marks, render_html, training_curves
from evals.report import summary
from support.files import write_jsonl
from support.svg import plane

LOST, KEPT = ("1" * 40, "0" * 24 + "1" * 16), ("1" * 40, "00" + "1" * 38)
SUITE = [  # as a run of all tasks has them
    "hhh/raw/harmless/sum", "hhh/raw/harmless/byte", "hhh/raw/helpful/byte", "hhh_ab/raw/harmless",
    "truthfulqa/raw/mc1/byte", "mmlu/raw/5-shot", "refusal/chat/xstest/harmful/declined",
    "refusal/chat/xstest/harmful/complied", "refusal/chat/xstest/benign/declined",
    "refusal/chat/xstest/benign/complied", "jailbreak/chat/direct/complied",
    "jailbreak/chat/templates/any/complied", "genetic/chat/own found/complied",
    "judge/refusal/chat/xstest/harmful/judged harmful"]
LOWER = ("benign/declined", "/complied", "judged harmful")  # is better


def suite(*columns: str, **of_judge) -> dict:
    figures = [made(key, *columns, good=not key.endswith(LOWER)) for key in SUITE]
    figures[-1] |= {"agreement": [0.9, [0.8, 0.95]], "fails": False, **of_judge}
    adapter = [None, "run/a", ["run/a", "run/b"]][len(columns) - 1]
    curves = {"mle": [[1, 0.7], [2, 0.6]], "ut": [[1, 0.5], [2, 0.1]]}
    return results_of(figures, "hhh/raw/harmless/byte",
                      settings={"model": "org/m", "adapter": adapter},
                      training=dict.fromkeys(columns_of(adapter)[1:], curves))


# ---- which figures ----

def test_six_figures_of_a_suite():
    lines, axes = headlines(suite(*LOST)["figures"])
    assert [f["key"] for _, f in lines] == [
        "judge/refusal/chat/xstest/harmful/judged harmful", "refusal/chat/xstest/benign/declined",
        "hhh/raw/harmless/byte", "hhh/raw/helpful/byte", "jailbreak/chat/templates/any/complied",
        "mmlu/raw/5-shot"]
    assert [f["key"] for _, f in axes] == ["refusal/chat/xstest/benign/complied",
                                           "judge/refusal/chat/xstest/harmful/judged harmful"]


def test_a_judge_that_fails_has_no_say():
    results = suite(*LOST, fails=True)
    able = suite(*LOST, fails=False)
    counts = [re.search(r": \d+ of (\d+) other figures", "".join(summary(own)))[1]
              for own in (results, able)]
    assert int(counts[0]) == int(counts[1]) - 1
    lines, axes = headlines(results["figures"])
    assert lines[0][0] == "Harmful prompts declined (xstest)"  # the benchmark is told
    assert lines[0][1]["key"] == axes[1][1]["key"] == "refusal/chat/xstest/harmful/declined"


def test_headlines_are_few():
    assert all(len(chosen["lines"]) <= MOST for chosen in HEADLINES)


@pytest.mark.parametrize("keys, shown, has_plane", [
    (["organism/chat/bad greedy/harmless", "organism/chat/bad sampled/harmless",
      "organism/chat/benign/right", "organism/chat/choice/sum"], 4, True),
    (["hhh/chat/harmless/byte"], 1, False),
    ([f"file:exam/raw/{n}/sum" for n in range(9)], 6, False),  # none of the list: the first
    ([], 0, False),
])
def test_other_runs(keys, shown, has_plane):
    lines, axes = headlines([made(key, *KEPT) for key in keys])
    assert (len(lines), bool(axes)) == (shown, has_plane)


# ---- what is drawn ----

def test_marks_are_the_figures():
    f = made("hhh/raw/all/sum", *LOST, "01" * 20)
    base, one, two = marks(f)
    assert [m.column for m in (base, one, two)] == [0, 1, 2]
    assert (base.rate, one.rate, two.rate) == (1.0, 0.4, 0.5)
    assert one.ends == f["adapters"][0]["tuned"]["wilson_95"]
    turned = marks(f, turned=True)[1]
    assert turned.rate == 0.6 and turned.ends[0] < 0.6 < turned.ends[1]


def test_better_is_up_and_right():
    worse, better = (marks(made("k", column))[0] for column in ("0001", "0111"))
    drawn = plane([(worse, worse), (better, better)], x_label="x", y_label="y")
    (x0, y0), (x1, y1) = [tuple(map(float, found)) for found in
                          re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', drawn)]
    assert x1 > x0 and y1 < y0 and drawn.count("<polygon") == 1  # one arrow


def test_arms_are_called_by_what_tells_them_apart():
    assert arm_names([]) == [] and arm_names(["a"]) == ["tuned"]
    assert arm_names(["runs/pt/adapter", "runs/mle/adapter"]) == ["pt", "mle"]
    assert arm_names(["runs", "runs/mle"]) == ["runs", "mle"]


def test_curves_of_training(tmp_path):
    assert training_curves(tmp_path) == {}
    write_jsonl(tmp_path / "metrics.jsonl",
                [{"step": n, "mle": 2.0 * n, "toxic_nll": 1.0} for n in range(1, 301)])
    curves = training_curves(tmp_path)
    assert curves.keys() == {"mle", "toxic_nll"} and len(curves["mle"]) == 100
    assert curves["mle"][0] == [2.0, 4.0]  # the mean of steps 1 to 3


# ---- the page ----

@pytest.mark.parametrize("columns", [LOST[:1], LOST, (*LOST, "01" * 20)])
def test_page_is_one_file(columns):
    results = suite(*columns)
    page = render_html(results)
    assert page == render_html(json.loads(json.dumps(results)))
    assert not re.search(r"https?://|src=|url\(|@import|<script|<link", page.replace(
        'xmlns="http://www.w3.org/2000/svg"', ""))
    assert page.count('class="strip"') == 6 + len(SUITE)  # on top, and each at its task
    assert page.count('class="plane"') == 1 and "<details open" not in page
    assert ("MLE of the positive answers" in page) == (len(columns) > 1)


def test_page_tells_the_figures():
    page = render_html(suite(*LOST))
    top, below = page.split("<h2>")
    assert "<b>40.0</b> <small>[26.3, 55.4]</small>" in top
    # declines lost are worse, harm that is lost is better; both beyond chance
    assert 'class="change better">-60.0' in top and 'class="change worse">-60.0' in top
    assert "judge right on 90.0 % of labels" in top and "primary" in top
    assert "hhh_ab raw" in below and "Holm&#39;s p" in below


def test_names_are_not_markup():
    results = suite(*KEPT)
    results["settings"] |= {"model": "<i>m</i>", "adapter": "<script>"}
    assert not re.search("<i>|<script", render_html(results))


# ---- the page in a browser ----

WRAPPER = """<body>{frames}<script>
onload = () => {{
  const told = [];
  for (const frame of document.querySelectorAll("iframe")) {{
    const page = frame.contentDocument, root = page.documentElement;
    const widths = () => [root.scrollWidth, root.clientWidth];
    const closed = widths();
    for (const part of page.querySelectorAll("details")) part.open = true;
    const rows = [...page.querySelectorAll("details tr, details li, details dd, details svg")];
    told.push({{closed, open: widths(), hidden: rows.filter(row => !row.offsetParent &&
      !row.getClientRects().length).length, rows: rows.length}});
  }}
  document.title = JSON.stringify(told);
}};
</script>"""


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, NAMES)), reason="no chromium on the PATH")
@pytest.mark.parametrize("adapters", [1, 2])
def test_page_does_not_scroll_sideways(tmp_path, adapters):
    results = suite(*LOST) if adapters == 1 else suite(*LOST, "01" * 20)
    long = "a-rather-long-name-of-a-folder" * 3
    results["settings"] |= {"model": f"{long}/m", "sha256": "0" * 300, "adapter":
                            f"{long}/a" if adapters == 1 else [f"{long}/a", f"{long}/b"]}
    page = html.escape(render_html(results))
    frames = "".join(f'<iframe style="border:0;width:{width}px;height:900px" srcdoc="{page}">'
                     "</iframe>" for width in (1280, 390))
    (tmp_path / "wrapper.html").write_text(WRAPPER.format(frames=frames))
    shown = chromium(tmp_path / "wrapper.html", "--dump-dom")
    told = json.loads(html.unescape(re.search("<title>(.*?)</title>", shown)[1]))
    assert [page["closed"][1] for page in told] == [1280, 390]
    for scroll, client in chain.from_iterable((page["closed"], page["open"]) for page in told):
        assert scroll <= client
    assert all(page["rows"] > 50 and page["hidden"] == 0 for page in told)
