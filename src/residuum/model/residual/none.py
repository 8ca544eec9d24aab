"""No residual connection: the control in every experiment about them."""

from __future__ import annotations

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor

from residuum.model.residual.base import Residual


class NoResidual(Residual):
    """y = f(x). The gradient has the branch path alone: dL/dx = J_fᵀ g."""

    name = "none"
    final_norm = True

    def forward(
        self, x: Float[Tensor, "batch pos d_model"], branch: Callable[..., Tensor], *args: object
    ) -> Float[Tensor, "batch pos d_model"]:
        return branch(x, *args)
