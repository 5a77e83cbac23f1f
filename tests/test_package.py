"""The wheel: what is in it, and the command that it installs, outside the checkout.

A fresh environment gets the wheel alone and borrows torch and the rest from the one that runs the
tests; what pyproject.toml asks for is compared with requirements.txt instead.
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

from evals.judging import LABELLED
from support import VERSION

ROOT = Path(__file__).resolve().parents[1]
OUTSIDE = ("tests", "benchmarks", "results", "docs", ".ci", ".github")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def lines(path: Path) -> list[str]:
    return [line for line in path.read_text().splitlines() if line and line[0] not in "#- "]


def shipped() -> set[str]:
    """What is committed of the program: modules, and the files that they read."""
    listed = subprocess.run(["git", "ls-files", "--cached", "--others", "--exclude-standard"],
                            cwd=ROOT, capture_output=True, text=True, check=True)
    paths = [Path(line) for line in listed.stdout.splitlines() if (ROOT / line).is_file()]
    return {f"ptalign/{path}" for path in paths if path.parts[0] not in OUTSIDE
            and (path.suffix == ".py" or len(path.parts) > 1) and path.name != "README.md"}


def test_requirements():
    """The package needs what requirements.txt has but pytest; torch is exact in both."""
    wanted = [line for line in lines(ROOT / "requirements.txt") if not line.startswith("pytest")]
    assert [line.replace('"', "'") for line in PROJECT["dependencies"]] == [
        line.replace('"', "'") for line in wanted]
    assert any(line.startswith("torch==") for line in wanted)


def test_lock():
    """Every requirement is locked to a version that it allows, with hashes, and from no address."""
    packaging = pytest.importorskip("packaging.requirements", reason="comes with pytest")
    text = (ROOT / "requirements.lock").read_text()
    assert "://" not in text
    locked = re.findall(r"^([\w.-]+)==([\w.+!]+)[^\n]*\\\n +--hash=sha256:[0-9a-f]{64}\b", text,
                        flags=re.M)  # a package may have a version for each Python
    assert len(locked) == len(re.findall(r"^\w", text, flags=re.M))
    for line in lines(ROOT / "requirements.txt"):
        wanted = packaging.Requirement(line)
        versions = [version for name, version in locked if name == wanted.name.lower()]
        assert versions and all(map(wanted.specifier.contains, versions)), line


def test_version():
    assert f"\n## {VERSION}\n" in (ROOT / "CHANGELOG.md").read_text()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    pytest.importorskip("hatchling", reason="hatchling is not installed (requirements-dev.txt)")
    out = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-index",
                    "--no-build-isolation", "--wheel-dir", out, ROOT], check=True)
    [path] = out.iterdir()
    return path


@pytest.mark.slow
def test_content(wheel):
    """All of the program, the labels that judges are calibrated on, and nothing else."""
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == shipped() | {f"ptalign/{LABELLED.relative_to(ROOT)}"}
    assert {"ptalign/ptalign.py", "ptalign/organism/model/model.safetensors",
            "ptalign/evals/page.jinja", "ptalign/synthesis/prompts.toml"} <= names


@pytest.fixture(scope="module")
def fresh(wheel, tmp_path_factory) -> Path:
    """An environment with the wheel; a .pth file lends it the packages of this one."""
    place = tmp_path_factory.mktemp("fresh")
    venv.create(place, symlinks=True)
    site = next(place.glob("lib/python*/site-packages"))
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip(place, "install", "--no-deps", "--no-index", wheel)
    return place


def pip(place: Path, *words) -> None:
    subprocess.run([sys.executable, "-m", "pip", "--python", place / "bin" / "python", *words,
                    "--quiet"], check=True)


def command(place: Path, folder: Path, *words) -> subprocess.CompletedProcess:
    """`ptalign WORDS` as a user calls it, in a folder that has nothing of ours."""
    keep = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run([place / "bin" / "ptalign", *words], cwd=folder, capture_output=True,
                          text=True, env=keep)


@pytest.mark.slow
def test_command(fresh, tmp_path):
    done = command(fresh, tmp_path, "--version")
    assert (done.returncode, done.stdout) == (0, f"ptalign {VERSION}\n"), done.stderr
    helped = command(fresh, tmp_path, "train", "--help")
    assert helped.returncode == 0 and helped.stdout.startswith("usage: ptalign train ")
    wrong = command(fresh, tmp_path, "train", "--model", "absent")
    assert wrong.returncode == 2 and wrong.stderr.startswith("ptalign: error: ")
    listed = command(fresh, tmp_path, "eval", "--list")
    assert listed.returncode == 0 and "organism" in listed.stdout, listed.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_demo_begins(fresh, tmp_path):
    """The embedded model and its seeds are found, and runs/demo is made where the user stands."""
    package = next(fresh.glob("lib/python*/site-packages/ptalign"))
    folder = ["--model", str(package / "organism" / "model"), "--seeds-file",
              str(package / "organism" / "seeds.json")]
    done = command(fresh, tmp_path, "synth", *folder, "--out", "runs/data", "--dry-run")
    assert done.returncode == 0 and "--- topics ---" in done.stdout, done.stderr
    done = command(fresh, tmp_path, "demo", "--out", "/dev/null/x")
    assert done.returncode == 2 and "$ ptalign synth --model" in done.stderr


@pytest.mark.slow
def test_uninstalled(wheel, tmp_path):
    """One new name in site-packages beside the record of the installation; then none."""
    venv.create(tmp_path / "env", symlinks=True)
    site = next((tmp_path / "env").glob("lib/python*/site-packages"))
    before = set(tmp_path.rglob("*"))
    pip(tmp_path / "env", "install", "--no-deps", "--no-index", wheel)
    assert {path.name for path in site.iterdir()} - {path.name for path in before} == {
        "ptalign", f"ptalign-{VERSION}.dist-info"}
    shutil.copytree(site / "ptalign", tmp_path / "copy")  # it is the whole program
    done = subprocess.run([sys.executable, tmp_path / "copy" / "ptalign.py", "--version"],
                          capture_output=True, text=True)
    assert done.stdout == f"ptalign {VERSION}\n"
    shutil.rmtree(tmp_path / "copy")
    pip(tmp_path / "env", "uninstall", "--yes", "ptalign")
    assert set(tmp_path.rglob("*")) == before
