"""The PT-ALIGN loss on a GPU: from the paper's equation to the tile, in one page.

**The equation.** A scored token y with logits z has p = softmax(z)_y. The paper wants -log p for
the harmless answer (MLE) and -log(1 - p) for the toxic one (UT, unlikelihood). Typed like that, UT
fails where it matters: where the model is sure of a toxic token, p rounds to 1 and the loss is
infinite; clamping 1 - p keeps it finite and makes its gradient zero.

**The log-odds form.** Let  a = z_y - logsumexp_{j≠y} z_j.  Then exp(a) is the odds p/(1 - p), so
p = σ(a), 1 - p = σ(-a), and with s = +1 for MLE and s = -1 for UT both losses are one function:

    loss = -logσ(s·a) = softplus(-s·a)

No cancellation is left, since y itself is not in the sum. One sign tells the two apart, so both
kinds of row share a launch without a branch; s = 0 marks a row to ignore.

**The gradient.** With w the row's weight (1/|P|, or λ/|P|) the chain rule has two links:

    dL/da  = -s·w·σ(-s·a) =: c         one number a row, |c| ≤ w
    da/dz  = e_y - q                   q = softmax over j ≠ y
    dL/dz  = c·(e_y - q)               (N, V): as large as the logits
    dL/dh  = c·(W_y - Σ_j q_j W_j)     (N, D): what training wants, W frozen

So the gradient need not wait for the backward pass: c follows from the row's own logits, and dL/dh
is finished in the forward pass. That makes two matrix products (h·Wᵀ and q·W), where a fused cross
entropy that recomputes its logits in the backward pass takes three.

**The chunk** (`chunked.py`, `rows.py`). Take as many rows as a byte budget allows. cuBLAS gives
their logits in fp32. One program a row reads them once for the logsumexp and once for c·(e_y - q),
which it writes in the head's dtype. cuBLAS multiplies that with W. Memory is one chunk.

**The tile** (`flash_head.py`). When D is small the logits' traffic outweighs the products. But
Σ_j q_j W_j is attention with query h and keys and values W, and c multiplies only at the end. So a
program keeps BLOCK_M rows of h and of the sum on chip, walks over W in tiles of BLOCK_N rows, and
uses each twice: as keys (z = h·Wᵀ) and, after the online softmax, as values. No logits in memory.

Which toxic tokens get a row at all, m_t, is settled before the head (`losses.unlikelihood_mask`):
what has m = 0 never reaches it and costs nothing.

`flash_head.py` and `rows.py` go from the device kernel up to its launcher; `chunked.py` has no
kernel of its own, it puts products around that of `rows.py`; `head.py` chooses. `pt_loss_flash` and
`pt_loss_chunked` take the arguments of their eager twin `losses.pt_loss`, and
`losses.GradientInForward` is the autograd Function of both. Without a GPU they run under
TRITON_INTERPRET=1, for tests only.

The other files are what plain torch does fast, and need no Triton: `attention.py` for training,
`prefix.py` for rows that continue one prefix, `packed.py` for products of few rows on a CPU,
`recorded.py` for what a GPU replays, and `nucleus.py` for draws.
"""
