"""Pre-norm: the branch reads a normalised copy, and the stream itself is never touched."""

from __future__ import annotations

from typing import Any

from residuum.model.config import ModelConfig
from residuum.model.gradient import Saved
from residuum.model.norm import make_norm
from residuum.model.residual.base import Branch, Receiver, Residual, Stream, joined, register


@register("pre")
class Pre(Residual):
    """y = x + f(norm(x)). The gradient passes the addition as it is: dL/dx = g + (J_f J_norm)ᵀ g.

    Source: Xiong et al. 2020, https://arxiv.org/abs/2002.04745.
    """

    use = "The default: it trains at great depth without warm-up, and is what anything is compared with."

    def __init__(self, config: ModelConfig, place: int) -> None:
        super().__init__(config, place)
        self.norm = make_norm(config)

    def forward(self, x: Stream, branch: Branch, *args: Any) -> Stream:
        return x + branch(self.norm(x), *args)

    def explicit_forward(self, x: Stream, branch: Branch, *args: Any) -> tuple[Stream, Saved]:
        """Forgets norm(x), the branch's input, which is cheaper to compute again than to keep."""
        normed, of_norm = self.norm.explicit_forward(x)
        write, (_, *of_branch) = branch.explicit_forward(normed, *args)
        return x + write, (branch, of_norm, of_branch)

    def explicit_backward(self, dy: Stream, saved: Saved, parts: Receiver | None = None) -> Stream:
        branch, of_norm, of_branch = saved
        identity = dy
        dnormed = branch.explicit_backward(dy, (self.norm.explicit_again(of_norm), *of_branch))
        return joined(identity, self.norm.explicit_backward(dnormed, of_norm), parts)
