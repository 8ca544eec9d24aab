"""DeepNorm: post-norm with a stronger skip and weaker first weights, for a thousand layers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from residuum.model.config import ModelConfig
from residuum.model.gradient import Saved
from residuum.model.residual.base import Branch, Receiver, Stream, joined, register
from residuum.model.residual.post import Post
from residuum.model.residual.xavier import xavier

if TYPE_CHECKING:
    from residuum.model.transformer import Transformer


@register("deepnorm")
class DeepNorm(Post):
    """y = norm(α x + f(x)), α = (2 L)^¼. Back: dL/dx = (α + J_f)ᵀ J_normᵀ g.

    First values: Xavier's, with gain (8 L)^−¼ for the value and output projections and the feed-forward. Both are the
    paper's for a decoder or an encoder alone; `residual_scale` is another α.

    Source: Wang et al. 2022, https://arxiv.org/abs/2203.00555.
    """

    use = "For post-norm's results where post-norm is too deep to train."

    settings = ("residual_scale",)

    def __init__(self, config: ModelConfig, place: int) -> None:
        super().__init__(config, place)
        self.scale = (2 * config.n_layers) ** 0.25 if config.residual_scale is None else config.residual_scale

    @classmethod
    def initialise(cls, model: Transformer) -> None:
        xavier(model, value_gain=(8 * model.config.n_layers) ** -0.25)

    def forward(self, x: Stream, branch: Branch, *args: Any) -> Stream:
        return self.norm(torch.add(branch(x, *args), x, alpha=self.scale))

    def explicit_forward(self, x: Stream, branch: Branch, *args: Any) -> tuple[Stream, Saved]:
        write, of_branch = branch.explicit_forward(x, *args)
        y, of_norm = self.norm.explicit_forward(torch.add(write, x, alpha=self.scale))
        return y, (branch, of_norm, of_branch)

    def explicit_backward(self, dy: Stream, saved: Saved, parts: Receiver | None = None) -> Stream:
        branch, of_norm, of_branch = saved
        dsum = self.norm.explicit_backward(dy, of_norm)
        return joined(self.scale * dsum, branch.explicit_backward(dsum, of_branch), parts)
