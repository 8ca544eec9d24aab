"""Dropout."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class Dropout(nn.Module):
    """y = x ⊙ m / (1 − p) while training, m ~ Bernoulli(1 − p); y = x otherwise.

    Source: Srivastava et al. 2014, https://jmlr.org/papers/v15/srivastava14a.html.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
        return F.dropout(x, self.p, self.training)

    def explicit_forward(self, x: Float[Tensor, "*any"]) -> tuple[Float[Tensor, "*any"], Tensor | None]:
        """Keeps the mask as one byte an entry; None where nothing is dropped. Draws what `forward` draws."""
        if not self.training or self.p == 0:
            return x, None
        kept = torch.empty_like(x).bernoulli_(1 - self.p)
        return x * kept.div_(1 - self.p), kept != 0

    def explicit_backward(self, dy: Float[Tensor, "*any"], kept: Tensor | None) -> Float[Tensor, "*any"]:
        """dx = dy ⊙ m / (1 − p): what was dropped had no effect, what was kept was scaled."""
        return dy if kept is None else dy * kept / (1 - self.p)
