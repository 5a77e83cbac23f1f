"""README.md of an export: card.md, filled with the facts of the run from its own records.

What is known is read off adapter_config.json, train_config.json, metrics.jsonl, prompts.jsonl and
an evaluation's results.json; what is not known is left out. No text of the data, and no path of the
machine, is in it. The fields of the front matter: https://huggingface.co/docs/hub/model-cards."""

from pathlib import Path

import jinja2
from huggingface_hub import ModelCardData, metadata_load

from evals.report import markdown_figures
from support.adapters import TRAIN_RECORD
from support.contamination import PROMPTS
from support.files import read_jsonl, read_object, refusing

CARD = "README.md"
TEMPLATE = jinja2.Template(Path(__file__).with_name("card.md").read_text(encoding="utf-8"),
                           keep_trailing_newline=True, undefined=jinja2.StrictUndefined)
LICENSES = {"Apache License": "apache-2.0", "MIT License": "mit"}  # a file's first words


def model_card(base: Path, adapter: Path, results: dict | None, *, merged: bool,
               hub_id: str | None, **facts) -> str:
    """The text of README.md. `hub_id` is the base's, if it has one; `facts`: what else card.md
    names."""
    relation, library = ("finetune", "transformers") if merged else ("adapter", "peft")
    data = ModelCardData(  # what is None is left out
        base_model=hub_id, base_model_relation=relation if hub_id else None,
        **license_fields(base), library_name=library, pipeline_tag="text-generation",
        tags=["lora"])
    figures, path = measured(results), adapter / TRAIN_RECORD
    run = {"record": None}
    if path.is_file():
        rows, steps = ([row for _, row in read_jsonl(log)] if log.exists() else []  # not copied
                       for log in (adapter / PROMPTS, adapter / "metrics.jsonl"))
        run = {"record": read_object(path), "rows": len(rows), "steps": steps}
        data.tags.append("pt-align")
    with refusing((jinja2.UndefinedError, TypeError, ValueError, ZeroDivisionError),
                  "not a record of train", path, "move it away"):
        return TEMPLATE.render(run, card_data=data.to_yaml(), base=hub_id or "BASE", merged=merged,
                               results=figures, **facts)


def adapted(factors: dict[str, tuple], layers: int) -> dict[str, list]:
    """What read_adapter's {linear: (A, B, scale)} says of the ranks, scales, linears and, unless
    all of a model's `layers` are adapted alike, the layers. (adapter_config.json may give them by
    patterns.)"""
    places = {name: int(name.split(".")[2]) for name in factors}  # model.layers.4.mlp.up_proj
    linears = sorted({name.rpartition(".")[2] for name in factors})
    layered = sorted(set(places.values()))
    return {"ranks": sorted({len(A) for A, _, _ in factors.values()}),
            "scales": sorted({f"{scale:g}" for *_, scale in factors.values()}, key=float),
            "linears": linears, "everywhere": len(factors) == len(layered) * len(linears),
            "layers": [] if len(factors) == layers * len(linears) else layered}


def measured(results: dict | None) -> str:
    if results is None:
        return "No evaluation was given to the export."
    with refusing((LookupError, TypeError, AttributeError, jinja2.UndefinedError),
                  "not what eval wrote", "--eval", "evaluate again"):
        stored = results["settings"].get("base_dtype")
        return (f"The base model{f', held in {stored},' * bool(stored)} against the tuned one, on"
                " the same items.\n\n" + markdown_figures(results))


def license_fields(base: Path) -> dict[str, str]:
    """What the base's README.md says of its licence, else its LICENSE file; empty if neither."""
    readme = base / "README.md"
    with refusing(Exception, "front matter is not YAML", readme, "repair it"):  # errors of its own
        metadata = (metadata_load(readme) if readme.is_file() else None) or {}
    fields = {key: metadata[key] for key in ("license", "license_name", "license_link")
              if key in metadata}
    starts = (" ".join(path.read_bytes()[:200].decode(errors="replace").split())
              for path in sorted(base.glob("LICENSE*")) if path.is_file())
    return fields or next(({"license": name} for start in starts
                           for words, name in LICENSES.items() if start.startswith(words)), {})
