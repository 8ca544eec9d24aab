"""What the gradient of one parameter says: will it train?"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from residuum.stream.split import norm

Verdict = Literal["trains", "frozen", "no gradient", "zero", "not finite", "tiny"]

# The gradient over the weight, root mean squares, below which a hundred whole steps at learning rate 1 still round off
# in a float32 weight. Healthy matrices stay above 3e-8 (`python benchmarks/healthy.py`). Not the weight's own type:
# bfloat16's 2⁻⁸ is more than healthy gradients reach, which is why such weights are trained with a float32 copy
# (Micikevicius et al. 2018, arXiv 1710.03740).
TINY = torch.finfo(torch.float32).eps / 100


@dataclass(frozen=True)
class ParameterFlow:
    """Root mean squares of a parameter and of its gradient (None if it has none).

    `asked` is its `requires_grad`, `dimensions` its number of dimensions.
    """

    gradient_rms: float | None
    weight_rms: float
    asked: bool
    dimensions: int

    @property
    def verdict(self) -> Verdict:
        """frozen (asks for no gradient), no gradient (the loss does not reach it), zero, not finite (NaN or infinity
        in it), tiny (less than 1.2e-9 of its weight), or trains.
        """
        if not self.asked:
            return "frozen"
        if self.gradient_rms is None:
            return "no gradient"
        if not math.isfinite(self.gradient_rms):
            return "not finite"
        if self.gradient_rms == 0:
            return "zero"
        return "tiny" if self.gradient_rms < TINY * self.weight_rms else "trains"


def parameter_flow(parameter: Tensor, gradient: Tensor | None) -> ParameterFlow:
    """Read a parameter and its gradient once each."""
    rms = None if gradient is None else _rms(gradient)
    return ParameterFlow(rms, _rms(parameter), parameter.requires_grad, parameter.ndim)


def _rms(value: Tensor) -> float:
    """The root mean square; 0 only if every entry is, infinite or NaN only if some entry is."""
    value, count = value.detach(), value.numel()
    if value.is_sparse:
        value = value.coalesce().values()
    if not value.numel():
        return 0.0
    if not (value.is_floating_point() or value.is_complex()):  # frozen whole numbers, as quantised layers keep
        value = value.float()
    size = float(norm(value)) / count**0.5
    if size == 0 or not math.isfinite(size):  # perhaps only its squares are: once more, relative to the largest entry
        largest = float(value.abs().max())
        if largest > 0 and math.isfinite(largest):
            size = largest * float(norm(value / largest)) / count**0.5
    return size
