"""The PT-ALIGN loss on a GPU: from the paper's equation to the tile, in one page.

**The equation.** A scored token y with logits z has p = softmax(z)_y. The paper wants -log p for
the harmless answer (MLE) and -log(1 - p) for the toxic one (UT, unlikelihood). Typed like that, UT
is infinite where it matters: where the model is sure of a toxic token, p rounds to 1. Clamping
1 - p makes the gradient zero there. So both are written in the log-odds (losses.py)
a = z_y - logsumexp_{j≠y} z_j,  and with s = +1 for MLE and s = -1 for UT they are one function:

    loss = -logσ(s·a) = softplus(-s·a)

One sign tells the kinds of row apart, so they share a launch without a branch; s = 0 is ignored.

**The gradient** (`losses.GradientInForward`). With w the row's weight (1/|P|, or λ/|P|):

    dL/da  = -s·w·σ(-s·a) =: c         one number a row, |c| ≤ w
    dL/dz  = c·(e_y - q)               (N, V): as large as the logits; q is softmax over j ≠ y
    dL/dh  = c·(W_y - Σ_j q_j W_j)     (N, D): what training wants, W frozen

c follows from the row's own logits, so dL/dh is finished in the forward pass. That makes two matrix
products (h·Wᵀ and q·W), where a fused cross entropy that recomputes its logits takes three.

**The chunk** (`chunked.py`, `rows.py`). Take as many rows as a byte budget allows. cuBLAS gives
their logits in fp32. One program a row reads them once for the logsumexp and once for c·(e_y - q),
which it writes in the head's dtype. cuBLAS multiplies that with W. Memory is one chunk.

**The tile** (`flash_head.py`). When D is small the logits' traffic outweighs the products. But
Σ_j q_j W_j is attention with query h and keys and values W, and c multiplies only at the end. So a
program keeps BLOCK_M rows of h and of the sum on chip, walks over W in tiles of BLOCK_N rows, and
uses each twice: as keys (z = h·Wᵀ) and, after the online softmax, as values. No logits in memory.

`head.py` chooses between the two, which take the arguments of their eager twin `losses.pt_loss`.
Without a GPU they run under TRITON_INTERPRET=1, for tests only. A token with m_t = 0 never gets
here, and costs nothing. The other files are plain torch: attention.py (training), prefix.py (rows
behind one prefix), packed.py (few rows on a CPU), recorded.py (CUDA graphs), nucleus.py (draws)."""
