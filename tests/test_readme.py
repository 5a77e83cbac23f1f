"""What the pages say, held to the repository: links, names, commands, figures and the picture.

test_cli.py runs the commands of README.md's bash blocks; here those of every page are parsed, by
the parser of the script that they call.
"""

import argparse
import ast
import re
import runpy
import shlex
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from losses import unlikelihood_mask
from synthesis.seeds import read_seeds

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
PLACES = ("benchmarks", "docs", "organism", "results", "synthesis")
PAGES = [ROOT / "README.md",
         *(path for place in PLACES for path in sorted((ROOT / place).rglob("*.md")))]
COMMAND = re.compile(r"\bpython ((?:\w+/)*\w+\.py\b[^`|\n]*)")
NUMBER = re.compile(r"(?<![\w.])\d+(?:\.\d+)?(?:e-\d+)?(?![\w.]*\d)")


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


def whole_lines(text: str) -> str:
    """A backslash at a line's end joins the next."""
    return text.replace("\\\n", " ")


# ---- links ----

def links(page: Path) -> list[tuple[str, str]]:
    """(text, target) of every link and picture that stays in the repository."""
    found = re.findall(r"\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)", page.read_text())
    return [(text, target) for text, target in found if not target.startswith("https://")]


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links(page):
    missing = [target for _, target in links(page) if not (page.parent / target).exists()]
    assert not missing


def test_linked_functions():
    """[`name`](file.py): the file defines it."""
    wanted = [(text.strip("`"), target) for text, target in links(ROOT / "README.md")
              if text.startswith("`")]
    assert len(wanted) > 15
    for name, target in wanted:
        tree = ast.parse((ROOT / target).read_text())
        assert name in {node.name for node in tree.body
                        if isinstance(node, ast.FunctionDef | ast.ClassDef)}, (name, target)


def test_quoted_code():
    """The functions shown beside the equation are those of losses.py, letter by letter."""
    blocks = re.findall(r"^```python\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
    assert blocks
    for function in (part.strip() for block in blocks for part in block.split("\n\n")):
        assert f"\n\n{function}\n\n\n" in (ROOT / "losses.py").read_text()


# ---- commands ----

COMMANDS = sorted({line.partition(" #")[0].strip() for page in PAGES
                   for line in COMMAND.findall(whole_lines(page.read_text()))})


class Parsed(BaseException):
    """Raised after the arguments are read; ptalign.py's main handles every Exception."""


def test_commands_found():
    scripts = {line.split()[0] for line in COMMANDS}
    assert scripts >= {"ptalign.py", "organism/train.py", "benchmarks/head.py"}


@pytest.mark.parametrize("line", COMMANDS)
def test_commands(line, monkeypatch):
    parse = argparse.ArgumentParser.parse_args

    def parse_and_stop(*arguments, **named):
        parse(*arguments, **named)
        raise Parsed

    words = shlex.split(line)
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.setattr(sys, "path", [*sys.path])  # scripts of folders put the root there
    with pytest.raises(Parsed):
        runpy.run_path(str(ROOT / words[0]), run_name="__main__")


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_other_commands(page):
    """`make TARGET`, and scripts for bash."""
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    text = page.read_text()
    assert set(re.findall(r"(?:^|`)make (\w+)", text, flags=re.MULTILINE)) <= set(targets)
    assert all((ROOT / path).is_file() for path in re.findall(r"\bbash (\S+\.sh)", text))


# ---- figures ----

@pytest.mark.parametrize("page", PAGES, ids=named)
def test_figures(page):
    """Between the markers table rows and printed lines stand in the file named, and so does every
    number of the prose; the commands, lines that begin with $, were checked above."""
    text = page.read_text()
    figures = re.findall(r"<!-- figures (\S+) -->\n?(.*?)<!-- /figures -->", text, flags=re.DOTALL)
    assert len(figures) == text.count("<!-- figures ")
    for place, block in figures:
        source = (ROOT / place).read_text()
        prose, printed = re.sub(r"^```console\n(.*?)^```", "", block, flags=re.M | re.S), []
        for output in re.findall(r"^```console\n(.*?)^```", block, flags=re.M | re.S):
            printed += [line for line in whole_lines(output).splitlines()
                        if not line.startswith("$ ")]
        assert not set(printed) - set(source.splitlines()), place
        told = [line for line in prose.splitlines() if line not in source.splitlines()]
        rows = "\n".join(line for line in told if line.startswith("|"))
        # A row that is not the file's own may hold whole numbers of settings, and the paper's.
        numbers = {number for line in told if not line.startswith("|")
                   for number in NUMBER.findall(line)} | {
            number for number in NUMBER.findall(re.sub(r"^\|[^|]*", "", rows, flags=re.M))
            if "." in number}
        assert not numbers - set(NUMBER.findall(source)), place


def test_annotations():
    seeds = read_seeds()
    told = f"{seeds.count()} annotations, eleven of them domains ({seeds.count(strict=True)} if"
    assert len(seeds.domains) == 11 and told in README


# ---- the picture ----

def test_picture():
    """Its mask is the loss's own for its two answers; it stands alone, without fonts or images."""
    [target] = [target for _, target in links(ROOT / "README.md") if target.endswith(".svg")]
    source = (ROOT / target).read_text()
    row = {kind: [node.text for node in ElementTree.fromstring(source).iter()
                  if node.get("class") == kind] for kind in ("pos", "tox", "m")}
    ids = {token: i for i, token in enumerate(sorted({*row["pos"], *row["tox"]}))}
    positive, toxic = ([ids[token] for token in row[kind]] for kind in ("pos", "tox"))
    mask = unlikelihood_mask(positive, toxic)
    assert [int(m) for m in row["m"]] == mask and mask[0] == mask[-1] == 0 < sum(mask)
    assert source.count("http") == 1 and "@" not in source and "<image" not in source
