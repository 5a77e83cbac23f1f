"""log p of given tokens, for judges and evaluations: no gradient, and few logits at a time."""

import torch
import torch.nn.functional as F

ROWS = 128  # of logits at a time: few enough that the allocator has their memory at hand


@torch.inference_mode()
def log_probs(head, hidden, targets):  # (N, D), (N,) -> (N,) fp32, nats
    """log p of each target where `head` reads the hidden state before it. In fp32 whatever the
    model's dtype: bf16 would round a sum by whole nats. As a cross-entropy, whose one pass over the
    logits is several times faster than logsumexp's."""
    return -torch.cat([F.cross_entropy(head(rows).float(), ids, reduction="none") for rows, ids in
                       zip(hidden.split(ROWS), targets.split(ROWS), strict=True)])
