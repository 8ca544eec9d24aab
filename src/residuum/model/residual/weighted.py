"""Weighted: every write is scaled by the same fixed number."""

from __future__ import annotations

from typing import TYPE_CHECKING

from residuum.model.config import ModelConfig
from residuum.model.residual.added import Scaled
from residuum.model.residual.base import register
from residuum.model.residual.plain import plain

if TYPE_CHECKING:
    from residuum.model.transformer import Transformer


@register("weighted")
class Weighted(Scaled):
    """y = x + α f(norm(x)), α = 1/√n with n = 2 n_layers connections, or residual_scale; α = 1 is pre-norm.

    dL/dx = g + α (J_f J_norm)ᵀ g. First weights are plain: n writes of variance v, each scaled by 1/√n, add v to the
    stream whatever n is, so at the start this is the very function that GPT-2's first weights give, which are divided
    by √n where here the write is. In training it is another: a step of Adam, as long here as there, moves a write by α.

    Source: scaled sums, Hanin, Rolnick 2018, https://arxiv.org/abs/1803.01719.
    """

    use = "To measure what the strength of the branches does, all else equal; α = 1 is pre-norm."
    settings = ("residual_scale",)

    def __init__(self, config: ModelConfig, place: int) -> None:
        super().__init__(config, place)
        self.scale = self.n_places**-0.5 if config.residual_scale is None else config.residual_scale

    @classmethod
    def initialise(cls, model: Transformer) -> None:
        plain(model)
