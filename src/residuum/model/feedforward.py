"""The feed-forward of a block."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from residuum.model.config import ModelConfig
from residuum.model.dropout import Dropout
from residuum.model.experts import MixtureOfExperts
from residuum.model.gradient import Saved
from residuum.model.linear import Linear, make_linear, read_once

CHUNK = 2**18
"""Numbers of a kind that the explicit pair takes at a time on a CPU, unless they were fewer than `LEAST_ROWS` rows: few
enough to stay in the cache, and rows enough for the matrix product."""
LEAST_ROWS = 256


def squared_relu(x: Tensor) -> Tensor:
    """max(x, 0)². Source: So et al. 2021, https://arxiv.org/abs/2109.08668."""
    return F.relu(x).square()


class Activation(NamedTuple):
    """A non-linearity and its gradient: `backward(dy, x)` = dy ⊙ f′(x)."""

    forward: Callable[[Tensor], Tensor]
    backward: Callable[[Tensor, Tensor], Tensor]


def gelu_backward(dy: Tensor, x: Tensor) -> Tensor:
    """dy ⊙ (Φ(x) + x φ(x)), the product rule on x Φ(x); Φ and φ are the normal distribution and its density."""
    return torch.ops.aten.gelu_backward(dy, x)


def relu_backward(dy: Tensor, x: Tensor) -> Tensor:
    """dy where x > 0, else 0."""
    return torch.ops.aten.threshold_backward(dy, x, 0)


def squared_relu_backward(dy: Tensor, x: Tensor) -> Tensor:
    """dy ⊙ 2 max(x, 0)."""
    return F.relu(x).mul_(2).mul_(dy)


def silu_backward(dy: Tensor, x: Tensor) -> Tensor:
    """dy ⊙ σ(x) (1 + x (1 − σ(x))), the product rule on x σ(x) with σ′ = σ (1 − σ)."""
    return torch.ops.aten.silu_backward(dy, x)


ACTIVATIONS = {
    "gelu": Activation(F.gelu, gelu_backward),
    "relu": Activation(F.relu, relu_backward),
    "squared_relu": Activation(squared_relu, squared_relu_backward),
}
GATES = {
    "swiglu": Activation(F.silu, silu_backward),
    "squared_reglu": Activation(squared_relu, squared_relu_backward),
}


class FeedForward(nn.Module):
    """y = act(x W_upᵀ) W_downᵀ. Shapes: W_up [d_ff, d_model], W_down [d_model, d_ff]."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.up = make_linear(config, config.d_model, config.ff_width, config.init_std)
        self.down = make_linear(config, config.ff_width, config.d_model, config.write_std, inner=True)
        self.act = ACTIVATIONS[config.activation]
        self.dropout = Dropout(config.dropout)

    def forward(self, x: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows d_model"]:
        return self.dropout(self.down(self.act.forward(self.up(x))))

    def explicit_forward(self, x: Float[Tensor, "*rows d_model"]) -> tuple[Float[Tensor, "*rows d_model"], Saved]:
        """Keeps x and u = x W_upᵀ; act(u) is cheaper to compute again."""
        u, _ = self.up.explicit_forward(x)
        down = self.down.ready()
        y = by_rows(lambda u: down.explicit_forward(self.act.forward(u))[0], u)
        y, dropped = self.dropout.explicit_forward(y)
        return y, (x, u, dropped)

    def explicit_backward(self, dy: Float[Tensor, "*rows d_model"], saved: Saved) -> Float[Tensor, "*rows d_model"]:
        """From the end to the start: the write's gradient, through W_down, through act at u, through W_up."""
        x, u, dropped = saved
        dy = self.dropout.explicit_backward(dy, dropped)
        up, down = self.up.ready(), self.down.ready()

        def backward(dy: Tensor, u: Tensor, x: Tensor) -> Tensor:
            da = down.explicit_backward(dy, self.act.forward(u))
            du = self.act.backward(da, u)
            return up.explicit_backward(du, x)

        return by_rows(backward, dy, u, x)

    def value_path(self) -> tuple[list[Linear], list[Linear]]:
        return [self.up], [self.down]


