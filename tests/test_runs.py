"""runs.py: a run's folder is owned by one process and bound to its settings."""

import json
import os
from pathlib import Path

import pytest

from support import files, runs
from support.files import InputError, write_atomic
from support.runs import new_folder, open_run, start_anew

SETTINGS = {"model": "tiny", "triplets": 10, "seed": 0}


def run_in(folder, settings=SETTINGS, *, fresh=False, may_change=(), **options) -> dict:
    with open_run(folder, settings, fresh=fresh, may_change=may_change, **options) as record:
        (folder / "work.txt").write_text("done\n")
        return record


def test_record(tmp_path):
    first = run_in(tmp_path / "a" / "run")
    assert first["settings"] == SETTINGS and {"torch", "tokenizers"} <= first["versions"].keys()
    stored = json.loads((tmp_path / "a" / "run" / "config.json").read_text())
    assert stored == first == run_in(tmp_path / "a" / "run")  # `began` too is kept


@pytest.mark.parametrize("changed,told", [
    ({"seed": 1}, ["seed (0 -> 1)"]), ({"seed": 1, "model": "big"}, ["seed", "model", "'big'"]),
    ({"data": {"a": 1, "b": 3, "c": 4}}, ["data b (2 -> 3)", "data c (None -> 4)"])])
def test_changed(tmp_path, changed, told):
    begun = {**SETTINGS, "data": {"a": 1, "b": 2}}
    run_in(tmp_path / "run", begun)
    before = (tmp_path / "run" / "config.json").read_bytes()
    with pytest.raises(InputError) as error:
        run_in(tmp_path / "run", {**begun, **changed})
    assert all(word in str(error.value) for word in [*told, "--fresh"])
    assert "triplets" not in str(error.value) and "data a" not in str(error.value)
    assert (tmp_path / "run" / "config.json").read_bytes() == before


def test_new_setting(tmp_path, capsys):
    """A record of an older version lacks it: told, not refused, and kept from now on."""
    run_in(tmp_path / "run")
    run_in(tmp_path / "run", {**SETTINGS, "new": 3})
    assert "warning: not on record, taken as unchanged: new\n" in capsys.readouterr().err
    for other in ({"new": 4}, {}):
        with pytest.raises(InputError, match=r"new \(3 -> "):
            run_in(tmp_path / "run", {**SETTINGS, **other})


def test_may_change(tmp_path):
    run_in(tmp_path / "run")
    more = {**SETTINGS, "triplets": 20}
    assert run_in(tmp_path / "run", more, may_change=("triplets",))["settings"] == more
    with pytest.raises(InputError, match="triplets"):
        run_in(tmp_path / "run", SETTINGS)


def test_fresh(tmp_path):
    run_in(tmp_path / "run")
    run_in(tmp_path / "run", {**SETTINGS, "seed": 1}, fresh=True)
    old, = tmp_path.glob("run.old-*")
    assert json.loads((old / "config.json").read_text())["settings"] == SETTINGS
    assert (old / "work.txt").exists()
    run_in(tmp_path / "new", fresh=True)  # where nothing is there, nothing is renamed
    assert sorted(p.name for p in tmp_path.iterdir()) == ["new", "run", old.name]


def test_fresh_behind_a_link(tmp_path):
    """The link leads to a large disk: the new run belongs there too, and the old one stays."""
    (tmp_path / "disk" / "run").mkdir(parents=True)
    link = tmp_path / "run"
    link.symlink_to(tmp_path / "disk" / "run")
    run_in(link)
    run_in(link, {**SETTINGS, "seed": 1}, fresh=True)
    assert link.is_symlink() and (tmp_path / "disk" / "run" / "work.txt").exists()
    assert [path.parent for path in tmp_path.rglob("run.old-*")] == [tmp_path / "disk"]
    with pytest.raises(InputError, match="typo"), open_run(link, SETTINGS, fresh=True):
        raise InputError("a typo", "somewhere", "mend it")
    assert json.loads((link / "config.json").read_text())["settings"]["seed"] == 1  # put back


def test_a_mounted_disk_is_told_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr(os.path, "ismount", lambda path: str(path) == str(tmp_path / "disk"))
    with pytest.raises(InputError, match="name a new folder on it"):
        new_folder(tmp_path / "disk").__enter__()
    with new_folder(tmp_path / "disk" / "new"):
        pass
    assert (tmp_path / "disk" / "new").is_dir()


@pytest.mark.parametrize("name", ["loop", "loop/run"])
def test_links_in_a_circle(tmp_path, name):
    (tmp_path / "loop").symlink_to("loop")
    for make in (new_folder, lambda out: open_run(out, SETTINGS, fresh=True)):
        with pytest.raises(InputError, match=f"links in a circle, .*{name}"), make(tmp_path / name):
            pass


