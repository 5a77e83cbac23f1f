"""The import graph: what a module imports when it is loaded must not lead back to it."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("", "benchmarks", "evals", "evals/tasks", "export", "kernels", "organism", "support",
           "synthesis")


def modules() -> dict[str, Path]:
    paths = [path for folder in FOLDERS for path in (ROOT / folder).glob("*.py")]
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
            for path in paths}


def imported(path: Path) -> set[str]:
    """Names of what a file's own level imports; imports inside functions run later."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):  # of "from evals import data" the module is meant
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_no_cycles_and_leaves_are_leaves():
    own = modules()
    graph = {name: imported(path) & own.keys() - {name} for name, path in own.items()}
    assert {"support.lexicon", "support.files"} <= graph["triplets"]
    assert "evals.data" in graph["evals.tasks.hhh"]
    TopologicalSorter(graph).prepare()  # raises CycleError
    for leaf in ("support.files", "losses", "support.lexicon", "evals.stats"):
        assert graph[leaf] == set(), leaf
    # evaluation stands below training: what both need of prompts is there
    assert not any("train" in graph[name] for name in graph if name.startswith("evals"))
