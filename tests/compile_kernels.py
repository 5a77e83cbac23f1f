"""Compile every kernel for GPUs that are not here, and print what ptxas says as JSON.

Run as a script: TRITON_INTERPRET must not be set, and it is read when a kernel is defined.
One line a kernel and chip: its registers a thread, spilled bytes, shared bytes a block, the tensor
cores that its products use, and its loads of four words and of one.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")  # else 3.9 warns that 3.10 will not fuse

import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource

from kernels import flash_head, rows

POINTERS = {"logits_ptr": "*fp32", "rows_ptr": "*fp32", "weight_ptr": "*fp32", "top_ptr": "*fp32",
            "total_ptr": "*fp32", "mean_ptr": "*fp32"}
BF16 = {name: "*bf16" for name in ("hidden_ptr", "head_ptr", "grad_ptr", "d_hidden_ptr")}


def row_kernel(cap, V):
    block = min(rows.BLOCK, triton.next_power_of_2(V))
    return rows._row_loss_kernel, dict(CAP=cap, BLOCK=block), rows.WARPS, 3


def sweep_kernel(D):
    D1, D2 = flash_head.tile_widths(D)
    shape = dict(D=D, D1=D1, D2=D2, BLOCK_M=flash_head.BLOCK_M, BLOCK_N=flash_head.BLOCK_N)
    return flash_head._sweep_kernel, shape, flash_head.WARPS, flash_head.STAGES


def finish_kernel(D):
    shape = dict(D=D, BLOCK_D=triton.next_power_of_2(D), SPLITS=16)
    return flash_head._finish_kernel, shape, 4, 3


ROWS = {"row loss, V 49152": row_kernel(0.0, 49152)}
H100 = {"row loss, soft cap, V 256000": row_kernel(30.0, 256000),
        "flash head, finish, D 576": finish_kernel(576)}
# Capability -> shared bytes of a block, hidden sizes of the flash head, other kernels.
CHIPS = {80: (163 * 1024, (192, 288, 512, 576), ROWS),  # A100
         89: (99 * 1024, (288, 384, 512), ROWS),  # RTX 4090, L4
         90: (227 * 1024, (64, 192, 256, 576, 640), ROWS | H100),
         100: (227 * 1024, (64, 512, 576, 640), ROWS)}  # B200


def kernels_of(chip: int) -> dict:
    """Those that run there: of the flash head's sizes the ones that `fits` lets through."""
    room, sizes, others = CHIPS[chip]
    return others | {f"flash head, D {D}": sweep_kernel(D) for D in sizes
                     if flash_head.fits_chip(D, 2, chip // 10, room)}


def compile_kernel(chip, function, constants, warps, stages):
    """The compiled kernel; every pointer and stride is taken to be a multiple of 16, as torch's."""
    signature, divisible = {}, {}
    for index, name in enumerate(function.arg_names):
        if name in constants:
            signature[name] = "constexpr"
        elif name.endswith("_ptr"):
            signature[name] = {**POINTERS, **BF16}.get(name, "*i64")
        else:
            signature[name] = "i32"
        if name.endswith("_ptr") or name in ("V", "row_stride", "columns"):
            divisible[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(function, signature, constexprs=constants, attrs=divisible)
    return triton.compile(source, target=GPUTarget("cuda", chip, 32),
                          options={"num_warps": warps, "num_stages": stages})


def known(chip: int) -> bool:
    """Whether this ptxas has the chip."""
    done = subprocess.run([get_ptxas(chip).path, "--help"], capture_output=True, text=True)
    return f"'sm_{chip}'" in done.stdout


def resources(ptx: str, chip: int) -> dict:
    """Registers a thread and spilled bytes, as ptxas reports them with -v."""
    name = f"sm_{chip}" + ("a" if chip >= 90 else "")  # a: with the chip's own tensor cores
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(ptx)
        done = subprocess.run(
            [get_ptxas(chip).path, "-v", f"--gpu-name={name}", source, "-o", f"{source}.cubin"],
            capture_output=True, text=True, check=True)
    text = done.stdout + done.stderr
    return {"registers": int(re.search(r"Used (\d+) registers", text)[1]),
            "spills": sum(map(int, re.findall(r"(\d+) bytes spill (?:stores|loads)", text)))}


if __name__ == "__main__":
    if os.environ.get("TRITON_INTERPRET") == "1":
        sys.exit("unset TRITON_INTERPRET: interpreted kernels are not compiled")
    for chip in filter(known, CHIPS):
        for name, kernel in kernels_of(chip).items():
            compiled = compile_kernel(chip, *kernel)
            ptx = compiled.asm["ptx"]
            facts = {"kernel": name, "chip": chip, **resources(ptx, chip),
                     "shared": compiled.metadata.shared, "room": CHIPS[chip][0],
                     "tensor cores": next((kind for kind in ("wgmma", "tcgen05", "mma.sync")
                                           if kind in ptx), None),
                     "vector loads": ptx.count("ld.global.v4"),
                     "scalar loads": ptx.count("ld.global.b")}
            print(json.dumps(facts), flush=True)
