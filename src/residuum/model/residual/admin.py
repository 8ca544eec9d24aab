"""Admin: post-norm whose skips are as strong as all writes before them."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from residuum.model.config import ModelConfig
from residuum.model.gradient import Saved, accumulate
from residuum.model.residual.base import Branch, Receiver, Stream, joined, register
from residuum.model.residual.post import Post
from residuum.model.residual.xavier import xavier

if TYPE_CHECKING:
    from residuum.model.transformer import Transformer

PROFILED = 128
"""Tokens at most that the first values are measured on: times d_model, entries enough for a variance."""


@register("admin")
class Admin(Post):
    """y = norm(ω ⊙ x + f(x)). Back: dL/dx = (ω + J_f)ᵀ J_normᵀ g.

    First values: Xavier's, then ω² = 1 + the variances of all writes before, measured in one forward pass: no write
    then turns the stream more than in pre-norm. Shapes: ω [d_model].

    Source: Liu et al. 2020, https://arxiv.org/abs/2004.08249.
    """

    use = "For post-norm where it is too deep to train, with skips that are learned; deepnorm measures nothing."

    def __init__(self, config: ModelConfig, place: int) -> None:
        super().__init__(config, place)
        self.skip = nn.Parameter(torch.ones(config.d_model))

    @classmethod
    @torch.no_grad()
    def initialise(cls, model: Transformer) -> None:
        """The embedding is random, so the tokens need not be. Draws nothing but the weights."""
        xavier(model)
        hooks = []
        for (here, branch), (after, _) in pairwise(model.connections()):
            assert isinstance(branch, nn.Module)
            profile = partial(_profile, here.get_parameter("skip"), after.get_parameter("skip"))
            hooks.append(branch.register_forward_hook(profile))
        places = torch.arange(min(model.config.context, PROFILED), device=model.embedding.weight.device)
        model.eval().states(places[None] % model.config.vocab_size)
        model.train()
        for hook in hooks:
            hook.remove()

    def forward(self, x: Stream, branch: Branch, *args: Any) -> Stream:
        return self.norm(torch.addcmul(branch(x, *args), x, self.skip))

    def explicit_forward(self, x: Stream, branch: Branch, *args: Any) -> tuple[Stream, Saved]:
        write, of_branch = branch.explicit_forward(x, *args)
        y, of_norm = self.norm.explicit_forward(torch.addcmul(write, x, self.skip))
        return y, (branch, of_norm, x, of_branch)

    def explicit_backward(self, dy: Stream, saved: Saved, parts: Receiver | None = None) -> Stream:
        branch, of_norm, x, of_branch = saved
        dsum = self.norm.explicit_backward(dy, of_norm)
        accumulate(self.skip, (dsum * x).flatten(0, -2).sum(0))
        return joined(dsum * self.skip, branch.explicit_backward(dsum, of_branch), parts)


def _profile(here: Tensor, after: Tensor, branch: nn.Module, args: tuple[Any, ...], write: Tensor) -> None:  # noqa: ARG001
    """ω² of the next connection, from ω² of this one and its write, before the next one's forward."""
    after.copy_((here.square() + write.var(correction=0)).sqrt())
