"""SkipInit: ReZero's formula, with branches that are open from the start, as wide as depth allows."""

from __future__ import annotations

from residuum.model.config import ModelConfig
from residuum.model.residual.base import register
from residuum.model.residual.rezero import ReZero


@register("skipinit")
class SkipInit(ReZero):
    """y = x + α f(x), α one learned number, at first 1/√n with n = 2 n_layers connections, or residual_scale. No norm.

    dL/dx = g + α J_fᵀ g, dL/dα = Σ g ⊙ f. The formula is `rezero`'s. Its authors ask for a first α of at most 1/√n,
    which is what batch norm does to a branch: n writes then add to the stream's variance what one would. They also
    allow 0, which is `rezero`; here it is the largest value, so that branches receive gradients from the first step.

    Source: De, Smith 2020, https://arxiv.org/abs/2002.10444.
    """

    use = "For models without norms whose branches are to learn from the first step."
    identity_at_start = False
    settings = ("residual_scale",)

    def first_scale(self, config: ModelConfig) -> float:
        return self.n_places**-0.5 if config.residual_scale is None else config.residual_scale