def test_runs_are_set_aside_together(tmp_path):
    """All of them, or none where another process has one."""
    names = {tmp_path / name: "config.json" for name in "abc"}
    for name in "ab":
        run_in(tmp_path / name)
    with open_run(tmp_path / "b", SETTINGS, fresh=False), \
            pytest.raises(InputError, match="another run is using it"):
        start_anew(names)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]
    start_anew(names)
    assert sorted(p.name[:6] for p in tmp_path.iterdir()) == ["a.old-", "b.old-"]


def test_fresh_here(tmp_path, monkeypatch):
    """--out . would go on in the old folder, whatever its name is then."""
    run_in(tmp_path / "run")
    monkeypatch.chdir(tmp_path / "run")
    run_in(Path("."))
    for out in (".", tmp_path):
        with pytest.raises(InputError, match="the folder that you are in"):
            files.set_aside(Path(out))
    with pytest.raises(InputError, match="that you are in"), new_folder(Path(".")):
        pass
    with pytest.raises(InputError, match="that you are in"):
        run_in(Path("."), fresh=True)
    assert (tmp_path / "run" / "work.txt").exists()


def test_fresh_twice_within_a_second(tmp_path, monkeypatch):
    monkeypatch.setattr(files.time, "strftime", lambda format: "now")
    for seed in range(4):
        run_in(tmp_path / "run", {**SETTINGS, "seed": seed}, fresh=True)
    found = {p.name: json.loads((p / "config.json").read_text())["settings"]["seed"]
             for p in tmp_path.iterdir()}
    assert found == {"run.old-now": 0, "run.old-now-2": 1, "run.old-now-3": 2, "run": 3}


def test_locked(tmp_path):
    with open_run(tmp_path / "run", SETTINGS, fresh=False):
        for fresh in (False, True):
            with pytest.raises(InputError, match="another run"):
                run_in(tmp_path / "run", fresh=fresh)
    run_in(tmp_path / "run")
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("name,text", [
    ("letter.txt", "mine"), ("config.json", '{"model_type": "llama"}'), ("config.json", "[]"),
    ("config.json", '{"settings": 3}'), ("train_config.json", '{"settings": {}}')])
def test_not_a_run(tmp_path, name, text, fresh):
    """A folder of other things is neither written to nor, with --fresh, renamed."""
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / name).write_text(text)
    with pytest.raises(InputError, match="not a run"):
        run_in(folder, fresh=fresh)
    assert [p.name for p in folder.iterdir()] == [name] and (folder / name).read_text() == text


def test_killed_at_the_start(tmp_path):
    """A kill while the first config.json was written leaves a temporary file and no obstacle."""
    (tmp_path / ".config.json.k1ll").write_text('{"sett')
    (tmp_path / ".lock").touch()
    assert run_in(tmp_path)["settings"] == SETTINGS


def test_killed_while_writing(tmp_path):
    """Temporary files of the run and its checkpoints go; those of a run within it stay."""
    run_in(tmp_path)
    ours, name = tmp_path / "checkpoint", "state.safetensors"
    theirs = tmp_path / "adapter"
    for folder in (ours, theirs):
        folder.mkdir()
    (theirs / ".lock").touch()

    def killed(*_):
        raise KeyboardInterrupt

    for folder in (tmp_path, ours, theirs):
        (folder / name).write_text("old")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "replace", killed)
            patch.setattr(Path, "unlink", lambda *_, **__: None)
            with pytest.raises(KeyboardInterrupt):
                write_atomic(folder / name, "new")
        assert len(list(folder.glob(f".{name}.*"))) == 1
    run_in(tmp_path)
    assert [len(list(folder.glob(".state*"))) for folder in (tmp_path, ours, theirs)] == [0, 0, 1]
    assert all((folder / name).read_text() == "old" for folder in (tmp_path, ours, theirs))


@pytest.mark.parametrize("exists", [False, True])
def test_bad_input_leaves_nothing(tmp_path, exists):
    folder = tmp_path / "run"
    if exists:
        folder.mkdir()
    with pytest.raises(InputError, match="no model"), open_run(folder, SETTINGS, fresh=False):
        (folder / "calls.jsonl").touch()
        raise InputError("no model", "here", "name one")
    assert folder.exists() == exists and not list(folder.glob("*"))


def test_bad_input_keeps_work(tmp_path):
    """Once there is something to lose, a failure removes nothing."""
    with pytest.raises(InputError), open_run(tmp_path / "run", SETTINGS, fresh=False):
        (tmp_path / "run" / "calls.jsonl").write_text("paid for\n")
        raise InputError("too long", "here", "shorten")
    assert {p.name for p in (tmp_path / "run").iterdir()} == {
        ".gitignore", ".lock", "calls.jsonl", "config.json"}
    assert run_in(tmp_path / "run")


def test_no_locks_here(tmp_path, monkeypatch):
    """A file system without locks is told as such, and not taken for another run."""
    def refuse(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(runs.fcntl, "flock", refuse)
    with pytest.raises(InputError, match="No locks available"):
        run_in(tmp_path / "run")
