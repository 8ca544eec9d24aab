"""Three ways to tell a token's place."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from residuum.model.gradient import zeros_grad


class LearnedPositions(nn.Module):
    """A trained vector for each place, added to the embedding."""

    def __init__(self, context: int, d_model: int, std: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(context, d_model))
        nn.init.normal_(self.weight, std=std)

    def forward(self, start: int, length: int) -> Float[Tensor, "pos d_model"]:
        return self.weight[start : start + length]

    def explicit_forward(self, start: int, length: int) -> tuple[Float[Tensor, "pos d_model"], int]:
        """Keeps where the places begin."""
        return self.weight[start : start + length], start

    def explicit_backward(self, dy: Float[Tensor, "batch pos d_model"], start: int) -> None:
        """dW[start + t] = Σ_batch dy[:, t]: each sequence read the same vector."""
        if self.weight.requires_grad:
            zeros_grad(self.weight)[start : start + dy.shape[1]].add_(dy.sum(0))


class SinusoidalPositions(nn.Module):
    """p[t, 2i] = sin(t / 10000^(2i/d_model)), p[t, 2i+1] = cos(the same), added to the embedding.

    Source: Vaswani et al. 2017, section 3.5, https://arxiv.org/abs/1706.03762.
    """

    table: Tensor

    def __init__(self, context: int, d_model: int) -> None:
        super().__init__()
        table = torch.zeros(context, d_model)
        angles = _angles(context, d_model + d_model % 2, 10000.0)
        table[:, 0::2] = angles.sin()
        table[:, 1::2] = angles.cos()[:, : d_model // 2]
        self.register_buffer("table", table, persistent=False)

    def forward(self, start: int, length: int) -> Float[Tensor, "pos d_model"]:
        return self.table[start : start + length]

    def explicit_forward(self, start: int, length: int) -> tuple[Float[Tensor, "pos d_model"], int]:
        return self.table[start : start + length], start

    def explicit_backward(self, dy: Float[Tensor, "batch pos d_model"], start: int) -> None:
        """Nothing here is trained."""


class RotaryPositions(nn.Module):
    """Cosine and sine of every place's angles, by which `rotate` turns queries and keys.

    Source: Su et al. 2021, https://arxiv.org/abs/2104.09864; entries i and i + d_head/2 make a pair, as in GPT-NeoX.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, context: int, d_head: int, base: float) -> None:
        super().__init__()
        angles = _angles(context, d_head, base)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, start: int, length: int) -> tuple[Float[Tensor, "pos half"], Float[Tensor, "pos half"]]:
        return self.cos[start : start + length], self.sin[start : start + length]


def rotate(
    x: Float[Tensor, "batch heads pos d_head"], cos: Float[Tensor, "pos half"], sin: Float[Tensor, "pos half"]
) -> Float[Tensor, "batch heads pos d_head"]:
    """Turn each pair (a, b) of entries by its place's angle: (a cos − b sin, b cos + a sin)."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).type_as(x)


def rotate_backward(
    dy: Float[Tensor, "batch heads pos d_head"], cos: Float[Tensor, "pos half"], sin: Float[Tensor, "pos half"]
) -> Float[Tensor, "batch heads pos d_head"]:
    """A rotation's transpose turns back by the same angle."""
    return rotate(dy, cos, -sin)


def _angles(context: int, width: int, base: float) -> Float[Tensor, "pos half"]:
    frequencies = base ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    return torch.outer(torch.arange(context, dtype=torch.float64), frequencies).float()
