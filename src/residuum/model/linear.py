"""The linear map, in floating point and ternary."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from residuum.model.config import ModelConfig
from residuum.model.gradient import Saved, accumulate, accumulate_product
from residuum.model.norm import RMSNorm
from residuum.model.product import product
from residuum.model.quantise import eight_bits, ternary


class Linear(nn.Module):
    """y = x Wᵀ + b, with W ~ N(0, std²) and b = 0 at the start; std = 0 starts W at zero.

    Shapes: x [..., d_in], W [d_out, d_in], b [d_out], y [..., d_out].
    """

    def __init__(self, d_in: int, d_out: int, bias: bool, std: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(d_out, d_in))
        self.bias = nn.Parameter(torch.zeros(d_out)) if bias else None
        nn.init.normal_(self.weight, std=std)

    def forward(self, x: Float[Tensor, "*rows d_in"]) -> Float[Tensor, "*rows d_out"]:
        return F.linear(x, self.weight, self.bias)

    def ready(self) -> Linear | ReadyBitLinear:
        """What has its pair and can be used many times: whatever must be done to W first is done once."""
        return self

    def explicit_forward(self, x: Float[Tensor, "*rows d_in"]) -> tuple[Float[Tensor, "*rows d_out"], Tensor]:
        """Keeps x, which the gradient of W needs."""
        if x.itemsize < 4 or torch.is_autocast_enabled(x.device.type):
            return self.forward(x), x  # which adds the bias before it rounds
        y = product(x, self.weight.t())
        return y if self.bias is None else y.add_(self.bias), x

    def explicit_backward(self, dy: Float[Tensor, "*rows d_out"], x: Tensor) -> Float[Tensor, "*rows d_in"]:
        """dW = Σ_rows dyᵀ x, db = Σ_rows dy, dx = dy W: every entry of y is a sum of products, so each factor
        receives the other one times dy."""
        rows = dy.flatten(0, -2)
        accumulate_product(self.weight, rows, x.flatten(0, -2))
        if self.bias is not None:
            accumulate(self.bias, rows.sum(0))
        return product(dy, self.weight).to(x.dtype)  # not what autocast multiplied in


class BitLinear(Linear):
    """y = x̂ Ŵᵀ + b with x̂ = norm(x) to eight bits a token and Ŵ to −1, 0, 1 times mean|W|: BitNet b1.58's linear map.

    `norm` is an rms-norm of its own, for what no norm has seen; without it x is taken as it is. Both factors are whole
    numbers times a step, so the product is one of whole numbers, exact, times both steps. W itself stays in floating
    point and learns by the straight-through estimator: dW = dyᵀ x̂, dx̂ = dy Ŵ. Shapes as `Linear`'s.
    Sources: Ma et al. 2024, https://arxiv.org/abs/2402.17764; Ma et al. 2025, https://arxiv.org/abs/2504.12285.
    """

    def __init__(self, d_in: int, d_out: int, bias: bool, std: float, norm: RMSNorm | None = None) -> None:
        super().__init__(d_in, d_out, bias, std)
        self.norm = norm

    def forward(self, x: Float[Tensor, "*rows d_in"]) -> Float[Tensor, "*rows d_out"]:
        levels, step = eight_bits(x if self.norm is None else self.norm(x))
        weight, weight_step = ternary(self.weight)
        y = F.linear(levels, weight)
        y = (y * (step * weight_step)).to(y.dtype)
        return y if self.bias is None else y + self.bias

    def ready(self) -> ReadyBitLinear:
        with torch.no_grad():
            return ReadyBitLinear(self, *ternary(self.weight))

    def read(self, x: Float[Tensor, "*rows d_in"] | Rounded) -> Rounded:
        """x̂, unless it is that already."""
        if isinstance(x, Rounded):
            return x
        of_norm: Saved = ()
        if self.norm is not None:
            x, of_norm = self.norm.explicit_forward(x)
        return Rounded(*eight_bits(x), x.dtype, of_norm)

    def explicit_forward(self, x: Float[Tensor, "*rows d_in"] | Rounded) -> tuple[Float[Tensor, "*rows d_out"], Any]:
        return self.ready().explicit_forward(x)

    def explicit_backward(
        self, dy: Float[Tensor, "*rows d_out"], x: Float[Tensor, "*rows d_in"] | Rounded
    ) -> Float[Tensor, "*rows d_in"]:
        return self.ready().explicit_backward(dy, x)


@dataclass
class Rounded:
    """x̂, in levels of a step a row, for the maps that read it; with x's type and what the norm before it kept."""

    levels: Float[Tensor, "*rows d_in"]
    step: Float[Tensor, "*rows 1"]
    dtype: torch.dtype
    of_norm: Saved

    @cached_property
    def values(self) -> Float[Tensor, "*rows d_in"]:
        """x̂ itself."""
        return self.levels * self.step


def read_once(x: Float[Tensor, "*rows d_in"], *maps: Linear) -> Any:
    """What the pairs of all `maps` take in the place of x: x̂, computed once, where each of them rounds x itself."""
    rounding = [part for part in maps if isinstance(part, BitLinear) and part.norm is None]
    return rounding[0].read(x) if len(rounding) == len(maps) else x


class ReadyBitLinear(NamedTuple):
    """A `BitLinear` and its ternary weights, for as long as they do not change. Its pair is the map's."""

    map: BitLinear
    weight: Float[Tensor, "d_out d_in"]
    weight_step: Float[Tensor, ""]

    def explicit_forward(self, x: Float[Tensor, "*rows d_in"] | Rounded) -> tuple[Float[Tensor, "*rows d_out"], Any]:
        """Keeps x: its levels are cheaper to compute again."""
        read = self.map.read(x)
        y = product(read.levels, self.weight.t())
        y = y.mul_(read.step * self.weight_step)
        return y if self.map.bias is None else y.add_(self.map.bias), x

    def explicit_backward(
        self, dy: Float[Tensor, "*rows d_out"], x: Float[Tensor, "*rows d_in"] | Rounded
    ) -> Float[Tensor, "*rows d_in"]:
        """dW = Σ_rows dyᵀ x̂, dx̂ = dy Ŵ; both pass the rounding as they are."""
        read = self.map.read(x)
        accumulate_product(self.map.weight, dy.flatten(0, -2), read.values.to(dy.dtype).flatten(0, -2))
        if self.map.bias is not None:
            accumulate(self.map.bias, dy.flatten(0, -2).sum(0))
        dx = product(dy, self.weight).mul_(self.weight_step).to(read.dtype)
        return dx if self.map.norm is None else self.map.norm.explicit_backward(dx, read.of_norm)


def make_linear(config: ModelConfig, d_in: int, d_out: int, std: float, inner: bool = False) -> Linear:
    """The linear map of a branch that `config.linear` names; `inner` says that what it reads is not the stream."""
    if config.linear == "float":
        return Linear(d_in, d_out, config.bias, std)
    norm = RMSNorm(d_in, config.norm_eps) if inner and config.sub_norm else None
    return BitLinear(d_in, d_out, config.bias, std, norm)
