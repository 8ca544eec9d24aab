"""Value residual: every later layer's values are mixed with the first layer's."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from residuum.model.attention import Attention, Values
from residuum.model.config import ModelConfig
from residuum.model.gradient import Saved, accumulate
from residuum.model.norm import make_norm
from residuum.model.precision import inner
from residuum.model.residual.base import Branch, Receiver, Residual, Stream, joined, register

State = tuple[Stream, Values | None]
"""x, and the first layer's values once there are some; or their gradients."""


@register("value")
class ValueResidual(Residual):
    """y = x + f(norm(x)), where attention's values are v ← λ v + μ v₁, v₁ the first layer's; λ = μ = 1/2 at the start.

    x's gradient is pre-norm's. With g that of the mixed values: dv = λ g, dv₁ = Σ over layers of μ g, which the first
    layer adds to its own; dλ = ⟨g, v⟩, dμ = ⟨g, v₁⟩. The paper's variants fix both at 1/2 or learn them, as here. With
    λ = 1 and μ = 0 it is pre-norm. Source: Zhou et al. 2024, https://arxiv.org/abs/2410.17897.
    """

    use = "To keep what the tokens themselves say within reach of deep attention, for two numbers a layer."

    def __init__(self, config: ModelConfig, place: int) -> None:
        super().__init__(config, place)
        self.norm = make_norm(config)
        if place > 0 and place % 2 == 0:
            self.of_own = nn.Parameter(torch.tensor(0.5))
            self.of_first = nn.Parameter(torch.tensor(0.5))

    def begin(self, x: Stream) -> State:
        return x, None

    def begin_backward(self, dstate: State) -> Stream:
        return dstate[0]

    def forward(self, state: State, branch: Branch, *args: Any) -> State:
        x, first = state
        if not isinstance(branch, Attention):
            return x + branch(self.norm(x), *args), first
        mix = self._mix(first)
        return x + branch(self.norm(x), *args, mix=mix), mix.first

    def explicit_forward(self, state: State, branch: Branch, *args: Any) -> tuple[State, Saved]:
        x, first = state
        normed, of_norm = self.norm.explicit_forward(x)
        if isinstance(branch, Attention):
            mix = self._mix(first)
            write, (_, *of_branch) = branch.explicit_forward(normed, *args, mix=mix)  # type: ignore[misc]
            return (x + write, mix.first), (branch, mix, of_norm, of_branch)
        write, (_, *of_branch) = branch.explicit_forward(normed, *args)
        return (x + write, first), (branch, None, of_norm, of_branch)

    def explicit_backward(self, dstate: State, saved: Saved, parts: Receiver | None = None) -> State:
        branch, mix, of_norm, of_branch = saved
        dy, dfirst = dstate
        if mix is not None:
            mix.dfirst = dfirst
        dnormed = branch.explicit_backward(dy, (self.norm.explicit_again(of_norm), *of_branch))
        if mix is not None:
            dfirst, mix.dfirst = mix.dfirst, None
        return joined(dy, self.norm.explicit_backward(dnormed, of_norm), parts), dfirst

    def end(self, state: State) -> Stream:
        return state[0]

    def explicit_end(self, state: State) -> tuple[Stream, Saved]:
        return state[0], ()

    def explicit_end_backward(self, dx: Stream, saved: Saved) -> State:
        del saved
        return dx, None

    def _mix(self, first: Values | None) -> First | Mixed:
        return First() if first is None else Mixed(first, self.of_own, self.of_first)


class First:
    """The first layer's values, which are left as they are; `dfirst` is what the later layers ask of them."""

    def __init__(self) -> None:
        self.first: Values | None = None
        self.dfirst: Values | None = None

    def __call__(self, v: Values) -> Values:
        self.first = v
        return v

    def explicit_forward(self, v: Values) -> tuple[Values, Saved]:
        return self(v), ()

    def explicit_backward(self, dv: Values, saved: Saved) -> Values:
        del saved
        if self.dfirst is not None:
            dv = dv + self.dfirst
        self.dfirst = None
        return dv


class Mixed:
    """λ v + μ v₁. `dfirst`, what layers after this one ask of v₁, grows by what this one asks."""

    def __init__(self, first: Values, of_own: nn.Parameter, of_first: nn.Parameter) -> None:
        self.first, self.of_own, self.of_first = first, of_own, of_first
        self.dfirst: Values | None = None

    def __call__(self, v: Values) -> Values:
        return self.of_own * v + self.of_first * self.first

    def explicit_forward(self, v: Values) -> tuple[Values, Saved]:
        return self(v), (v,)

    def explicit_backward(self, dv: Values, saved: Saved) -> Values:
        (v,) = saved
        accumulate(self.of_own, inner(dv, v))
        accumulate(self.of_first, inner(dv, self.first))
        of_first = self.of_first.detach()
        self.dfirst = dv * of_first if self.dfirst is None else torch.addcmul(self.dfirst, dv, of_first)
        return dv * self.of_own.detach()
