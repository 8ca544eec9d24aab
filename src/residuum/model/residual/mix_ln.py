"""Mix-LN: post-norm in the first quarter of the layers, pre-norm in the rest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from residuum.model.config import ModelConfig
from residuum.model.gradient import Saved
from residuum.model.residual.base import Branch, Receiver, Stream, register
from residuum.model.residual.post import Post
from residuum.model.residual.pre import Pre

if TYPE_CHECKING:
    from residuum.model.transformer import Transformer


@register("mix-ln")
class MixLN(Post, Pre):
    """y = norm(x + f(x)) in the first ⌊n_layers / 4⌋ layers, but at least one; y = x + f(norm(x)) in the others.

    dL/dx as in `post`, and as in `pre`. Its paper says that post-norm leaves small gradients to the first layers and
    pre-norm to the last ones, and that the mixture evens them out. First weights are GPT-2's, which is ours: it then
    differs from `pre` in its norms alone; its authors' are plain.

    Source: Li, Yin, Liu 2024, https://arxiv.org/abs/2412.13795.
    """

    use = "For pre-norm models whose later layers learn too little."
    final_norm = True

    def __init__(self, config: ModelConfig, place: int) -> None:
        super().__init__(config, place)
        self.side: type[Post] | type[Pre] = Post if place // 2 < max(1, config.n_layers // 4) else Pre

    @classmethod
    def initialise(cls, model: Transformer) -> None:
        """Not Xavier's, which `post` takes: every layer is to start alike."""

    def forward(self, x: Stream, branch: Branch, *args: Any) -> Stream:
        return self.side.forward(self, x, branch, *args)

    def explicit_forward(self, x: Stream, branch: Branch, *args: Any) -> tuple[Stream, Saved]:
        return self.side.explicit_forward(self, x, branch, *args)

    def explicit_backward(self, dy: Stream, saved: Saved, parts: Receiver | None = None) -> Stream:
        return self.side.explicit_backward(self, dy, saved, parts)
