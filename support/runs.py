"""A run's folder: made, locked, and bound to the settings it was begun with."""

import contextlib
import errno
import fcntl
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from support.files import InputError, read_json, set_aside, write_atomic, write_json
from support.progress import say

GITIGNORE = ".gitignore"


def versions() -> dict[str, str]:
    """What a result may depend on besides the settings."""
    return {name: version(name) for name in ("torch", "tokenizers", "safetensors", "numpy")}


@contextlib.contextmanager
def open_run(folder: Path, settings: dict, *, fresh: bool, may_change: tuple[str, ...] = (),
             filename: str = "config.json") -> Iterator[dict]:
    """Own a run's folder: made, locked, its settings equal to those it was begun with.

    Yields the stored record {"settings", "versions", "began"}. A changed setting outside
    `may_change` is refused by name; `fresh` renames an old folder and begins anew. A warning names
    the settings that the record lacks, since an older version of this program wrote it.
    """
    folder = Path(folder)
    try:
        old = _old_record(folder, filename)
        if fresh and old:
            with _locked(folder):  # not under the feet of a run still going
                set_aside(folder)
        made = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        lock = _locked(folder)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise InputError(f"cannot be written ({reason})", f"--out {folder}",
                         "name another") from None
    with lock:
        record = _old_record(folder, filename)  # again: it may have changed before the lock
        begun = record is not None
        if begun:
            _refuse_changes(record["settings"], settings, may_change, folder)
            if added := sorted(settings.keys() - record["settings"].keys()):
                say(f"warning: not on record, taken as unchanged: {', '.join(added)}")
            if record.get("versions") != versions():
                say("warning: package versions differ from those this run was begun with")
            record["settings"] = settings
        else:
            began = time.strftime("%Y-%m-%dT%H:%M:%S")
            record = {"settings": settings, "versions": versions(), "began": began}
        write_json(folder / filename, record)
        write_atomic(folder / GITIGNORE, "*\n")  # from the first moment: toxic text may follow
        try:
            yield record
        except InputError:
            if not begun:
                _undo(folder, filename, made)
            raise


def _old_record(folder: Path, filename: str) -> dict | None:
    """What a run of this kind left in the folder, if any. A folder of other things is refused."""
    if not folder.exists():
        return None
    ours = (".lock", GITIGNORE, f".{filename}.")  # the last: write_json, killed in the middle
    others = [entry for entry in folder.iterdir() if not entry.name.startswith(ours)]
    path = folder / filename
    record = read_json(path) if path.is_file() else None
    if others and not (isinstance(record, dict) and isinstance(record.get("settings"), dict)):
        raise InputError("not empty and not a run", f"--out {folder}", "name a new folder")
    return record


def _undo(folder: Path, filename: str, made: bool) -> None:
    """Bad input found before there was anything to keep: the folder is left as it was."""
    entries = list(folder.iterdir())
    if any(e.is_dir() or e.stat().st_size for e in entries
           if e.name not in (filename, GITIGNORE)):
        return
    for entry in entries:
        entry.unlink()
    if made:
        folder.rmdir()


def _refuse_changes(old: dict, new: dict, may_change: tuple[str, ...], folder: Path) -> None:
    known = [key for key in old if key not in may_change]
    was, now = (_flat({key: settings.get(key) for key in known}) for settings in (old, new))
    changed = sorted(key for key in was.keys() | now.keys() if was.get(key) != now.get(key))
    if changed:
        told = ", ".join(f"{key} ({was.get(key)!r} -> {now.get(key)!r})" for key in changed)
        raise InputError(f"settings changed: {told}", f"--out {folder}",
                         "use the old settings, another --out, or --fresh")


def _flat(settings: dict) -> dict:
    """Those of a dict inside by names of their own, so that of many hashes only one is told."""
    flat = {}
    for key, value in settings.items():
        inside = value if isinstance(value, dict) else {}
        flat |= {f"{key} {name}": own for name, own in inside.items()} or {key: value}
    return flat


def _locked(folder: Path):
    """The open lock file: closing it gives the lock back, and so does the process's end."""
    file = open(folder / ".lock", "w")  # noqa: SIM115 (the caller's with closes it)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        if error.errno not in (errno.EAGAIN, errno.EACCES):
            raise
        raise InputError("another run is using it", f"--out {folder}",
                         "wait or name another") from None
    return file
