"""What a run made, in the form of other programs: a merged model, a PEFT adapter, rows of data.

    python ptalign.py export --model MODEL --adapter ADAPTER --to merged --out DIR
    python ptalign.py export --data RUN/triplets.jsonl --to trl --out FILE

A folder or file appears whole or not at all. A model comes with a card (card.py) that describes the
run. Nothing that is written names a path of this machine; only --to trl writes toxic text."""

import shlex
from pathlib import Path

from safetensors.torch import save

from export.card import CARD, adapted, model_card
from export.merge import COPIED, NOTICES, write_merged
from model import DTYPES, outline
from support import adapters
from support.files import InputError, read_object, set_aside, write_atomic, write_json, write_jsonl
from support.hub import HUB_ID, hub_name, model_folder
from support.pairs import Triplet, read_triplets
from support.progress import say
from support.runs import new_folder, writing
from support.weights import weights_hash


def export(*, model: str | None, adapter: str | None, data: str | None, out: str, to: str | None,
           dtype: str, base_name: str | None, evaluation: str | None, fresh: bool,
           skip_bad_rows: bool = False, columns_are_right: bool = False) -> int:
    """Write a folder or a file; returns the exit code. Raises InputError for bad input."""
    if (data is None) == (adapter is None):
        raise InputError("name one of the two", "--adapter or --data", "see export --help")
    source, forms = ("--adapter", ("merged", "peft")) if adapter else ("--data", ("trl", "sft"))
    to = to or forms[0]
    if to not in forms:
        raise InputError(f"{source} is not exported as {to}", "--to", f"use {' or '.join(forms)}")
    if data is not None:
        if model or base_name or evaluation or dtype != "auto":
            raise InputError("no option of a model goes with it", "--data", "drop the others")
        triplets = read_triplets(Path(data), skip=skip_bad_rows, columns_right=columns_are_right)
        return export_data(triplets, Path(out), to, fresh=fresh, data=data)
    if skip_bad_rows or columns_are_right or fresh:
        raise InputError("goes with --data alone", "--skip-bad-rows, --columns-are-right, --fresh",
                         "leave it out")
    if model is None:
        raise InputError("an adapter is exported with its base", "--model", "name the base model")
    return export_model(model, Path(adapter), Path(out), merged=to == "merged", dtype=dtype,
                        base_name=base_name, evaluation=evaluation)


def export_data(triplets: list[Triplet], out: Path, to: str, *, fresh: bool, data: str) -> int:
    """Conversational rows as TRL's DPO (trl) and SFT (sft) trainers read them, one JSON a line."""
    if to == "sft":
        rows = [{"messages": t.messages + answer(t.positive)} for t in triplets]
    else:
        rows = [{"prompt": t.messages, "chosen": answer(t.positive),
                 "rejected": answer(t.toxic.raw())} for t in triplets if t.toxic is not None]
    if not rows:
        raise InputError("no row has a toxic answer", f"--data {data}", "use --to sft")
    if out.is_dir():
        raise InputError("a folder", f"--out {out}", "name a file")
    if out.exists() and not fresh:
        raise InputError("the file exists", f"--out {out}", "name another or rename it by --fresh")
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        if out.exists():
            set_aside(out)
        write_jsonl(out, rows, mode=0o600 if to == "trl" else 0o644)
    skipped = len(triplets) - len(rows)
    note = f"; {skipped} without a toxic answer skipped" if skipped else ""
    say(f"{len(rows)} rows written to {out}{note}")
    return 0


