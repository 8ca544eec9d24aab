"""Post-norm: the original Transformer's, which normalises the stream after every addition."""

from __future__ import annotations

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor

from residuum.model.config import ModelConfig
from residuum.model.norm import make_norm
from residuum.model.residual.base import Residual


class Post(Residual):
    """y = norm(x + f(x)). Every gradient passes the norm's Jacobian: dL/dx = (1 + J_f)ᵀ J_normᵀ g.

    Source: Vaswani et al. 2017, https://arxiv.org/abs/1706.03762.
    """

    name = "post"
    final_norm = False

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__(config, layer)
        self.norm = make_norm(config)

    def forward(
        self, x: Float[Tensor, "batch pos d_model"], branch: Callable[..., Tensor], *args: object
    ) -> Float[Tensor, "batch pos d_model"]:
        return self.norm(x + branch(x, *args))
