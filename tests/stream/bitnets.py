"""Quantised linear maps as they are written in public: each computes the same kind of product in its own order."""

from __future__ import annotations

from typing import Any

import models
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function


def to_eight_bits(x: Tensor) -> tuple[Tensor, Tensor]:
    per_unit = 127.0 / x.abs().max(dim=-1, keepdim=True).values.clamp_(min=1e-5)
    return (x * per_unit).round().clamp_(-128, 127), per_unit


def to_ternary(w: Tensor) -> tuple[Tensor, Tensor]:
    per_unit = 1.0 / w.abs().mean().clamp_(min=1e-5)
    return (w * per_unit).round().clamp_(-1, 1), per_unit


class FakeQuantised(nn.Linear):
    """Both factors keep their sizes, x + (q(x) − x).detach(): nothing is left to give back."""

    def forward(self, x: Tensor) -> Tensor:
        q, per_unit = to_eight_bits(x)
        t, per_level = to_ternary(self.weight)
        x = x + (q / per_unit - x).detach()
        return F.linear(x, self.weight + (t / per_level - self.weight).detach(), self.bias)


class Divided(nn.Linear):
    """Levels are multiplied, and both sizes divided by afterwards, one after the other."""

    def forward(self, x: Tensor) -> Tensor:
        q, per_unit = to_eight_bits(x)
        t, per_level = to_ternary(self.weight)
        x, w = x * per_unit, self.weight * per_level
        y = F.linear(x + (q - x).detach(), w + (t - w).detach()) / per_level / per_unit
        return y if self.bias is None else y + self.bias


class OneProduct(nn.Linear):
    """Both sizes in one product, a scale for each output among them."""

    def forward(self, x: Tensor) -> Tensor:
        step = x.abs().amax(-1, keepdim=True).clamp(min=1e-5) / 127
        per_output = self.weight.abs().mean(1, keepdim=True)
        x, w = x / step, self.weight / per_output
        x = x - (x - x.round()).detach()
        w = w + w.round().clamp(-1, 1).detach() - w.detach()
        return F.linear(x, w) * (step * per_output.T)


class WholeTensor(nn.Linear):
    """BitNet before b1.58: signs, and one size for all tokens, computed again where it is given back."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.layer_norm(x, x.shape[-1:])
        centred = self.weight - self.weight.mean()
        sign = centred + (centred.sign() - centred).detach()
        q = x * 127 / x.abs().max()
        q = q + (q.round().clamp(-127, 127) - q).detach()
        return F.linear(q, sign) * self.weight.abs().mean() * x.abs().max() / 127


class Groups(nn.Linear):
    """A size for every other input, and one for every other output."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.unflatten(-1, (-1, 2))
        step = x.abs().amax(-2, keepdim=True).clamp(min=1e-5) / 127
        levels = x / step
        levels = levels + (levels.round() - levels).detach()
        w = self.weight.view(2, -1, *x.shape[-2:])
        size = w.abs().mean((1, 2, 3), keepdim=True)
        t = w / size + ((w / size).round().clamp(-1, 1) - w / size).detach()
        y = torch.einsum("...ik,goik->...gok", levels, t) * step.squeeze(-2)[..., None, None, :] * size[..., 0]
        return y.sum(-1).flatten(-2)


class LearnedStep(nn.Linear):
    """The weight's step is learned (LSQ) and multiplied by once more at the end."""

    def __init__(self, *sizes: Any, **kwargs: Any) -> None:
        super().__init__(*sizes, **kwargs)
        self.step = nn.Parameter(self.weight.detach().abs().mean())

    def forward(self, x: Tensor) -> Tensor:
        q, per_unit = to_eight_bits(x)
        x, w = x * per_unit, self.weight / self.step
        return F.linear(x + (q - x).detach(), w + (w.round().clamp(-1, 1) - w).detach()) * self.step / per_unit


class Thresholds(nn.Linear):
    """A ternary weight network: the sign of what is beyond a threshold, times the mean of that."""

    def forward(self, x: Tensor) -> Tensor:
        beyond = (self.weight.abs() > 0.7 * self.weight.abs().mean()).to(x.dtype)
        size = (self.weight.abs() * beyond).sum() / beyond.sum()
        return F.linear(x, self.weight + (size * self.weight.sign() * beyond - self.weight).detach(), self.bias)


class Round(Function):
    @staticmethod
    def forward(ctx: Any, w: Tensor) -> Tensor:
        t, per_level = to_ternary(w)
        return t / per_level

    @staticmethod
    def backward(ctx: Any, dw: Tensor) -> Tensor:
        return dw


class OwnFunction(nn.Linear):
    """The estimator is a function of autograd, and the weight is transposed by hand."""

    def forward(self, x: Tensor) -> Tensor:
        return x @ Round.apply(self.weight).T


class TwoThresholds(nn.Linear):
    """1 above one threshold, −1 below the other."""

    def forward(self, x: Tensor) -> Tensor:
        threshold = self.weight.abs().mean() / 2
        t = (self.weight > threshold).to(x.dtype) - (self.weight < -threshold).to(x.dtype)
        return F.linear(x, self.weight + (t * threshold * 2 - self.weight).detach(), self.bias)


class Stored(nn.Module):
    """Weights are levels already, with their size in a buffer beside them, as a model is shipped."""

    def __init__(self, d_in: int, d_out: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.randint(-1, 2, (d_out, d_in), dtype=torch.int8))
        self.register_buffer("size", torch.full((1,), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        q, per_unit = to_eight_bits(x)
        return F.linear(q, self.weight.to(x.dtype)) / (per_unit / self.size)


class StoredTwice(Stored):
    """One after the other."""

    def forward(self, x: Tensor) -> Tensor:
        q, per_unit = to_eight_bits(x)
        return F.linear(q, self.weight.to(x.dtype)) * self.size / per_unit


class Forgotten(nn.Linear):
    """No estimator: what gradient there is comes through the size."""

    def forward(self, x: Tensor) -> Tensor:
        t, per_level = to_ternary(self.weight)
        return F.linear(x, t / per_level, self.bias)


TRAINED = [FakeQuantised, Divided, OneProduct, WholeTensor, LearnedStep, Thresholds, TwoThresholds, OwnFunction, Groups]
STORED = [Stored, StoredTwice]

# No rounded numbers: signs, and what is left beside thresholds.
SIGNS = [WholeTensor, Thresholds, TwoThresholds]


class Net(models.Stack):
    """Pre-norm blocks of two such maps."""

    def __init__(self, kind: type[nn.Module]) -> None:
        super().__init__()
        for mlp in self.mlps:
            mlp.up, mlp.down = kind(models.D, 2 * models.D), kind(2 * models.D, models.D)

    def layer(self, i: int, x: Tensor) -> Tensor:
        return x + self.mlps[i](self.norms[i](x))
