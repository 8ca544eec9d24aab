"""Post-norm: the original Transformer's, which normalises the stream after every addition."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from residuum.model.config import ModelConfig
from residuum.model.gradient import Saved
from residuum.model.norm import make_norm
from residuum.model.residual.base import Branch, Receiver, Residual, Stream, joined, register
from residuum.model.residual.xavier import xavier

if TYPE_CHECKING:
    from residuum.model.transformer import Transformer


@register("post")
class Post(Residual):
    """y = norm(x + f(x)). Every gradient passes the norm's Jacobian: dL/dx = (1 + J_f)ᵀ J_normᵀ g.

    Source: Vaswani et al. 2017, https://arxiv.org/abs/1706.03762.
    """

    use = (
        "To repeat results of the original Transformer or BERT; beyond some 12 layers it may not train, or only with a "
        "warm-up."
    )

    final_norm = False

    def __init__(self, config: ModelConfig, place: int) -> None:
        super().__init__(config, place)
        self.norm = make_norm(config)

    @classmethod
    def initialise(cls, model: Transformer) -> None:
        xavier(model)

    def forward(self, x: Stream, branch: Branch, *args: Any) -> Stream:
        return self.norm(x + branch(x, *args))

    def explicit_forward(self, x: Stream, branch: Branch, *args: Any) -> tuple[Stream, Saved]:
        write, of_branch = branch.explicit_forward(x, *args)
        y, of_norm = self.norm.explicit_forward(x + write)
        return y, (branch, of_norm, of_branch)

    def explicit_backward(self, dy: Stream, saved: Saved, parts: Receiver | None = None) -> Stream:
        branch, of_norm, of_branch = saved
        dsum = self.norm.explicit_backward(dy, of_norm)
        return joined(dsum, branch.explicit_backward(dsum, of_branch), parts)
