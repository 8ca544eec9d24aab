"""ReZero: no norm, and one learned number per connection that opens the branch from nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from residuum.model.config import ModelConfig
from residuum.model.gradient import Saved, accumulate
from residuum.model.precision import at_least_float32
from residuum.model.residual.base import Branch, Receiver, Residual, Stream, joined, register
from residuum.model.residual.xavier import xavier

if TYPE_CHECKING:
    from residuum.model.transformer import Transformer


@register("rezero")
class ReZero(Residual):
    """y = x + α f(x), α one learned number, 0 at first: the identity. No norm anywhere, the last state's included.

    dL/dx = g + α J_fᵀ g, dL/dα = Σ g ⊙ f; until α has moved, the branch receives nothing. First weights are Xavier's.
    The paper's two sub-layers of a block share one α; here each connection has its own.

    Source: Bachlechner et al. 2020, https://arxiv.org/abs/2003.04887.
    """

    use = "For deep models without norms: every path opens as fast as it helps."
    final_norm = False
    identity_at_start = True

    def __init__(self, config: ModelConfig, place: int) -> None:
        super().__init__(config, place)
        self.scale = nn.Parameter(torch.tensor(self.first_scale(config)))

    def first_scale(self, config: ModelConfig) -> float:  # noqa: ARG002 - for subclasses that start elsewhere
        return 0.0

    @classmethod
    def initialise(cls, model: Transformer) -> None:
        xavier(model)

    def forward(self, x: Stream, branch: Branch, *args: Any) -> Stream:
        return torch.addcmul(x, branch(x, *args), self.scale)

    def explicit_forward(self, x: Stream, branch: Branch, *args: Any) -> tuple[Stream, Saved]:
        write, of_branch = branch.explicit_forward(x, *args)
        return torch.addcmul(x, write, self.scale), (branch, of_branch, write)

    def explicit_backward(self, dy: Stream, saved: Saved, parts: Receiver | None = None) -> Stream:
        branch, of_branch, write = saved
        accumulate(self.scale, (at_least_float32(dy) * write).sum())
        return joined(dy, branch.explicit_backward(dy * self.scale, of_branch), parts)
