"""The files of a tokenizer as Hugging Face folders have them, read and checked: tokenizer.json, the
special tokens that others name, and the chat template."""

import json
import re
import shlex
from functools import partial
from pathlib import Path

import jinja2
import jinja2.ext
import jinja2.sandbox
import tokenizers
from huggingface_hub import constants

from support.files import InputError, read_object, read_text, refusing
from support.progress import say

OTHER_FORMATS = ("tokenizer.model", "vocab.json", "merges.txt", "tekken.json", "tiktoken.model")
CONVERT = ("convert it: pip install transformers sentencepiece protobuf tiktoken && python -c "
           "'import sys; from transformers import AutoTokenizer as T; [folder] = sys.argv[1:]; "
           "T.from_pretrained(folder).save_pretrained(folder)' ")
TEMPLATE = "chat_template.jinja"
GENERATION = re.compile(r"({%[-+]?\s*)(end)?generation(?=\s*[-+]?%})")  # marks answers


def read_optional(path: Path) -> dict:
    return read_object(path) if path.exists() else {}


def read_backend(folder: Path) -> tokenizers.Tokenizer:
    path = folder / "tokenizer.json"
    if not path.is_file():
        if others := [name for name in OTHER_FORMATS if (folder / name).is_file()]:
            raise InputError(f"no tokenizer.json, only {' and '.join(others)}", folder,
                             f"{CONVERT}{shlex.quote(str(folder))}")
        raise InputError("no tokenizer.json", folder, "name a Hugging Face folder")
    try:
        backend = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # it raises just that
        read_object(path)  # a damaged file is told by its line
        reason = str(error).partition("\n")[0][:120]
        raise InputError(f"tokenizers {tokenizers.__version__} does not know its form ({reason})",
                         path, "if a newer version wrote it: pip install -U tokenizers") from None
    backend.no_truncation()  # both may be stored in the file and would change lengths unseen
    backend.no_padding()
    return backend


def read_special(folder: Path, config: dict, backend: tokenizers.Tokenizer) -> dict[str, str]:
    """The named special tokens. As in transformers, added_tokens_decoder changes tokenizer.json's
    added tokens (their white space, say); without it special_tokens_map.json counts as well."""
    with refusing((KeyError, TypeError, ValueError, AttributeError), "malformed special tokens",
                  folder, "download tokenizer_config.json again"):
        if "added_tokens_decoder" in config:
            added = sorted((int(i), token) for i, token in config["added_tokens_decoder"].items())
            backend.add_tokens([tokenizers.AddedToken(**token) for _, token in added])
        else:
            config = config | read_optional(folder / "special_tokens_map.json")
        # + "": a TypeError for what is no text
        return {key: token["content"] + "" if isinstance(token, dict) else token
                for key, token in config.items()  # add_bos_token is a flag, not a token
                if key.endswith("_token") and isinstance(token, (str, dict))}


def read_eos_ids(folder: Path, special: dict[str, str], eos: int | None,
                 backend: tokenizers.Tokenizer) -> frozenset[int]:
    """Every id that ends a turn: the tokenizer's, and those of generation_config.json, where chat
    models list several. As in transformers, config.json counts where that file names none."""
    ids = {eos}
    for name in ("generation_config.json", "config.json"):
        if (value := read_optional(folder / name).get("eos_token_id")) is None:
            continue
        values = value if isinstance(value, list) else [value]
        if not all(type(i) is int and 0 <= i < 2**31 for i in values):
            raise InputError(f"eos_token_id {value!r} is no token", folder / name,
                             "repair the file")
        for i in {*values} - {eos, *backend.get_added_tokens_decoder()}:
            say(f"warning: answers end at {backend.id_to_token(i)!r}, an ordinary token, as"
                f" {folder / name} has eos_token_id {i}")
        ids.update(values)
        break
    if ids == {None}:
        name = special.get("eos_token")
        what = f"eos_token {name!r} is not in tokenizer.json" if name else (
            "no end-of-text token is named")
        raise InputError(what, folder, "set eos_token in tokenizer_config.json")
    return frozenset(ids - {None})


def raw_format(folder: Path) -> str:
    """"raw"; told where a model in which `read_template` finds no template may have one."""
    named = read_optional(folder / "tokenizer_config.json").get("chat_template") or []
    names = [str(t.get("name")) if isinstance(t, dict) else str(t) for t in named]
    names += [path.stem for path in sorted(folder.glob("additional_chat_templates/*.jinja"))]
    names += [path.name for path in folder.glob("chat_template.json")]  # an image processor's
    reason = f"no chat template of {', '.join(names)} is the default"
    snapshots, commit = folder.absolute().parent, folder.absolute().name
    if not names and constants.HF_HUB_OFFLINE and snapshots.name == "snapshots":
        # transformers leaves a mark where it has asked for what a repository does not have
        names = not (snapshots.parent / ".no_exist" / commit / TEMPLATE).exists()
        reason = f"{TEMPLATE} is not in the cache, and offline no hub is asked for it"
    if names:
        say(f"warning: prompts take the raw form: {reason}, {folder} (--format raw: meant so)")
    return "raw"


def with_all(messages: list[dict], text: str, folder: Path) -> str:
    """A template's text; InputError where it leaves out one of the messages that it was given."""
    shown = "".join(text.split())  # some trim them
    for message in messages:
        if "".join(message["content"].split()) not in shown:
            raise InputError(f"the chat template leaves the {message['role']}'s text out", folder,
                             "use --format raw")
    return text


def _raise_exception(message):
    raise jinja2.TemplateError(message)


def read_template(folder: Path, config: dict) -> jinja2.Template | None:
    """chat_template.jinja wins over tokenizer_config.json, which may hold a list of named ones."""
    source = config.get("chat_template")
    if isinstance(source, list):
        source = {t.get("name"): t.get("template") for t in source if isinstance(t, dict)}
    if isinstance(source, dict):
        source = source.get("default")
    if (folder / TEMPLATE).exists():
        source = read_text(folder / TEMPLATE)
    if source is None:
        return None
    if not isinstance(source, str):
        raise InputError("chat_template is no text", folder / "tokenizer_config.json",
                         "repair or remove it")
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols])
    environment.filters["tojson"] = partial(json.dumps, ensure_ascii=False)
    environment.globals["raise_exception"] = _raise_exception
    with refusing(jinja2.TemplateError, "chat template does not parse", folder,
                  "repair or remove it"):
        return environment.from_string(GENERATION.sub(r"\1\2with", source))
