"""The head's form for a size is chosen here and nowhere else. Importing this needs Triton."""

from kernels.chunked import pt_loss_chunked
from kernels.flash_head import fits, pt_loss_flash


def pt_loss(hidden, head, targets, kind, weight, *, softcap: float | None = None):
    """`losses.pt_loss` for a frozen head: the flash head where it fits, else the chunked form."""
    form = pt_loss_flash if fits(hidden, softcap) else pt_loss_chunked
    return form(hidden, head, targets, kind, weight, softcap=softcap)
