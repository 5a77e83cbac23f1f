"""Compile every kernel for an H100 (sm_90) without one, and print what ptxas says as JSON.

Run as a script: TRITON_INTERPRET must not be set, and it is read when a kernel is defined.
One line a kernel: its registers a thread, spilled bytes, shared bytes a block, whether its products
use Hopper's tensor cores (wgmma), and its loads of four words and of one.
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


KERNELS = {
    "row loss, V 49152": row_kernel(0.0, 49152),
    "row loss, soft cap, V 256000": row_kernel(30.0, 256000),
    **{f"flash head, D {D}": sweep_kernel(D) for D in (64, 192, 256, 576, 640)},
    "flash head, finish, D 576": finish_kernel(576),
}


def compile_kernel(function, constants, warps, stages):
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
    return triton.compile(source, target=GPUTarget("cuda", 90, 32),
                          options={"num_warps": warps, "num_stages": stages})


def resources(ptx: str) -> dict:
    """Registers a thread and spilled bytes, as ptxas reports them with -v."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(ptx)
        done = subprocess.run(
            [get_ptxas(90).path, "-v", "--gpu-name=sm_90a", source, "-o", f"{source}.cubin"],
            capture_output=True, text=True, check=True)
    text = done.stdout + done.stderr
    return {"registers": int(re.search(r"Used (\d+) registers", text)[1]),
            "spills": sum(map(int, re.findall(r"(\d+) bytes spill (?:stores|loads)", text)))}


if __name__ == "__main__":
    if os.environ.get("TRITON_INTERPRET") == "1":
        sys.exit("unset TRITON_INTERPRET: interpreted kernels are not compiled")
    for name, kernel in KERNELS.items():
        compiled = compile_kernel(*kernel)
        facts = {"kernel": name, **resources(compiled.asm["ptx"]),
                 "shared": compiled.metadata.shared, "wgmma": "wgmma" in compiled.asm["ptx"],
                 "vector loads": compiled.asm["ptx"].count("ld.global.v4"),
                 "scalar loads": compiled.asm["ptx"].count("ld.global.b")}
        print(json.dumps(facts), flush=True)
