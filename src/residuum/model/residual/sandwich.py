"""Sandwich: a norm before the branch and another after it, so that every write has the same size."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from residuum.model.config import ModelConfig
from residuum.model.norm import make_norm
from residuum.model.residual.added import Added
from residuum.model.residual.base import Stream, register


@register("sandwich")
class Sandwich(Added):
    """y = x + norm2(f(norm(x))): however large f's weights grow, the write is as large as norm2's gain says.

    dL/dx = g + (J_norm2 J_f J_norm)ᵀ g. The gain is 1 at first, so each write has variance 1, and the stream's grows by
    one with every connection. Peri-LN's norm of the embedding, which its authors leave open, is not there.

    Source: Ding et al. 2021 (Sandwich-LN), https://arxiv.org/abs/2105.13290; Kim et al. 2025 (Peri-LN),
    https://arxiv.org/abs/2502.02732.
    """

    use = "Where activations grow too large, in half precision or at high learning rates."

    def __init__(self, config: ModelConfig, place: int) -> None:
        super().__init__(config, place)
        self.norm2 = make_norm(config)

    def add(self, x: Stream, write: Tensor) -> Stream:
        return x + self.norm2(write)

    def explicit_add(self, x: Stream, write: Tensor) -> tuple[Stream, Any]:
        write, of_norm2 = self.norm2.explicit_forward(write)
        return x + write, of_norm2

    def explicit_add_backward(self, dy: Stream, saved: Any) -> Tensor:
        return self.norm2.explicit_backward(dy, saved)
