"""LayerScale: every entry of a write has a learned scale, almost 0 at the start."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from residuum.model.config import ModelConfig
from residuum.model.gradient import accumulate
from residuum.model.precision import at_least_float32
from residuum.model.residual.added import Added
from residuum.model.residual.base import Stream, register
from residuum.model.residual.plain import plain

if TYPE_CHECKING:
    from residuum.model.transformer import Transformer


@register("layerscale")
class LayerScale(Added):
    """y = x + λ ⊙ f(norm(x)), λ [d_model] learned; at first 0.1 up to 18 layers, 1e-5 up to 24, 1e-6 beyond.

    dL/dx = g + (J_f J_norm)ᵀ (λ ⊙ g), dL/dλ = Σ g ⊙ f. residual_scale is λ's first value, where given; the branches'
    first weights are plain, so that at the start the stream is nearly the identity.

    Source: Touvron et al. 2021, https://arxiv.org/abs/2103.17239.
    """

    use = "For very deep models, where each channel is to open as fast as it needs."
    settings = ("residual_scale",)

    def __init__(self, config: ModelConfig, place: int) -> None:
        super().__init__(config, place)
        first = _first(config.n_layers) if config.residual_scale is None else config.residual_scale
        self.scale = nn.Parameter(torch.full((config.d_model,), first))

    @classmethod
    def initialise(cls, model: Transformer) -> None:
        plain(model)

    def add(self, x: Stream, write: Tensor) -> Stream:
        return torch.addcmul(x, write, self.scale)

    def explicit_add(self, x: Stream, write: Tensor) -> tuple[Stream, Any]:
        return self.add(x, write), write

    def explicit_add_backward(self, dy: Stream, saved: Any) -> Tensor:
        write = saved
        accumulate(self.scale, (at_least_float32(dy) * write).flatten(0, -2).sum(0))
        return dy * self.scale


def _first(n_layers: int) -> float:
    if n_layers <= 18:
        return 0.1
    return 1e-5 if n_layers <= 24 else 1e-6
