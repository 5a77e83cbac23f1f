"""kernels/ beyond what test_losses.py shows of every form: the row kernel by itself, splits, what
is refused, `--loss triton` end to end, and what the compiler makes of the kernels for real GPUs.

On the CPU they run under Triton's interpreter; a GPU runs the same tests and, marked gpu, sizes of
real models at the blocks that are used there.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from loss_cases import (
    DEVICE,
    FORMS,
    MIXED,
    TRITON_FORMS,
    doubled,
    error,
    grad_of,
    kernels,
    make,
    needs_triton,
    pt_loss_naive,
    small_blocks,  # noqa: F401  a fixture
)

import losses
import train
from losses import IGNORED, pt_loss
from support.files import InputError, read_jsonl, write_jsonl

if kernels is not None:
    from kernels.rows import row_loss_fwd

pytestmark = [needs_triton, pytest.mark.usefixtures("small_blocks")]


def eager_rows(logits, targets, kind, softcap):
    """What the row kernel computes, by its parts in losses.py, in float64."""
    z = logits.double()
    if softcap is not None:
        z = softcap * torch.tanh(z / softcap)
    return losses.row_loss(losses.log_odds(z, targets), kind)


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("V", [2, 64, 65, 200])
def test_row_kernel(V, softcap):
    """The kernel's rows and gradient in the logits are those of its eager parts in float64."""
    draw = torch.Generator().manual_seed(V)
    logits = (torch.randn(7, V, generator=draw) * 4).to(DEVICE).requires_grad_()
    targets = torch.randint(V, (7,), generator=draw).to(DEVICE)
    kind = torch.tensor(MIXED, device=DEVICE)
    weight = torch.arange(1.0, 8.0, device=DEVICE)
    exact = eager_rows(logits, targets, kind, softcap)
    (weight * exact).sum().backward()
    grad = torch.empty(7, V, device=DEVICE)
    rows = row_loss_fwd(logits.detach(), targets, kind, weight, grad, softcap=softcap)
    assert error(rows, exact.detach()) < 1e-6 and error(grad, logits.grad) < 1e-6
    assert not grad[kind == IGNORED].any()


def test_row_kernel_on_a_slice():
    """The caller's logits may have gaps between their rows; they stay as they were."""
    logits = torch.randn(7, 40, device=DEVICE)
    part, was = logits[:, 3:20], logits.clone()
    targets, kind = torch.arange(7, device=DEVICE), torch.tensor(MIXED, device=DEVICE)
    grad = torch.empty(7, 17, device=DEVICE)
    rows = row_loss_fwd(part, targets, kind, torch.ones(7, device=DEVICE), grad)
    assert error(rows, eager_rows(part, targets, kind, None)) < 1e-6
    assert torch.equal(logits, was)


@pytest.mark.parametrize("D", [16, 17, 24, 64, 80])
@pytest.mark.parametrize("splits", [1, 3, 100])
def test_splits(D, splits):
    """However the vocabulary is cut (100 asks for more parts than there are tiles)."""
    case = make(MIXED, 130, D=D, dtype=torch.float32)
    exact = grad_of(pt_loss_naive, doubled(case))
    for ours, wanted in zip(grad_of(kernels.pt_loss_flash, case, splits=splits), exact,
                            strict=True):
        assert error(ours, wanted) < 1e-6


def test_tile_widths():
    from kernels.flash_head import tile_widths
    assert [tile_widths(D) for D in (16, 64, 576, 600, 640)] == [
        (16, 0), (64, 0), (512, 64), (512, 128), (512, 128)]
    for D in range(16, 641):
        D1, D2 = tile_widths(D)
        assert D1 <= D <= D1 + D2 or (D1, D2) == (D, 0)
        assert all(width & (width - 1) == 0 for width in (D1, D2)) and D2 in (0, *range(16, 513))


def test_chunk_rows():
    from kernels.chunked import chunk_rows
    assert chunk_rows(5000, 100, 2, budget=1) == 128  # a tile at least
    assert chunk_rows(5000, 100, 2, budget=2**30) == 1792  # three like ones of at most 2048
    assert chunk_rows(5000, 100, 2, budget=2**30, most=512) == 512
    assert chunk_rows(12800, 128256, 2, budget=2**30) == 1280
    assert chunk_rows(2049, 32000, 2) == 1152  # not 2048 and a single row
    assert chunk_rows(100, 100, 2) == 128 and chunk_rows(0, 100, 2) == 1


