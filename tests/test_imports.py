"""The import graph of all files, imports inside functions included: it points down.

"Core" is everything that is committed as Python but tests/ and results/.
"""

import ast
import subprocess
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
OUTSIDE = ("tests", "results")
DYNAMIC = {"import_module", "__import__"}  # a module named in a string is on no graph
MOST_ROOMS = 20  # files and folders that a reader meets on opening the repository
# What a folder or file may import of ours: itself (its folder) and these, whole folders or modules.
ALLOWED = {
    "support": (),
    "losses": (),
    "kernels": ("losses",),
    "export": ("evals.report", "lora", "model", "support", "tokenizer"),
}
FORBIDDEN = {  # what must not be reached, directly or through others
    "train": ("evals", "organism", "synthesis", "export", "benchmarks"),
    "evals": ("organism", "synthesis", "synth", "export", "train", "benchmarks", "demo"),
    "synthesis": ("evals", "organism", "export", "train", "benchmarks"),
    "triplets": ("train", "evals", "synthesis"),
}


def core() -> dict[str, Path]:
    """Every module by its dotted name."""
    listed = subprocess.run(["git", "ls-files", "--cached", "--others", "--exclude-standard",
                             "*.py"], cwd=ROOT, capture_output=True, text=True, check=True)
    paths = [Path(line) for line in listed.stdout.splitlines()]
    return {".".join(path.with_suffix("").parts).removesuffix(".__init__"): ROOT / path
            for path in paths if path.parts[0] not in OUTSIDE and (ROOT / path).is_file()}


def imported(nodes) -> set[str]:
    """Names that these import; of "from evals import data" the module is meant."""
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide where a module lies"
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.fixture(scope="module")
def trees() -> dict[str, ast.Module]:
    return {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in core().items()}


@pytest.fixture(scope="module")
def everything(trees) -> dict[str, set[str]]:
    """{module: modules of ours that any line of it imports}."""
    return {name: imported(ast.walk(tree)) & trees.keys() - {name}
            for name, tree in trees.items()}


def inside(name: str, places: tuple[str, ...]) -> bool:
    return any(name == place or name.startswith(f"{place}.") for place in places)


def test_the_walk_sees_what_it_should(everything):
    assert {"support.pairs", "support.files"} <= everything["triplets"]
    assert "evals.data" in everything["evals.choice"]
    assert "evals.suite" in everything["ptalign"]  # inside a function


def test_no_cycles(trees):
    """Of what runs when a module is loaded; a function's imports come later."""
    graph = {name: imported(tree.body) & trees.keys() - {name} for name, tree in trees.items()}
    assert set(TopologicalSorter(graph).static_order()) == graph.keys()  # else CycleError


def test_no_cycle_of_folders(everything):
    """Nor of a folder with a file beside it, whatever line imports it."""
    graph: dict[str, set[str]] = {}
    for name, found in everything.items():
        room = name.split(".")[0]
        graph.setdefault(room, set()).update(other.split(".")[0] for other in found)
    graph = {room: others - {room} for room, others in graph.items()}
    assert set(TopologicalSorter(graph).static_order()) == graph.keys()


def test_no_module_is_named_in_a_string(trees):
    for name, tree in trees.items():
        names = {node.id if isinstance(node, ast.Name) else node.attr
                 for node in ast.walk(tree) if isinstance(node, ast.Name | ast.Attribute)}
        names |= {part for full in imported(ast.walk(tree)) for part in full.split(".")}
        assert not names & DYNAMIC, name


@pytest.mark.parametrize("place", ALLOWED)
def test_leaves_are_leaves(everything, place):
    for name, found in everything.items():
        if inside(name, (place,)):
            strays = {other for other in found if not inside(other, (place, *ALLOWED[place]))}
            assert not strays, name


@pytest.mark.parametrize("place", FORBIDDEN)
def test_what_is_above_is_not_reached(everything, place):
    reached, new = set(), {name for name in everything if inside(name, (place,))}
    while new:
        reached |= new
        new = {other for name in new for other in everything[name]} - reached
    assert reached and not {name for name in reached if inside(name, FORBIDDEN[place])}


def test_few_rooms():
    rooms = {path.relative_to(ROOT).parts[0] for path in core().values()}
    assert len(rooms) <= MOST_ROOMS, sorted(rooms)
