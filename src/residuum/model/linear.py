"""The linear map."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


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