def test_chunked_keeps_its_buffers(monkeypatch):
    """One buffer of logits and one of their gradient, whatever the number of chunks."""
    from kernels import chunked
    seen = []

    def spy(Z, targets, kind, weight, grad, **options):
        seen.append((Z.untyped_storage().data_ptr(), grad.untyped_storage().data_ptr()))
        return row_loss_fwd(Z, targets, kind, weight, grad, **options)

    monkeypatch.setattr(chunked, "row_loss_fwd", spy)
    kernels.pt_loss_chunked(*make(MIXED * 3, 33, dtype=torch.float32))
    assert len(seen) > 3 and len(set(seen)) == 1


def test_fewest_waves():
    from kernels.flash_head import fewest_waves
    assert fewest_waves(132, 132) == 1  # one wave, whole
    assert fewest_waves(96, 132) == 11  # 8 waves of an eleventh
    assert fewest_waves(133, 132) > 1  # two waves, the second of one program
    assert fewest_waves(1, 132) == 132
    for blocks in range(1, 300, 7):
        s = fewest_waves(blocks, 132)
        assert -(-blocks * s // 132) / s <= -(-blocks // 132)


@pytest.mark.parametrize("form", TRITON_FORMS)
def test_types_must_agree(form):
    hidden, head, *rest = make(MIXED, 20, D=16, dtype=torch.float32)
    with pytest.raises(ValueError, match="differ in type"):
        FORMS[form](hidden, head.bfloat16(), *rest)


@pytest.mark.parametrize("D, softcap", [(8, None), (656, None), (64, 30.0)])
def test_flash_refuses(D, softcap):
    """Too narrow, too wide, capped: refused when asked for, and pt_loss takes the chunked form."""
    case = make(MIXED, 9, D=D, dtype=torch.float32)
    with pytest.raises(ValueError, match="chunked form"):
        kernels.pt_loss_flash(*case, softcap=softcap)
    got, exact = kernels.pt_loss(*case, softcap=softcap), pt_loss(*case, softcap=softcap)
    for ours, wanted in zip(got, exact, strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-6)


def test_pt_loss_chooses(monkeypatch):
    called = []
    for name in ("pt_loss_flash", "pt_loss_chunked"):
        monkeypatch.setattr(kernels, name, lambda *args, name=name, **options: called.append(name))
    kernels.pt_loss(*make(MIXED, 9, D=64))
    kernels.pt_loss(*make(MIXED, 9, D=64), softcap=30.0)
    assert called == ["pt_loss_flash", "pt_loss_chunked"]


# ---- --loss ----

def test_choose_loss(monkeypatch):
    assert train.choose_loss("auto", "cpu") == ("chunked", losses.pt_loss_chunked)
    assert train.choose_loss("auto", "cuda") == ("triton", kernels.pt_loss)
    assert train.choose_loss("eager", "cuda") == ("eager", losses.pt_loss)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(InputError, match="need a GPU, --loss triton on cpu"):
        train.choose_loss("triton", "cpu")
    monkeypatch.setitem(sys.modules, "kernels.head", None)  # as an import of it without triton
    for name in ("auto", "triton"):
        with pytest.raises(InputError, match=r"triton is not installed \(.*\), --loss triton"):
            train.choose_loss(name, "cuda")


def test_train_with_triton(tiny_folder, tmp_path):
    """The same curve as eager's, from the same seed."""
    write_jsonl(tmp_path / "data.jsonl", [
        {"prompt": "My tea is cold.", "positive": "Shall we warm it?", "toxic": "Who cares."},
        {"prompt": "It rains.", "positive": "Take a coat.", "toxic": None}])
    curves = []
    for loss in ("eager", "triton"):
        out = tmp_path / loss
        train.train(
            model=str(tiny_folder), data=str(tmp_path / "data.jsonl"), out=str(out), penalty=0.4,
            mask="first-mismatch", objective="pt", rank=4, alpha=8, targets=None, epochs=3, lr=1e-2,
            batch_tokens=64, accumulate=1, gradient_checkpointing=False, warmup=0.0, clip=1.0,
            loss=loss, format=None, exclude=None, device=DEVICE, dtype="float32", seed=0,
            fresh=False)
        assert json.loads((out / "train_config.json").read_text())["settings"]["loss"] == loss
        curves.append([row["loss"] for _, row in read_jsonl(out / "metrics.jsonl")])
    assert curves[0] == pytest.approx(curves[1], rel=1e-4) and curves[0][-1] < curves[0][0]


# ---- for a GPU ----

SPILLS = {80: 256, 89: 256, 90: 64, 100: 256}  # bytes a thread, of what `fits` lets through there
WIDE_SPILLS = 512  # D = 640, the widest, on an H100
TENSOR_CORES = {80: "mma.sync", 89: "mma.sync", 90: "wgmma", 100: "tcgen05"}


@pytest.mark.slow
def test_compiles_for_gpus():
    """What the interpreter cannot see: types, layouts, shared memory, spills, tensor cores."""
    script = Path(__file__).with_name("compile_kernels.py")
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-2000:]
    facts = [json.loads(line) for line in done.stdout.splitlines()]
    assert sum(kernel["chip"] == 90 for kernel in facts) == 8
    for kernel in facts:
        chip, rows, sweep = (kernel["chip"], kernel["kernel"].startswith("row"),
                             kernel["kernel"].startswith("flash head, D"))
        wide = kernel["kernel"] == "flash head, D 640"
        assert kernel["spills"] <= (WIDE_SPILLS if wide else SPILLS[chip]), kernel
        assert kernel["shared"] <= kernel["room"], kernel
        assert kernel["tensor cores"] == (TENSOR_CORES[chip] if sweep else None), kernel
        # Both passes over the logits load four at a time.
        assert not rows or (kernel["vector loads"] >= 8 and kernel["scalar loads"] <= 8), kernel


