"""LayerNorm scaling: what a branch reads shrinks with depth, and with it what it writes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from residuum.model.config import ModelConfig
from residuum.model.gradient import Saved
from residuum.model.residual.base import Branch, Receiver, Stream, joined, register
from residuum.model.residual.plain import plain
from residuum.model.residual.pre import Pre

if TYPE_CHECKING:
    from residuum.model.transformer import Transformer


@register("layernorm-scaling")
class LayerNormScaling(Pre):
    """y = x + f(norm(x) / √l), l the layer (from 1), the same for both of its connections.

    dL/dx = g + (J_f J_norm)ᵀ g / √l. First weights are plain: its authors do without GPT-2's, which would shrink the
    writes twice.

    Source: Sun et al. 2025, https://arxiv.org/abs/2502.05795.
    """

    use = "For deep pre-norm models whose later layers would contribute little."

    def __init__(self, config: ModelConfig, place: int) -> None:
        super().__init__(config, place)
        self.scale = (place // 2 + 1) ** -0.5

    @classmethod
    def initialise(cls, model: Transformer) -> None:
        plain(model)

    def forward(self, x: Stream, branch: Branch, *args: Any) -> Stream:
        return x + branch(self.norm(x) * self.scale, *args)

    def explicit_forward(self, x: Stream, branch: Branch, *args: Any) -> tuple[Stream, Saved]:
        normed, of_norm = self.norm.explicit_forward(x)
        write, (_, *of_branch) = branch.explicit_forward(normed.mul_(self.scale), *args)
        return x + write, (branch, of_norm, of_branch)

    def explicit_backward(self, dy: Stream, saved: Saved, parts: Receiver | None = None) -> Stream:
        branch, of_norm, of_branch = saved
        read = self.norm.explicit_again(of_norm).mul_(self.scale)
        dnormed = branch.explicit_backward(dy, (read, *of_branch)) * self.scale
        return joined(dy, self.norm.explicit_backward(dnormed, of_norm), parts)