class GatedFeedForward(nn.Module):
    """y = (act(x W_gateᵀ) ⊙ x W_upᵀ) W_downᵀ: with silu SwiGLU, with the squared relu what BitNet b1.58 2B4T has.

    Sources: Shazeer 2020, https://arxiv.org/abs/2002.05202; Ma et al. 2025, https://arxiv.org/abs/2504.12285.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate = make_linear(config, config.d_model, config.ff_width, config.init_std)
        self.up = make_linear(config, config.d_model, config.ff_width, config.init_std)
        self.down = make_linear(config, config.ff_width, config.d_model, config.write_std, inner=True)
        self.act = GATES[config.activation]
        self.dropout = Dropout(config.dropout)

    def forward(self, x: Float[Tensor, "*rows d_model"]) -> Float[Tensor, "*rows d_model"]:
        return self.dropout(self.down(self.act.forward(self.gate(x)) * self.up(x)))

    def explicit_forward(self, x: Float[Tensor, "*rows d_model"]) -> tuple[Float[Tensor, "*rows d_model"], Saved]:
        """Keeps x and both products with it."""
        read = read_once(x, self.gate, self.up)
        gate, up = self.gate.explicit_forward(read)[0], self.up.explicit_forward(read)[0]
        del read
        down = self.down.ready()
        y = by_rows(lambda gate, up: down.explicit_forward(self.act.forward(gate) * up)[0], gate, up)
        y, dropped = self.dropout.explicit_forward(y)
        return y, (x, gate, up, dropped)

    def explicit_backward(self, dy: Float[Tensor, "*rows d_model"], saved: Saved) -> Float[Tensor, "*rows d_model"]:
        """Each factor of the product receives the other times da; x receives the sum of what both maps give back."""
        x, gate, up, dropped = saved
        dy = self.dropout.explicit_backward(dy, dropped)
        to_gate, to_up, down = self.gate.ready(), self.up.ready(), self.down.ready()

        def backward(dy: Tensor, gate: Tensor, up: Tensor, x: Tensor) -> Tensor:
            share = self.act.forward(gate)
            da = down.explicit_backward(dy, share * up)
            dgate = self.act.backward(da * up, gate)
            read = read_once(x, self.gate, self.up)
            dx = to_gate.explicit_backward(dgate, read)
            return dx.add_(to_up.explicit_backward(da.mul_(share), read))

        return by_rows(backward, dy, gate, up, x)

    def value_path(self) -> tuple[list[Linear], list[Linear]]:
        return [self.up], [self.down]


def by_rows(function: Callable[..., Tensor], *tensors: Float[Tensor, "*rows _"]) -> Float[Tensor, "*rows out"]:
    """`function` of all rows, on a CPU some at a time: what lies between its input and its output never exists whole.

    A GPU, which wants few large products, takes all at once.
    """
    first = tensors[0]
    rows = [tensor.flatten(0, -2) for tensor in tensors]
    size = max(CHUNK // max(tensor.shape[-1] for tensor in tensors), LEAST_ROWS)
    if len(rows[0]) <= size or first.device.type != "cpu":
        y = function(*rows)
        return y.view(*first.shape[:-1], y.shape[-1])  # there may be no row, and then −1 could be any width
    y = torch.empty(0)
    for start in range(0, len(rows[0]), size):
        part = function(*(tensor[start : start + size] for tensor in rows))
        if not start:
            y = part.new_empty(len(rows[0]), part.shape[-1])
        y[start : start + size] = part
    return y.view(*first.shape[:-1], -1)


def make_feedforward(config: ModelConfig) -> FeedForward | GatedFeedForward | MixtureOfExperts:
    """The feed-forward that `config.activation` names, or a mixture of `config.n_experts` of them."""
    one = GatedFeedForward if config.gated else FeedForward
    if config.n_experts == 1:
        return one(config)
    whole = replace(config, dropout=0.0)  # the mixture drops from the sum
    return MixtureOfExperts(config, lambda: one(whole))
