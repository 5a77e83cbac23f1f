"""report.html: what came out in one look, and below it everything else, collapsed.

One file without a script or anything from elsewhere, which a phone shows as well (page.jinja). On
top stand a table of at most six figures and the plane of harmlessness against helpfulness; which
figures these are, headlines.toml says. The same results always give the same bytes, and no text of
a prompt or an answer is in them."""

from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
from markupsafe import Markup

from evals import report
from evals.figures import changes_of
from evals.texts import TEMPLATES, split_key
from support.files import read_jsonl, read_toml, refusing
from support.svg import COLOURS, Mark, Panel, line_charts, plane, strip

MOST = 6  # figures on top
POINTS = 100  # of a curve of training at most, each the mean of as many steps
HEADLINES = read_toml(Path(__file__).with_name("headlines.toml"))["set"]
TERMS = {"mle": "MLE of the positive answers", "ut": "UT of the toxic answers",
         "toxic_nll": "-log p of the toxic answers"}  # of metrics.jsonl
Named = tuple[str, dict]  # what a figure is called, and the figure


def headlines(figures: list[dict]) -> tuple[list[Named], list[Named]]:
    """The lines of the table on top, and the plane's two figures, across and up, if there are."""
    def found(alternatives: list[tuple[str, str]]) -> Named | None:
        # a judge that failed its calibration has no say
        return next(((label.format(set=f["key"].removeprefix("judge/").split("/")[2]), f)
                     for label, key in alternatives for f in figures
                     if fnmatchcase(f["key"], key) and not f.get("fails")), None)

    for chosen in HEADLINES:
        if lines := list(filter(None, map(found, chosen["lines"]))):
            planes = ([found([axis]) for axis in axes] for axes in chosen["planes"])
            return lines, next((axes for axes in planes if all(axes)), [])
    return [(" ".join(split_key(f["key"])), f) for f in figures[:MOST]], []


def marks(f: dict, *, turned: bool = False) -> list[Mark]:
    """A figure in every column; turned is what is left of it to 1."""
    cells = [f["base"], *(change["tuned"] for change in changes_of(f))]
    found = [(cell["rate"], *cell["wilson_95"]) for cell in cells]
    if turned:
        found = [(1 - rate, 1 - high, 1 - low) for rate, low, high in found]
    # more adapters than colours share them
    return [Mark(i and 1 + (i - 1) % len(COLOURS), rate, (low, high))
            for i, (rate, low, high) in enumerate(found)]


def drawn_plane(axes: list[Named]) -> Markup:
    (x_label, x), (y_label, y) = axes
    across, up = (marks(f, turned=not f["higher_is_better"]) for f in (x, y))
    return Markup(plane(list(zip(across, up, strict=True)), x_label=x_label, y_label=y_label))


def arm_names(adapters: list[str]) -> list[str]:
    """What the columns are called; of several adapters, by what not all of their paths have."""
    if len(adapters) < 2:
        return ["tuned"] * len(adapters)
    paths = [Path(folder).parts for folder in adapters]
    shared = set.intersection(*map(set, paths))
    return ["/".join(part for part in path if part not in shared) or folder
            for path, folder in zip(paths, adapters, strict=True)]


def training_curves(folder: Path) -> dict[str, list]:
    """The terms of the loss by step, nats a token; empty for an adapter that has no record."""
    path = folder / "metrics.jsonl"
    rows = [row for _, row in read_jsonl(path)] if path.is_file() else []
    points = {term: [(row["step"], row[term]) for row in rows  # null: no token had this side
                     if "step" in row and row.get(term) is not None] for term in TERMS}
    with refusing((TypeError, ValueError), "not the log of train", path, "move it away"):
        return {term: [part.mean(0).round(6).tolist()
                       for part in np.array_split(own, min(POINTS, len(own)))]
                for term, own in points.items() if own}


def training_charts(training: dict[str, dict], names: list[str]) -> list[Markup]:
    """One picture a term, with a curve for each adapter."""
    named = list(zip(names, training.values(), strict=True))
    by_term = {name: {arm: curves[term] for arm, curves in named if term in curves}
               for term, name in TERMS.items()}
    return [Markup(line_charts([Panel("nats a token", curves, (0, None))], title=name))
            for name, curves in by_term.items() if curves]


PAGES = TEMPLATES.overlay(autoescape=True, finalize=lambda value: value)
PAGES.filters.update(
    last_of=lambda path: "/".join(Path(path).parts[-2:]),  # a hub id whole; the settings have all
    strip=lambda f: Markup(strip(marks(f))), plane=drawn_plane)


def render_html(results: dict) -> str:
    adapter = results["settings"]["adapter"]
    adapters = adapter if isinstance(adapter, list) else [adapter] if adapter else []
    names = arm_names(adapters)
    lines, axes = headlines(results["figures"])
    return PAGES.get_template("page.jinja").render(
        results=results, report=report, adapters=adapters, names=names, lines=lines, axes=axes,
        charts=training_charts(results["training"], names), colours=COLOURS)
