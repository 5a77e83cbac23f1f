"""Where a model computes and in which numbers: --device and --dtype as they will be used."""

import torch

from support.files import InputError
from support.progress import say

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def resolve_device(device: str) -> torch.device:
    """--device as a torch device; auto takes a GPU where there is one."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("no CUDA device here", "--device cuda", "use --device cpu or auto")
    # On an H100 torch prefers cuDNN's attention, which plans anew, for some 30 ms, at every new
    # shape: nearly every pass of ours has one.
    torch.backends.cuda.enable_cudnn_sdp(False)
    return torch.device(device)


def cache_bytes(device: torch.device) -> int:
    """What a cache of keys and values may take: on a CPU 64 rows of 200 tokens of an 8B model; on a
    GPU 8 GiB, or a quarter of a smaller card. The card decides, not what happens to be free, so
    that another run there has the same batches."""
    if device.type == "cpu":
        return 2**31
    return min(2**33, torch.cuda.get_device_properties(device).total_memory // 4)


def resolve_dtype(dtype: str, device: torch.device) -> str:
    """--dtype as it will be used. "auto" stays, and means bfloat16, where the device computes in
    bfloat16. Elsewhere it becomes float32, since bfloat16 would be emulated, which is slower."""
    if dtype != "auto":
        return dtype
    if device.type == "cuda":
        has_bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
    else:  # x86 with AVX-512 or AMX for it, ARM from v8.6 on
        features = torch.cpu.get_capabilities()
        has_bfloat16 = any(here is True for name, here in features.items() if "bf16" in name)
    if not has_bfloat16:
        say(f"note: this {device.type} device does not compute in bfloat16: --dtype is float32")
    return "auto" if has_bfloat16 else "float32"
