"""No residual connection: the control in every experiment about them."""

from __future__ import annotations

from typing import Any

from residuum.model.gradient import Saved
from residuum.model.residual.base import Branch, Receiver, Residual, Stream, register


@register("none")
class NoResidual(Residual):
    """y = f(x). The gradient has the branch path alone: dL/dx = J_fᵀ g."""

    use = "As a control: what a network loses without residual connections."

    def forward(self, x: Stream, branch: Branch, *args: Any) -> Stream:
        return branch(x, *args)

    def explicit_forward(self, x: Stream, branch: Branch, *args: Any) -> tuple[Stream, Saved]:
        write, of_branch = branch.explicit_forward(x, *args)
        return write, (branch, of_branch)

    def explicit_backward(self, dy: Stream, saved: Saved, parts: Receiver | None = None) -> Stream:
        """There is no connection, so `parts` receives nothing."""
        del parts
        branch, of_branch = saved
        return branch.explicit_backward(dy, of_branch)
