"""From a model's name to a folder of files: a local folder, or a Hugging Face hub id.

The small files are fetched first, then model.safetensors or else what an index names, since many
repositories hold the same weights several times over. The cache, its locks, the bars and resuming
a dropped connection are huggingface_hub's. A killed run starts its last weight file again."""

import contextlib
import errno
import re
from collections.abc import Callable
from pathlib import Path

from huggingface_hub import constants, errors, file_exists, hf_hub_download, snapshot_download
from huggingface_hub.utils import disable_progress_bars
from tqdm import tqdm

from support import progress
from support.files import InputError, read_toml, sha256_file
from support.weights import INDEX, SINGLE, weight_names, weights_hash

HUB_ID = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")
SNAPSHOT = re.compile(r"/models--([^/]+)/snapshots/[0-9a-f]{40}$")  # in the hub's cache
REQUIRED = ("config.json", "tokenizer.json")
# Files that may be absent: a base model has no template, an old repository no generation config.
OPTIONAL = ("tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja",
            "generation_config.json")
TEXTS = read_toml(Path(__file__).with_suffix(".toml"))


class NoBar(tqdm):
    """For the small files, which are there at once."""

    def __init__(self, *args, **options):
        super().__init__(*args, **{**options, "disable": True})


def model_folder(name: str, *, more: tuple[str, ...] = (), weights: bool = True) -> Path:
    """The folder of a model given as a local folder or as `org/name[@revision]` on the hub. A
    revision (branch, tag or commit) is looked up once, and all files come from that commit. The
    hub's HF_HOME, HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE hold. `more` names files that are
    fetched too where the repository has them; without `weights` no weights are."""
    folder = Path(name)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise InputError("no config.json", f"model folder {name}", "name a Hugging Face folder")
        return folder
    match = HUB_ID.fullmatch(name)
    if match is None or folder.exists():
        raise InputError("no such model folder", name, TEXTS["name_it"])
    folder = _download(snapshot_download, match["repo"], match["revision"], where=name,
                       files="config and tokenizer", tqdm_class=NoBar,
                       allow_patterns=[*REQUIRED, *OPTIONAL, *more, INDEX])
    if not weights:
        return folder
    files = weight_names(folder)
    with contextlib.suppress(Exception):  # where nobody can be asked, what is in the cache counts
        if files != [SINGLE] and file_exists(match["repo"], SINGLE, revision=folder.name):
            files = [SINGLE]
    for file in (*REQUIRED, *files):
        # Large files one by one: an interrupted snapshot waits for all its threads, and only for
        # one file does the hub say why it cannot be had.
        if not (folder / file).is_file():
            if not constants.HF_HUB_OFFLINE:
                progress.say(f"downloading {file} of {name}")  # off a terminal there is no bar
            _download(hf_hub_download, match["repo"], folder.name, where=name, files=file,
                      filename=file)
    return folder


def dataset_file(repo: str, filename: str, revision: str) -> Path:
    """One file of a hub dataset repository, in the hub's cache."""
    return _download(hf_hub_download, repo, revision, where=f"{repo}@{revision}", files=filename,
                     absent="name a folder that has it by --data-dir", filename=filename,
                     repo_type="dataset")


def hub_name(path) -> str | None:
    """The repository (org/name) of a folder of the hub's cache, wherever the cache lies."""
    match = SNAPSHOT.search(str(Path(path).absolute()))
    return match and match[1].replace("--", "/")


def model_identity(folder: Path, *, weights: bool = True) -> dict:
    """What a result or an adapter belongs to: hashes of the weights, and of each other file that
    decides what a model reads and writes. Without `weights` another computer has them."""
    return {"weights_sha256": weights_hash(folder) if weights else None, "model_files_sha256": {
        name: sha256_file(folder / name) if (folder / name).is_file() else None
        for name in REQUIRED + OPTIONAL}}


def _download(download: Callable, repo: str, revision: str | None, *, where: str, files: str,
              absent: str = TEXTS["convert"], **options) -> Path:
    """What huggingface_hub's `download` returns; InputError where it fails to get `files`.
    `absent` is the remedy where the repository lacks them."""
    if progress.QUIET:
        disable_progress_bars()
    try:
        return Path(download(repo, revision=revision, **options))
    except Exception as error:  # which network library raises depends on the client's version
        what, remedy = _failure(error, files, absent)
        raise InputError(what, where, remedy) from None


def _failure(error: Exception, files: str, absent: str) -> list[str]:
    """What went wrong in a download, and the remedy."""
    lacking = isinstance(error, errors.LocalEntryNotFoundError)  # neither cached nor downloaded
    offline = lacking and constants.HF_HUB_OFFLINE
    if lacking and not offline and getattr(error.__cause__, "response", None) is not None:
        error = error.__cause__  # what the hub answered
    status = getattr(getattr(error, "response", None), "status_code", None)
    kinds = {"offline" if offline else None, str(status),
             errno.errorcode.get(getattr(error, "errno", None)),
             *(kind.__name__ for kind in type(error).__mro__)}
    return [text.format(files=files, absent=absent, status=status, cache=constants.HF_HUB_CACHE,
                        reason=f"HTTP {status}" if status else type(error).__name__, **TEXTS)
            for text in next(t for kind, t in TEXTS["failures"].items() if kind in kinds)]
