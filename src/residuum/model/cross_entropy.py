"""The loss: cross-entropy of the head's scores."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from residuum.model.linear import Linear

NOT_COUNTED = -100
"""A target that counts for nothing."""

CHUNK = 2**18
"""Scores that exist at a time, unless that were fewer than `LEAST_ROWS` rows of them."""
LEAST_ROWS = 256


def cross_entropy(scores: Float[Tensor, "batch pos vocab"], targets: Int[Tensor, "batch pos"]) -> Float[Tensor, ""]:
    """−log softmax(scores)[target], the mean over targets that count, in nats per token."""
    return F.cross_entropy(at_least_float32(scores.flatten(0, 1)), targets.flatten(), ignore_index=NOT_COUNTED)


def explicit_cross_entropy(
    x: Float[Tensor, "batch pos d_model"], head: Linear, targets: Int[Tensor, "batch pos"], scale: float = 1.0
) -> tuple[Float[Tensor, ""], Float[Tensor, "batch pos d_model"]]:
    """Loss of scores = x Wᵀ, and `scale` times its gradients: dx is returned, dW added to the head's `.grad`.

    d loss / d scores = (softmax(scores) − onehot(target)) / n, for n targets that count. A loss is the last thing
    computed, so its gradient waits for nothing: forward and backward are one, some rows at a time, and the scores of
    all places, vocab numbers each, never exist together.
    """
    rows, wanted = x.flatten(0, -2), targets.flatten().unsqueeze(-1)
    counts = wanted != NOT_COUNTED
    # Where no target counts, the loss is 0/0 and the gradients are zero, as in PyTorch.
    weights = counts.to(torch.promote_types(x.dtype, torch.float32)) / counts.sum().clamp(min=1)
    wanted = wanted.clamp(min=0)
    size = max(CHUNK // head.weight.shape[0], LEAST_ROWS)
    loss, dx = torch.zeros((), device=x.device), torch.empty_like(rows)
    for start in range(0, len(rows), size):
        part = slice(start, start + size)
        target, weight = wanted[part], weights[part]
        scores, _ = head.explicit_forward(rows[part])
        logs = at_least_float32(scores).log_softmax(-1)
        loss = loss - (logs.gather(-1, target) * weight).sum()
        dscores = logs.exp_().scatter_add_(-1, target, logs.new_full((), -1.0).expand_as(target)).mul_(weight * scale)
        dx[part] = head.explicit_backward(dscores.to(scores.dtype), rows[part])
    return loss / counts.any(), dx.view_as(x)


def at_least_float32(x: Tensor) -> Tensor:
    """A sum over a vocabulary in half precision would lose its small terms."""
    return x.float() if x.itemsize < 4 else x
