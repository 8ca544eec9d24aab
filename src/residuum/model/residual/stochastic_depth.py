"""Stochastic depth: whole writes are dropped while training, the later ones more often."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from residuum.model.config import ModelConfig
from residuum.model.residual.added import Added
from residuum.model.residual.base import Stream, register


@register("stochastic-depth")
class StochasticDepth(Added):
    """y = x + b f(norm(x)) / (1 − p), b ~ Bernoulli(1 − p) for each sequence while training. Else pre-norm.

    dL/dx = g + (J_f J_norm)ᵀ b g / (1 − p). p = p_L l / n_layers in layer l (from 1), p_L = residual_drop or 0.1; both
    connections of a layer have the same p, and draw apart.

    A dropped row is computed, and multiplied by 0: with p so small, leaving it out would save p_L / 2 of the branches'
    time, and shapes would change with the draw, which no compiled pass can follow.

    Source: Huang et al. 2016, https://arxiv.org/abs/1603.09382; for Transformers Fan et al. 2019 (LayerDrop, which
    drops whole blocks of a whole batch), https://arxiv.org/abs/1909.11556.
    """

    use = "To regularise a deep model, or to train one whose layers can be left out afterwards."
    settings = ("residual_drop",)

    def __init__(self, config: ModelConfig, place: int) -> None:
        super().__init__(config, place)
        last = 0.1 if config.residual_drop is None else config.residual_drop
        self.p = last * (place // 2 + 1) / config.n_layers

    def add(self, x: Stream, write: Tensor) -> Stream:
        return self.explicit_add(x, write)[0]

    def explicit_add(self, x: Stream, write: Tensor) -> tuple[Stream, Any]:
        if not self.training or self.p == 0:
            return x + write, None
        kept = torch.empty(len(x), 1, 1, dtype=x.dtype, device=x.device).bernoulli_(1 - self.p).div_(1 - self.p)
        return torch.addcmul(x, write, kept), kept

    def explicit_add_backward(self, dy: Stream, saved: Any) -> Tensor:
        return dy if saved is None else dy * saved
