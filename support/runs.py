"""Folders for results: a run's, locked and bound to its first settings; one that appears whole."""

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from traceback import extract_tb

from support import files
from support.files import InputError, refusing, sync_folder
from support.progress import say

GITIGNORE = ".gitignore"


def versions() -> dict[str, str]:
    """What a result may depend on besides the settings."""
    return {name: version(name) for name in ("torch", "tokenizers", "safetensors", "numpy")}


def writing(out: Path) -> contextlib.AbstractContextManager[None]:
    """What the file system refuses inside the with block is an InputError about --out."""
    return refusing(OSError, "cannot be written", f"--out {out}", "name another")


@contextlib.contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A temporary folder beside `out` that takes its name at the end, or is removed on failure."""
    files.refuse_here(out)
    place = files.behind_links(out)  # a link cannot be renamed over
    if os.path.ismount(place):  # a container's volume, say: told before the work, not after it
        raise InputError("a mounted disk, whose name no folder can take", f"--out {out}",
                         "name a new folder on it")
    with writing(out):
        place.parent.mkdir(parents=True, exist_ok=True)
        temporary = TemporaryDirectory(dir=place.parent, prefix=f".{place.name}.",
                                       ignore_cleanup_errors=True)
    with temporary as name:
        yield Path(name)
        os.chmod(name, 0o755 & ~files.umask())  # temporary folders are closed to others
        sync_folder(Path(name))
        with writing(out):
            os.rename(name, place)  # an empty folder of that name is replaced
        sync_folder(place.parent)


@contextlib.contextmanager
def open_run(folder: Path, settings: dict, *, fresh: bool, may_change: tuple[str, ...] = (),
             filename: str = "config.json") -> Iterator[dict]:
    """Create and lock a run's folder; yields its record {"settings", "versions", "began"}. A
    setting that differs from the record, outside `may_change`, is refused by name; one that the
    record lacks (an older version wrote it) is warned of; `fresh` renames an old folder first."""
    folder, place = Path(folder), files.behind_links(folder)  # it may be a link to another disk
    aside = start_anew({folder: filename}) if fresh else []
    with writing(folder):
        _old_record(folder, filename)
        existed = folder.exists()
        place.mkdir(parents=True, exist_ok=True)
        lock = _locked(folder)
    with lock:
        old = _old_record(folder, filename)  # again: it may have changed before the lock
        record = old or {"settings": settings, "versions": versions(),
                         "began": time.strftime("%Y-%m-%dT%H:%M:%S")}
        _refuse_changes(record["settings"], settings, may_change, folder)
        if new := sorted(settings.keys() - record["settings"].keys()):
            say(f"warning: not on record, taken as unchanged: {', '.join(new)}")
        if record.get("versions") != versions():
            say("warning: package versions differ from those this run was begun with")
        record["settings"] = settings
        _sweep(folder)
        files.write_json(folder / filename, record)
        # From the first moment: toxic text may follow.
        files.write_atomic(folder / GITIGNORE, "*\n")
        try:
            yield record
        except InputError:
            if old is None:
                _undo(place, filename, existed)
            if aside and not folder.exists():  # nothing came in its place
                aside[0].rename(place)
            raise
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            if old is None:  # nothing was read back: it is a fault of ours
                raise
            place = extract_tb(error.__traceback__)[-1]
            what = f"{type(error).__name__} in {Path(place.filename).name} line {place.lineno}"
            raise InputError(f"its own files are damaged ({what})", f"--out {folder}",
                             "put them back or start with --fresh") from error


def start_anew(filenames: dict[Path, str]) -> list[Path]:
    """Set the runs in these folders aside, none if one of them is refused; `filenames` names each
    one's record. A run that is still going keeps its folder. Returns their new names."""
    old, aside = [], []
    with contextlib.ExitStack() as locks:
        for folder, filename in filenames.items():
            with writing(folder):
                if _old_record(folder, filename):
                    files.refuse_here(folder)
                    locks.enter_context(_locked(folder))
                    old.append(folder)
        for folder in old:
            with writing(folder):
                aside.append(files.set_aside(folder))
    return aside


def _old_record(folder: Path, filename: str) -> dict | None:
    """What a run of this kind left in the folder, if any. A folder of other things is refused."""
    if not folder.exists():
        return None
    ours = (".lock", GITIGNORE, f".{filename}.")  # the last: write_json, killed in the middle
    others = [entry for entry in folder.iterdir() if not entry.name.startswith(ours)]
    path = folder / filename
    record = files.read_json(path) if path.is_file() else None
    if others and not (isinstance(record, dict) and isinstance(record.get("settings"), dict)):
        raise InputError("not empty and not a run", f"--out {folder}", "name a new folder")
    return record


def _sweep(folder: Path) -> None:
    """Remove the temporary files of a run that was killed while it wrote: a checkpoint's are large.
    A folder within that has a lock is another run's."""
    within = (p for p in folder.iterdir() if p.is_dir() and not (p / ".lock").exists())
    for place in (folder, *within):
        for path in place.iterdir():
            if files.TEMPORARY.fullmatch(path.name):
                path.unlink()


def _undo(folder: Path, filename: str, existed: bool) -> None:
    """After bad input, leave the folder as it was, unless something in it is worth keeping."""
    entries = list(folder.iterdir())
    if any(entry.is_dir() or entry.stat().st_size for entry in entries
           if entry.name not in (filename, GITIGNORE)):
        return
    for entry in entries:
        entry.unlink()
    if not existed:
        folder.rmdir()


def _refuse_changes(old: dict, new: dict, may_change: tuple[str, ...], folder: Path) -> None:
    known = old.keys() - set(may_change)
    was, now = (_flat({key: settings.get(key) for key in known}) for settings in (old, new))
    changes = [f"{key} ({was.get(key)!r} -> {now.get(key)!r})"
               for key in sorted(was.keys() | now.keys()) if was.get(key) != now.get(key)]
    if changes:
        raise InputError(f"settings changed: {', '.join(changes)}", f"--out {folder}",
                         "use the old settings, another --out, or --fresh")


def _flat(settings: dict) -> dict:
    """A dict's entries under names of their own: of many hashes only the changed one is named."""
    return {f"{key} {name}".strip(): entry for key, value in settings.items()
            for name, entry in (value.items() if isinstance(value, dict) else [("", value)])}


def _locked(folder: Path):
    """The open lock file: closing it releases the lock, and so does the end of the process."""
    file = open(folder / ".lock", "w")  # noqa: SIM115 (the caller's with closes it)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # EAGAIN, EACCES
        file.close()
        raise InputError("another run is using it", f"--out {folder}",
                         "wait or name another") from None
    return file
