"""The feed-forward of a block."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from residuum.model.config import ModelConfig
from residuum.model.linear import Linear


def squared_relu(x: Tensor) -> Tensor:
    """max(x, 0)². Source: So et al. 2021, https://arxiv.org/abs/2109.08668."""
    return F.relu(x).square()


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "relu": F.relu, "squared_relu": squared_relu}


class FeedForward(nn.Module):
    """y = act(x W_upᵀ) W_downᵀ. Shapes: W_up [d_ff, d_model], W_down [d_model, d_ff]."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.up = Linear(config.d_model, config.ff_width, config.bias, config.init_std)
        self.down = Linear(config.ff_width, config.d_model, config.bias, config.write_std)
        self.activation = ACTIVATIONS[config.activation]
        self.dropout = config.dropout

    def forward(self, x: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows d_model"]:
        return F.dropout(self.down(self.activation(self.up(x))), self.dropout, self.training)


class SwiGLU(nn.Module):
    """y = (silu(x W_gateᵀ) ⊙ x W_upᵀ) W_downᵀ. Source: Shazeer 2020, https://arxiv.org/abs/2002.05202."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate = Linear(config.d_model, config.ff_width, config.bias, config.init_std)
        self.up = Linear(config.d_model, config.ff_width, config.bias, config.init_std)
        self.down = Linear(config.ff_width, config.d_model, config.bias, config.write_std)
        self.dropout = config.dropout

    def forward(self, x: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows d_model"]:
        return F.dropout(self.down(F.silu(self.gate(x)) * self.up(x)), self.dropout, self.training)


def make_feedforward(config: ModelConfig) -> FeedForward | SwiGLU:
    """The feed-forward that `config.activation` names."""
    return SwiGLU(config) if config.activation == "swiglu" else FeedForward(config)
