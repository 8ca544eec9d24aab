"""The engine that PyTorch is: it records the forward and walks the record backward."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from residuum.model import ModelConfig, Transformer

if TYPE_CHECKING:
    from residuum.engine.engine import Batch


class Autograd:
    """`Transformer.loss`, then `.backward()`. Runs every configuration."""

    def check(self, config: ModelConfig) -> None:
        """There is nothing that it cannot run."""

    def loss_and_grads(self, model: Transformer, batch: Batch, scale: float = 1.0) -> Float[Tensor, ""]:
        """The loss of (tokens, targets); `scale` times its gradient is added to every parameter's `.grad`."""
        loss = model.loss(*batch)
        with torch.autocast(loss.device.type, enabled=False):  # backward, each product has its forward's type already
            (loss * scale).backward()
        return loss.detach()
