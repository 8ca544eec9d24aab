"""Residual dropout: entries of every write are dropped while training."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from residuum.model.config import ModelConfig
from residuum.model.dropout import Dropout
from residuum.model.residual.added import Added
from residuum.model.residual.base import Stream, register


@register("residual-dropout")
class ResidualDropout(Added):
    """y = x + m ⊙ f(norm(x)) / (1 − p), m ~ Bernoulli(1 − p) for each entry; p = residual_drop or 0.1. Else pre-norm.

    dL/dx = g + (J_f J_norm)ᵀ (m ⊙ g) / (1 − p): what was dropped receives nothing. The skip is never dropped.

    Source: Vaswani et al. 2017, section 5.4, https://arxiv.org/abs/1706.03762.
    """

    use = "Against over-fitting, where the data are few."
    settings = ("residual_drop",)

    def __init__(self, config: ModelConfig, place: int) -> None:
        super().__init__(config, place)
        self.dropout = Dropout(0.1 if config.residual_drop is None else config.residual_drop)

    def add(self, x: Stream, write: Tensor) -> Stream:
        return x + self.dropout(write)

    def explicit_add(self, x: Stream, write: Tensor) -> tuple[Stream, Any]:
        write, kept = self.dropout.explicit_forward(write)
        return x + write, kept

    def explicit_add_backward(self, dy: Stream, saved: Any) -> Tensor:
        return self.dropout.explicit_backward(dy, saved)
