"""A block: attention, then feed-forward, each joined to the stream by a residual connection."""

from __future__ import annotations

from jaxtyping import Bool, Float
from torch import Tensor, nn

from residuum.model.attention import Attention, LayerCache
from residuum.model.config import ModelConfig
from residuum.model.feedforward import make_feedforward
from residuum.model.gradient import Saved
from residuum.model.residual import Receiver, residual_named


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

    def explicit_forward(
        self,
        x: Float[Tensor, "batch pos d_model"],
        angles: tuple[Tensor, Tensor] | None = None,
        mask: Bool[Tensor, "batch pos"] | None = None,
    ) -> tuple[Float[Tensor, "batch pos d_model"], Saved]:
        x, of_attn = self.attn_residual.explicit_forward(x, self.attn, angles, mask)
        x, of_ff = self.ff_residual.explicit_forward(x, self.ff)
        return x, (of_attn, of_ff)

    def explicit_backward(
        self, dy: Float[Tensor, "batch pos d_model"], saved: Saved, parts: Receiver | None = None
    ) -> Float[Tensor, "batch pos d_model"]:
        """`parts` receives both parts of the gradient at each connection, the last connection's first."""
        of_attn, of_ff = saved
        del saved  # so that what each connection kept is freed as soon as it is used
        dy = self.ff_residual.explicit_backward(dy, of_ff, parts)
        del of_ff
        return self.attn_residual.explicit_backward(dy, of_attn, parts)