@pytest.mark.parametrize("chip, kilobytes, bf16, fp32", [
    ((7, 5), 64, 0, 0), ((8, 0), 163, 512, 64), ((8, 9), 99, 384, 64), ((9, 0), 227, 640, 64),
    ((10, 0), 227, 576, 64), ((12, 0), 99, 256, 64)])
def test_fits_by_gpu(monkeypatch, chip, kilobytes, bf16, fp32):
    """The widest hidden size that each takes, of bf16 and of fp32; 0 for none."""
    gpu = SimpleNamespace(major=chip[0], minor=chip[1],
                          shared_memory_per_block_optin=kilobytes * 1024)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: gpu)
    monkeypatch.setattr("kernels.flash_head.BLOCK_M", 64)

    def widest(size):
        def hidden(D):
            return SimpleNamespace(shape=(7, D), device=torch.device("cuda"),
                                   element_size=lambda: size)
        return max((D for D in range(8, 700, 8) if kernels.fits(hidden(D))), default=0)

    assert (widest(2), widest(4)) == (bf16, fp32)


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="needs a CUDA device")
@pytest.mark.parametrize("D, V", [(576, 49152), (640, 32003), (64, 5003), (4096, 32000)])
@pytest.mark.parametrize("form", TRITON_FORMS)
def test_at_full_size(form, D, V):
    """The blocks and chunks that are used, bf16: far below eager's own error, and losses from fp32
    logits, which bf16 ones would miss by far."""
    case = make(MIXED * 300, V, D=D, dtype=torch.bfloat16)
    if form == "triton flash" and not kernels.fits(case[1][:1]):
        pytest.skip("not a size for the flash head")
    exact = [torch.cat([x.reshape(-1) for x in parts]) for parts in zip(
        *(grad_of(pt_loss_naive, doubled([case[0][i:i + 64], case[1], *(x[i:i + 64]
                                                                    for x in case[2:])]))[1:]
          for i in range(0, len(case[0]), 64)), strict=True)]
    ours, eager = grad_of(FORMS[form], case)[1:], grad_of(pt_loss, case)[1:]
    assert error(ours[0], exact[0]) < 1e-4
    assert error(ours[1].reshape(-1), exact[1]) <= error(eager[1].reshape(-1), exact[1]) / 3 + 2**-9
