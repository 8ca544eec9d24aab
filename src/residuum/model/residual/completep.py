"""CompleteP: a model made deeper keeps the learning rate that was best for a shallow one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from residuum.errors import InputError
from residuum.model.config import ModelConfig
from residuum.model.residual.added import Scaled
from residuum.model.residual.base import Optim, register
from residuum.model.residual.plain import plain

if TYPE_CHECKING:
    from residuum.model.transformer import Transformer

BASE_LAYERS = 2.0
"""Depth of the paper's own small model."""


@register("completep")
class CompleteP(Scaled):
    """y = x + f(norm(x)) / m, m = n_layers / base, base = residual_scale or 2: the depth the learning rate is best for.

    dL/dx = g + (J_f J_norm)ᵀ g / m. In the blocks Adam's ε becomes ε / m, as their gradients do; learning rates stay,
    m^(α−1) = 1 for the paper's α = 1; first weights are plain, all of one variance whatever the depth.

    This is the paper's rule for depth. Its rule for width is μP's, and concerns what no residual connection sees (the
    read-out, 1/d_head in attention): the base width is taken to be the model's own, where every factor of it is 1.

    Source: Dey et al. 2025, https://arxiv.org/abs/2505.01618.
    """

    use = "To tune the learning rate on a shallow model, of residual_scale layers, and keep it for a deep one."
    settings = ("residual_scale",)

    def __init__(self, config: ModelConfig, place: int) -> None:
        super().__init__(config, place)
        self.scale = _of_base(config)

    @classmethod
    def initialise(cls, model: Transformer) -> None:
        plain(model)

    @classmethod
    def optim(cls, model: Transformer) -> dict[str, Optim]:
        eps = _of_base(model.config)
        return {name: Optim(eps=eps) for name, _ in model.named_parameters() if name.startswith("blocks.")}


def _of_base(config: ModelConfig) -> float:
    """1 / m."""
    base = BASE_LAYERS if config.residual_scale is None else config.residual_scale
    if not base > 0:
        raise InputError(
            f"model.residual_scale is {base}: give completep a number of layers above 0, those of the model "
            "that the learning rate was found with"
        )
    return base / config.n_layers
