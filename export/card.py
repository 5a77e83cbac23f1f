"""README.md of an export: the hub's YAML and the facts of the run, told from its own records.

What is known is read off train_config.json, metrics.jsonl, prompts.jsonl and an evaluation's
results.json; what is not known is left out. No text of the data, and no path of the machine, is
in it. The fields of the front matter: https://huggingface.co/docs/hub/model-cards.
"""

import re
from pathlib import Path

from evals.report import bullets, figure_tables, markdown_table, notes, summary
from lora import CONFIG
from support.files import InputError, read_json, read_jsonl, read_text

PAPER = "[PT-ALIGN](https://arxiv.org/abs/2502.08657)"
# Those of train's settings that say how and hold no path.
SETTINGS = ("objective", "penalty", "mask", "epochs", "lr", "warmup", "clip", "batch_tokens",
            "accumulate", "format", "loss", "seed", "device", "dtype")
LICENSE_LINE = r"^(license(?:_name|_link)?): *[\"']?([\w.:/-]+)[\"']? *$"
LICENSES = {"Apache License": "apache-2.0", "MIT License": "mit"}  # a file's first words
USE = {
    "merged": """from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("THIS")
tokenizer = AutoTokenizer.from_pretrained("THIS")""",
    "peft": """from peft import PeftModel
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("{base}")
model = PeftModel.from_pretrained(model, "THIS")"""}
INTENDED = f"""For study of {PAPER}: a model is tuned to say harmless answers (likelihood) and
not toxic ones (unlikelihood from the first token at which the two differ). Try it beside
its base on your own requests before you rely on either."""
LIMITS = """- This is not a safe model. It may comply with harmful requests, or refuse good ones.
- Tuning on answers that a model wrote teaches it no facts: its errors remain.
- What no line of the results measures is not known, be it other languages, long conversations,
  attacks, knowledge or skill."""


def model_card(*, to: str, name: str, hub_id: str | None, base: Path, adapter: Path,
               results: dict | None) -> str:
    """The text of README.md; `name` is the base's for the reader, `hub_id` only if it is one."""
    what = "merged into its base" if to == "merged" else "in PEFT's format"
    use = USE[to].format(base=hub_id or "BASE")
    parts = [front_matter(to, hub_id, base),
             f"# {name}, tuned with PT-ALIGN",
             f"A LoRA adapter for {name}, {what}, as `ptalign.py export` wrote it.",
             f"```python\n{use}\n```", "## Intended use", INTENDED,
             "## Training", "\n".join(f"- {line}" for line in training(adapter))]
    parts += ["## Results", *measured(results)]
    return "\n\n".join([*parts, "## Limits", LIMITS]) + "\n"


def measured(results: dict | None) -> list[str]:
    if results is None:
        return ["No evaluation was given to the export."]
    try:
        return ["The base model against the tuned one, on the same items.",
                bullets(summary(results)), *map(markdown_table, figure_tables(results)),
                bullets(notes(results))]
    except (KeyError, TypeError, IndexError) as error:
        raise InputError(f"not what eval wrote ({error!r})", "--eval", "evaluate again") from None


def front_matter(to: str, hub_id: str | None, base: Path) -> str:
    fields = license_fields(base)
    if hub_id:
        relation = "finetune" if to == "merged" else "adapter"
        fields = {"base_model": hub_id, "base_model_relation": relation, **fields}
    lines = [f"{key}: {value}" for key, value in fields.items()]
    library = "transformers" if to == "merged" else "peft"
    return "\n".join(["---", *lines, f"library_name: {library}", "pipeline_tag: text-generation",
                      "tags:", *(f"- {tag}" for tag in ("pt-align", "lora", "unlikelihood")),
                      "---"])


def license_fields(base: Path) -> dict[str, str]:
    """What the base's README.md says of its licence, else its LICENSE file; empty if neither."""
    readme = base / "README.md"
    text = read_text(readme) if readme.is_file() else ""
    head = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
    if found := re.findall(LICENSE_LINE, head[1] if head else "", re.MULTILINE):
        return dict(found)
    for path in sorted(base.glob("LICENSE*")):
        start = " ".join(read_text(path)[:200].split())
        for words, identifier in LICENSES.items():
            if start.startswith(words):
                return {"license": identifier}
    return {}


def training(adapter: Path) -> list[str]:
    """The adapter's shape, and what the run's own files tell; InputError for a damaged record."""
    config = read_json(adapter / CONFIG)
    scaled = "/√rank" if config.get("use_rslora") else "/rank"
    lines = [f"LoRA of rank {config['r']}, scale {config['lora_alpha']}{scaled}, on "
             + linears(config.get("target_modules"))]
    path = adapter / "train_config.json"
    if not path.is_file():
        return [*lines, "Not trained by ptalign: how is not on record here."]
    try:
        return [*lines, *record_lines(read_json(path), adapter)]
    except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
        raise InputError(f"not a record of train ({error!r})", path, "move it away") from None


def record_lines(record: dict, adapter: Path) -> list[str]:
    """Data, settings and loss of a run of train."""
    settings = record["settings"]
    rows = len(read_jsonl(adapter / "prompts.jsonl"))
    steps = [row for _, row in read_jsonl(adapter / "metrics.jsonl")]
    tokens = {kind: sum(row[f"{kind}_tokens"] for row in steps) // settings["epochs"]
              for kind in ("positive", "toxic")}
    lines = [f"{rows} rows; an epoch has {tokens['positive']} tokens of positive answers and"
             f" {tokens['toxic']} penalised tokens of toxic ones",
             ", ".join(f"{key} {settings[key]}" for key in SETTINGS if key in settings)]
    if steps:
        first, last = steps[0], steps[-1]
        lines.append(f"Loss over {len(steps)} steps, nats a token: positive answers"
                     f" {first['mle']:.3f} to {last['mle']:.3f}, toxic answers (-log(1 - p))"
                     f" {first['ut']:.3f} to {last['ut']:.3f}")
    lines += [f"SHA-256 of the {of}: `{settings[key]}`"
              for of, key in (("data", "data_sha256"), ("base weights", "weights_sha256"))]
    begun = ", ".join(f"{package} {number}" for package, number in record["versions"].items())
    return [*lines, f"Begun {record['began']} with {begun}"]


def linears(targets) -> str:
    """PEFT's target_modules: a list of names or one pattern, which is code and left as it is."""
    return ", ".join(targets) if isinstance(targets, list) else f"`{targets}`"
