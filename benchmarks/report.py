"""A benchmark's report: what the figures depend on, and the figures as a table.

Letters: N scored rows, D hidden size, V vocabulary.
"""

import os
import platform
import re
from importlib import metadata
from pathlib import Path

import torch

from benchmarks import cases, timing
from support.progress import say

IDLE = 0.25 * (os.cpu_count() or 1)  # a load average above this disturbs the figures
TRAFFIC = 12  # bytes a logit: fp32 written and read, its bf16 gradient written and read
PACKAGES = ("torch", "triton", "liger-kernel", "cut-cross-entropy", "quack-kernels")
HEADER = """| | ms | p10 to p90 | peak MiB | dX error | share of floor |
|---|--:|--:|--:|--:|--:|"""


def machine(device, packages: tuple[str, ...]) -> dict:
    """What any figure depends on besides the code and the options."""
    load = round(os.getloadavg()[0], 2)
    if load > IDLE:
        say(f"warning: load average {load} before the start: the figures will be disturbed")
    return {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else processor(),
        "versions": {name: version for name in packages if (version := version_of(name))},
        "threads": torch.get_num_threads(),
        "load": load,
        "idle": load <= IDLE,
    }


def about(options) -> dict:
    """What the figures depend on besides the code; results is still empty."""
    on_gpu = options.device.type == "cuda"
    return {
        **machine(options.device, PACKAGES),
        "rounds": options.rounds,
        "seed": cases.SEED,
        "data": f"{Path(options.model).name} on README.md" if options.model else "synthetic",
        "bandwidth": timing.copy_bandwidth(options.device) if on_gpu else None,  # bytes a second
        "results": [],
    }


def version_of(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def processor() -> str:
    try:
        found = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found[1] if found else platform.machine()


def short_name(device) -> str:
    """Of the device in a file's name: cpu, h100, h200."""
    if device.type == "cpu":
        return "cpu"
    name = torch.cuda.get_device_name().lower()
    chip = re.search(r"\b[a-z]{1,2}\d{2,4}[a-z]?\b", name)
    return chip[0] if chip else re.sub(r"\W+", "-", name)


def table(result: dict, bandwidth: float | None) -> str:
    """One size and N: a line for each that ran, and why the others did not."""
    lines = ["### {size}: D = {D}, V = {V}, N = {N}, {dtype}".format(**result), "", HEADER]
    not_run = {}
    for name, row in (result["floors"] | result["rivals"]).items():
        if "ms" in row:
            lines.append(line(name, row))
        else:
            not_run.setdefault(row["reason"], []).append(name)
    lines += ["", *(f"Not run: {', '.join(group)} ({why})." for why, group in not_run.items())]
    if "p" in result:
        lines.append("Of the rows compared with float64, {above_99:.1%} have p above 0.99 and "
                     "{below_1:.1%} below 0.01.".format(**result["p"]))
    if bandwidth and result.get("floor_ms"):
        traffic = TRAFFIC * result["N"] * result["V"] / bandwidth * 1e3
        floor = result["floor_ms"]
        lines.append(f"Roofline of the chunked form: two products {floor:.2f} ms + {TRAFFIC} bytes "
                     f"a logit {traffic:.2f} ms = {floor + traffic:.2f} ms.")
    return "\n".join(lines)


def line(name: str, row: dict) -> str:
    cells = [name, cell(row["ms"], ".2f"), f"{row['p10']:.2f} to {row['p90']:.2f}",
             cell(row.get("MiB"), ".0f"), cell(row.get("error"), ".1e"),
             cell(row.get("share"), ".0%")]
    return f"| {' | '.join(cells)} |"


def cell(value, form: str) -> str:
    return "" if value is None else value if isinstance(value, str) else format(value, form)


def markdown(whole: dict, legend: dict) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in whole["versions"].items())
    top = [f"# The loss head on {whole['device']}", "",
           f"{versions}; {whole['threads']} threads, load average {whole['load']:.2f} at the "
           f"start; {whole['rounds']} rounds; data: {whole['data']}, seed {whole['seed']}."]
    if not whole["idle"]:
        top.append("**The machine was not idle: these figures are disturbed.**")
    if whole["bandwidth"]:
        top.append(f"A large copy runs at {whole['bandwidth'] / 1e12:.2f} TB/s.")
    tables = [table(result, whole["bandwidth"]) for result in whole["results"]]
    names = [f"- {name}: {' '.join(text.split())}" for name, text in legend.items()]
    return "\n\n".join(["\n".join(top), *tables, "\n".join(names)]).rstrip() + "\n"
