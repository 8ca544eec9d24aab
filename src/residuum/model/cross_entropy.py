"""The loss: cross-entropy of the head's scores."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from residuum.model.linear import Linear
from residuum.model.precision import at_least_float32

NOT_COUNTED = -100
"""A target that counts for nothing."""

CHUNK = 2**18
"""Scores that exist at a time on a CPU, unless that were fewer than `LEAST_ROWS` rows of them."""
CHUNK_ON_GPU = 2**26
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
    if targets.shape != x.shape[:-1]:
        raise ValueError(f"targets of shape {tuple(targets.shape)} for tokens of shape {tuple(x.shape[:-1])}")
    wanted = targets.flatten().unsqueeze(-1)
    counts = wanted != NOT_COUNTED
    # Where no target counts, the loss is 0/0 and the gradients are zero, as in PyTorch.
    weights = counts.to(torch.promote_types(x.dtype, torch.float32)) / counts.sum().clamp(min=1)
    size = max((CHUNK if x.device.type == "cpu" else CHUNK_ON_GPU) // head.weight.shape[0], LEAST_ROWS)
    loss, dx = torch.zeros((), device=x.device), []
    chunks = (tensor.split(size) for tensor in (x.flatten(0, -2), wanted.where(counts, 0), weights))
    for rows, target, weight in zip(*chunks, strict=True):
        scores, _ = head.explicit_forward(rows)
        dtype = scores.dtype
        scores = at_least_float32(scores)
        # In place, for no rows are wider than these: scores, then their exponentials, then their gradient.
        scores -= scores.amax(-1, keepdim=True)
        score = scores.gather(-1, target)
        total = scores.exp_().sum(-1, keepdim=True)
        loss = loss + ((total.log() - score) * weight).sum()
        scores.mul_(weight / total).scatter_add_(-1, target, -weight)
        if scale != 1:
            scores *= scale
        dx.append(head.explicit_backward(scores.to(dtype), rows))
    return loss / counts.any(), torch.cat(dx).view_as(x)
