"""README.md of an export: card.md, filled with the facts of the run from its own records.

What is known is read off adapter_config.json, train_config.json, metrics.jsonl, prompts.jsonl and
an evaluation's results.json; what is not known is left out. No text of the data, and no path of the
machine, is in it. The fields of the front matter: https://huggingface.co/docs/hub/model-cards."""

from pathlib import Path

import jinja2
from huggingface_hub import ModelCard, ModelCardData, metadata_load

from evals.report import bullets, figure_tables, markdown_table, notes, summary
from support.contamination import PROMPTS
from support.files import InputError, read_jsonl, read_object, read_text

TRAIN_RECORD = "train_config.json"
TEMPLATE = Path(__file__).with_name("card.md")
# Those of train's settings that say how and hold no path.
SETTINGS = ("objective", "penalty", "mask", "epochs", "lr", "warmup", "clip", "batch_tokens",
            "accumulate", "format", "loss", "seed", "device", "dtype")
LICENSES = {"Apache License": "apache-2.0", "MIT License": "mit"}  # a file's first words


def model_card(*, merged: bool, name: str, hub_id: str | None, base: Path, adapter: Path,
               config: dict, results: dict | None) -> str:
    """The text of README.md; `name` is the base's for the reader, `hub_id` only if it is one."""
    relation, library = ("finetune", "transformers") if merged else ("adapter", "peft")
    data = ModelCardData(  # what is None is left out
        base_model=hub_id, base_model_relation=relation if hub_id else None,
        **license_fields(base), library_name=library, pipeline_tag="text-generation",
        tags=["pt-align", "lora", "unlikelihood"])
    return str(ModelCard.from_template(
        data, template_path=str(TEMPLATE), merged=merged, name=name, base=hub_id or "BASE",
        training=bullets(training(adapter, config)), results=measured(results))) + "\n"


def measured(results: dict | None) -> str:
    if results is None:
        return "No evaluation was given to the export."
    try:
        return "\n\n".join(["The base model against the tuned one, on the same items.",
                            bullets(summary(results)),
                            *map(markdown_table, figure_tables(results)), bullets(notes(results))])
    except (LookupError, TypeError, AttributeError, jinja2.UndefinedError) as error:
        raise InputError(f"not what eval wrote ({error!r})", "--eval", "evaluate again") from None


def license_fields(base: Path) -> dict[str, str]:
    """What the base's README.md says of its licence, else its LICENSE file; empty if neither."""
    readme = base / "README.md"
    try:
        metadata = (metadata_load(readme) if readme.is_file() else None) or {}
    except Exception as error:  # the YAML library has errors of its own
        reason = str(error).splitlines()[0]
        raise InputError(f"front matter is not YAML ({reason})", readme, "repair it") from None
    fields = {key: metadata[key] for key in ("license", "license_name", "license_link")
              if key in metadata}
    if fields:
        return fields
    for path in sorted(base.glob("LICENSE*")):
        start = " ".join(read_text(path)[:200].split())
        for words, identifier in LICENSES.items():
            if start.startswith(words):
                return {"license": identifier}
    return {}


def training(adapter: Path, config: dict) -> list[str]:
    """The adapter's shape, and what the run's own files tell; InputError for a damaged record."""
    root, targets = "√" if config.get("use_rslora") else "", config.get("target_modules")
    # PEFT has a list of names or one pattern, which is code and left as it is
    linears = ", ".join(targets) if isinstance(targets, list) else f"`{targets}`"
    lines = [f"LoRA of rank {config['r']}, scale {config['lora_alpha']}/{root}rank, on {linears}"]
    path = adapter / TRAIN_RECORD
    if not path.is_file():
        return [*lines, "Not trained by ptalign: how is not on record here."]
    try:
        return [*lines, *record_lines(read_object(path), adapter)]
    except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
        raise InputError(f"not a record of train ({error!r})", path, "move it away") from None


def record_lines(record: dict, adapter: Path) -> list[str]:
    """Data, settings and loss of a run of train."""
    settings = record["settings"]
    rows = len(read_jsonl(adapter / PROMPTS))
    steps = [row for _, row in read_jsonl(adapter / "metrics.jsonl")]
    positive, toxic = (sum(row[f"{kind}_tokens"] for row in steps) // settings["epochs"]
                       for kind in ("positive", "toxic"))
    lines = [f"{rows} rows; an epoch has {positive} tokens of positive answers and"
             f" {toxic} penalised tokens of toxic ones",
             ", ".join(f"{key} {settings[key]}" for key in SETTINGS if key in settings)]
    if steps:
        first, last = steps[0], steps[-1]
        lines.append(f"Loss over {len(steps)} steps, nats a token: positive answers"
                     f" {first['mle']:.3f} to {last['mle']:.3f}, toxic answers (-log(1 - p))"
                     f" {first['ut']:.3f} to {last['ut']:.3f}")
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    return [*lines, f"SHA-256 of the data: `{settings['data_sha256']}`",
            f"SHA-256 of the base weights: `{settings['weights_sha256']}`",
            f"Begun {record['began']} with {versions}"]
