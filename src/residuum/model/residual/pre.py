"""Pre-norm: the branch reads a normalised copy, and the stream itself is never touched."""

from __future__ import annotations

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor

from residuum.model.config import ModelConfig
from residuum.model.norm import make_norm
from residuum.model.residual.base import Residual


class Pre(Residual):
    """y = x + f(norm(x)). The gradient passes the addition as it is: dL/dx = g + (J_f J_norm)ᵀ g.

    Source: Xiong et al. 2020, https://arxiv.org/abs/2002.04745.
    """

    name = "pre"
    final_norm = True

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__(config, layer)
        self.norm = make_norm(config)

    def forward(
        self, x: Float[Tensor, "batch pos d_model"], branch: Callable[..., Tensor], *args: object
    ) -> Float[Tensor, "batch pos d_model"]:
        return x + branch(self.norm(x), *args)
