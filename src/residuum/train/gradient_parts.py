"""How long both parts of the gradient are at each residual connection, where the engine has them in its hands."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from residuum.engine.explicit import Explicit
from residuum.model import Transformer
from residuum.model.residual import Parts
from residuum.stream.split import norm
from residuum.train.batches import Batch

Norms = list[list[float | None]]
"""Of each connection, in order of depth: [identity, branch]; None where the norm is not finite."""


def loss_and_parts(engine: Explicit, model: Transformer, batch: Batch, scale: float) -> tuple[Float[Tensor, ""], Norms]:
    """`engine.loss_and_grads`, and the Euclidean norms of the parts of the loss's own gradient, unscaled.

    It is the pass of the training itself: none is added, and the gradients are the same bit for bit.
    """
    loss, norms = engine.loss_and_grads(model, batch, scale, flow=_norms)
    rows = torch.stack(norms).tolist() if norms else []
    return loss, [[n / scale if math.isfinite(n) else None for n in row] for row in rows]


def _norms(parts: Parts) -> Float[Tensor, "2"]:
    return torch.stack((norm(parts.identity), norm(parts.branch)))
