"""A block: attention, then feed-forward, each joined to the stream by a residual connection."""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor, nn

from residuum.model.attention import Attention, LayerCache
from residuum.model.config import ModelConfig
from residuum.model.feedforward import make_feedforward
from residuum.model.residual import residual_named


class Block(nn.Module):
    """The `layer`-th block (from 0). Shapes: x [batch, pos, d_model] in and out."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        residual = residual_named(config.residual)
        self.attn_residual = residual(config, layer)
        self.attn = Attention(config)
        self.ff_residual = residual(config, layer)
        self.ff = make_feedforward(config)

    def forward(
        self,
        x: Float[Tensor, "batch pos d_model"],
        angles: tuple[Tensor, Tensor] | None = None,
        mask: Bool[Tensor, "batch pos"] | None = None,
        cache: LayerCache | None = None,
    ) -> Float[Tensor, "batch pos d_model"]:
        x = self.attn_residual(x, self.attn, angles, mask, cache)
        return self.ff_residual(x, self.ff)
