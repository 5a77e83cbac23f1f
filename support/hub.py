"""From a model's name to a folder of files: a local folder, or a Hugging Face hub id.

Of a model only safetensors, JSON and the chat template are fetched: the index first, then the
shards it names, since many repositories hold the same weights several times over. All else is left
to huggingface_hub: the cache, its locks, the progress bars, and that a dropped connection is taken
up again where it broke off (file_download.py, http_get). A run that was killed begins anew with the
shard it was at; the shards before it are kept.
"""

import errno
import re
from pathlib import Path

from support import progress
from support.files import InputError, read_json, sha256, sha256_file

HUB_ID = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")
INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
# Files that may be absent: a base model has no template, an old repository no generation config.
OPTIONAL = ("tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja",
            "generation_config.json")
LOG_IN = "accept the licence on the model's page and set HF_TOKEN or run `hf auth login`"
CONVERT = ("choose a repository with safetensors and tokenizer.json, or make them: model and "
           "tokenizer loaded with transformers (AutoModelForCausalLM, AutoTokenizer), "
           "save_pretrained of both into one folder")


def model_folder(name: str, *, more: tuple[str, ...] = ()) -> Path:
    """The folder of a model given as a local folder or as `org/name[@revision]` on the hub.

    A revision is a branch, a tag or a commit's 40 digits; what it names is settled once, and all
    files come from that commit. Downloads go to the hub's own cache (HF_HOME); HF_ENDPOINT,
    HF_TOKEN and HF_HUB_OFFLINE act as they do in every tool built on huggingface_hub. `more` names
    files that are fetched as well where the repository has them.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise InputError("no config.json", f"model folder {name}", "name a Hugging Face folder")
        return folder
    match = HUB_ID.fullmatch(name)
    if match is None or folder.exists():
        raise InputError("no such model folder", name, "give a folder or a hub id org/name")
    repo = match["repo"]
    config = _fetch(repo, "config.json", match["revision"], where=name)
    at = {"revision": config.parent.name, "where": name}  # all files from the same commit
    # The small files before the weights: what is missing is missed at once, and a cache that has
    # the weights has the rest.
    _fetch(repo, "tokenizer.json", **at)
    for file in OPTIONAL + more:
        _fetch(repo, file, **at, optional=True)
    index = _fetch(repo, INDEX, **at, optional=True)
    for shard in shard_names(index) if index else (SINGLE,):
        _fetch(repo, shard, **at)
    return config.parent


def dataset_file(repo: str, filename: str, revision: str) -> Path:
    """One file of a hub dataset repository, in the hub's cache."""
    where = f"{repo}@{revision}"
    return _fetch(repo, filename, revision, where=where, repo_type="dataset")


def shard_names(index: Path) -> list[str]:
    """The distinct files that a sharded checkpoint's index names, in order."""
    try:
        # Names only: a path could lead out of the folder.
        return sorted({Path(name).name for name in read_json(index)["weight_map"].values()})
    except (KeyError, TypeError, AttributeError):
        raise InputError("no weight_map", index, "download the index again") from None


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model folder; what would have to be unpickled is refused."""
    if (folder / INDEX).is_file():
        files = [folder / name for name in shard_names(folder / INDEX)]
    else:
        files = [folder / SINGLE]
    missing = [file.name for file in files if not file.is_file()]
    if not missing:
        return files
    pickled = sorted(folder.glob("*.bin")) + sorted(folder.glob("*.pt*"))
    if pickled and not any(folder.glob("*.safetensors")):
        raise InputError(f"only pickled weights ({pickled[0].name}), which can run code when read",
                         folder, "convert them to safetensors")
    raise InputError(f"{missing[0]} is missing", folder, "download the folder again")


def weights_hash(folder: Path) -> str:
    """One hash of all weight files."""
    return sha256("".join(map(sha256_file, weight_files(folder))))


def model_identity(folder: Path) -> dict:
    """What a result or an adapter belongs to: hashes of the weights, and of each other file that
    decides what a model reads and writes.
    """
    files = ("config.json", "tokenizer.json", *OPTIONAL)
    return {"weights_sha256": weights_hash(folder), "model_files_sha256": {
        name: sha256_file(folder / name) if (folder / name).is_file() else None for name in files}}


def _fetch(repo, filename, revision, *, where, optional=False, repo_type="model") -> Path | None:
    """One file, through the hub's cache. None where an optional file does not exist."""
    from huggingface_hub import _CACHED_NO_EXIST, constants, hf_hub_download, try_to_load_from_cache
    from huggingface_hub import errors as hub
    from huggingface_hub.utils import disable_progress_bars

    if progress.QUIET:
        disable_progress_bars()
    at = {"revision": revision, "repo_type": repo_type}
    try:
        cached = try_to_load_from_cache(repo, filename, **at)
        if optional and cached is _CACHED_NO_EXIST:
            return None  # known of this commit: no need to ask again
        if cached is None and filename.endswith(".safetensors") and not constants.HF_HUB_OFFLINE:
            progress.say(f"downloading {filename} of {where}")  # off a terminal there is no bar
        return Path(hf_hub_download(repo, filename, **at))
    except hub.EntryNotFoundError as error:  # there, or here where the hub gave no answer
        local = isinstance(error, hub.LocalEntryNotFoundError)
        if optional and (constants.HF_HUB_OFFLINE or not local):
            return None
        what, remedy = _unanswered(error, filename) if local else (f"no {filename}", CONVERT)
        raise InputError(what, where, remedy) from None
    except Exception as error:  # which network library raises depends on the client's version
        what, remedy = _failure(error, filename)
        raise InputError(what, where, remedy) from None


def _unanswered(error: Exception, filename: str) -> tuple[str, str]:
    """Why a file that is not in the cache could not be had, and the remedy."""
    from huggingface_hub import constants

    if hasattr(error.__cause__, "response"):  # an answer after all
        return _failure(error.__cause__, filename)
    what, remedy = "the hub cannot be reached", "check the network and try again"
    if constants.HF_HUB_OFFLINE:
        what, remedy = "HF_HUB_OFFLINE is set", "unset it once to download the file"
    return f"{what} and {filename} is not in the cache", remedy


def _failure(error: Exception, filename: str) -> tuple[str, str]:
    """What went wrong in a download, and the remedy."""
    from huggingface_hub import constants
    from huggingface_hub import errors as hub

    for kind, what, remedy in (
            (hub.HFValidationError, "not a hub id", "give a folder or a hub id org/name"),
            (hub.GatedRepoError, "gated repository", LOG_IN),
            (hub.RepositoryNotFoundError, "no such folder or hub repository",
             "check the name, or set HF_TOKEN if it is private"),
            (hub.RevisionNotFoundError, "no such revision", "check what follows the @")):
        if isinstance(error, kind):
            return what, remedy
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return f"the hub refuses this token (HTTP {status})", "check HF_TOKEN or `hf auth login`"
    place = f"the cache {constants.HF_HUB_CACHE}"
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk is full at {filename}", f"make room at {place} or set HF_HOME"
    if isinstance(error, PermissionError):
        return f"no permission to write {filename}", f"check {place} or set HF_HOME"
    reason = f"HTTP {status}" if status else type(error).__name__
    return f"download of {filename} failed ({reason})", "try again"