def answer(content: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": content}]


def export_model(model: str, adapter: Path, out: Path, *, merged: bool, dtype: str,
                 base_name: str | None, evaluation: str | None) -> int:
    """Weights and a model card; everything is read and checked before anything is written."""
    # A mistyped name is told before the download.
    config, hub_id = adapters.read_adapter_config(adapter), public_name(model, base_name)
    sha256 = adapters.adapter_hash(adapter, config)
    results = read_results(evaluation, sha256)
    old = out.is_file() or (out.is_dir() and any(out.iterdir()))
    taken = InputError("a file or a folder that is not empty", f"--out {out}", "name a new folder")
    if old and not (out / CARD).is_file():
        raise taken
    base = model_folder(model, more=("README.md", *NOTICES, *(COPIED if merged else ())))
    empty, places = outline(base)
    factors = adapters.read_adapter(adapter, config, empty)
    name = hub_id or base.resolve().name
    base_sha256 = weights_hash(base) if merged or results else ""
    if results and results["settings"].get("weights_sha256") != base_sha256:
        raise InputError("of another base model", f"--eval {evaluation}", "evaluate with this one")
    card = model_card(base, adapter, results, merged=merged, hub_id=hub_id, name=name, dtype=dtype,
                      adapted=adapted(factors, len(empty.model.layers)), sha256=sha256,
                      base_sha256=base_sha256)
    if not merged and hub_id is None:
        say(f"warning: {adapters.CONFIG} names the base {name}; give its hub id by --base-name")
    if old:
        # A folder takes its name when it is whole, and its card tells adapter, base and dtype.
        if (out / CARD).read_bytes() != card.encode() or not any(out.glob("*.safetensors")):
            raise taken
        say(f"{out} holds this export already")
    else:
        with new_folder(out) as folder:
            if merged:
                write_merged(folder, base, places, factors, dtype=dtype)
            else:
                ours = adapters.under_our_names(adapter / adapters.WEIGHTS, config, factors)
                kept = {key: value for key, value in ours.items() if key != "revision"
                        or name == config.get("base_model_name_or_path")}  # of another base
                revision = {"revision": base.name} if name == hub_name(base) else {}
                write_peft(folder, factors, dtype,
                           {**kept, "base_model_name_or_path": name, **revision})
            write_atomic(folder / CARD, card)
        say(f"{'merged' if merged else 'peft'} model written to {out}")
    say_converter(out.resolve(), base.resolve(), merged=merged)
    return 0


def say_converter(out: Path, base: Path, *, merged: bool) -> None:
    """The command by llama.cpp's own scripts, which is given in its repository."""
    script = "convert_hf_to_gguf.py" if merged else "convert_lora_to_gguf.py"
    source = [str(out)] if merged else [str(out), "--base", str(base)]
    line = shlex.join(["python", script, *source, "--outfile", f"{out}.gguf"])
    say(f"for llama.cpp and Ollama: {line}")


def write_peft(folder: Path, factors: dict[str, tuple], dtype: str, config: dict) -> None:
    """Both files of an adapter, every tensor under the name that PEFT itself gives it."""
    tensors = {f"{adapters.PREFIX}{name}.lora_{side}.weight":
               tensor.to(DTYPES.get(dtype, tensor.dtype))
               for name, (A, B, _) in factors.items() for side, tensor in (("A", A), ("B", B))}
    write_atomic(folder / adapters.WEIGHTS, save(tensors, {"format": "pt"}))
    write_json(folder / adapters.CONFIG, config)


def public_name(model: str, base_name: str | None) -> str | None:
    """The base's hub id without its revision; None where only a folder is known."""
    if not base_name and Path(model).is_dir():
        return hub_name(model)
    match = HUB_ID.fullmatch(base_name or model)
    if base_name and match is None:
        raise InputError("not a hub id", f"--base-name {base_name}", "write it as org/name")
    return match and match["repo"]


def read_results(evaluation: str | None, adapter_sha256: str) -> dict | None:
    """results.json of an evaluation of this very adapter; None where none is asked for."""
    if evaluation is None:
        return None
    results = read_object(Path(evaluation) / "results.json", remedy="evaluate again")
    settings = results.get("settings")
    if not isinstance(settings, dict) or settings.get("adapter_sha256") != adapter_sha256:
        raise InputError("of another adapter, of several or of none", f"--eval {evaluation}",
                         "evaluate this adapter first")
    return results
