"""The linear map."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from residuum.model.gradient import accumulate, accumulate_product
from residuum.model.product import product


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
