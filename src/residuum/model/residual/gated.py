"""Gated: every entry of a write passes a gate of its own."""

from __future__ import annotations

from typing import Any

import torch

from residuum.model.config import ModelConfig
from residuum.model.gradient import Saved
from residuum.model.linear import Linear
from residuum.model.norm import make_norm
from residuum.model.residual.base import Branch, Receiver, Residual, Stream, joined, register


@register("gated")
class Gated(Residual):
    """y = x + t ⊙ f(n), t = σ(W n + b), n = norm(x).

    Back: dL/dx = g + J_normᵀ (J_fᵀ (t ⊙ g) + Wᵀ (g ⊙ f ⊙ t ⊙ (1 − t))); all but g is the branch part.
    The gate reads what the branch reads, so that its slope does not fade as the stream grows (the paper's reads x).
    W and b start at 0: each gate is half open for every token, where its slope is largest. Shapes: W [d_model,
    d_model], b [d_model].

    Source: Parisotto et al. 2019, the output gate, https://arxiv.org/abs/1910.06764.
    """

    use = "When tokens should decide what of a write they take; a sixth more products than pre."

    def __init__(self, config: ModelConfig, place: int) -> None:
        super().__init__(config, place)
        self.norm = make_norm(config)
        self.gate = Linear(config.d_model, config.d_model, bias=True, std=0.0)

    def forward(self, x: Stream, branch: Branch, *args: Any) -> Stream:
        normed = self.norm(x)
        return torch.addcmul(x, torch.sigmoid(self.gate(normed)), branch(normed, *args))

    def explicit_forward(self, x: Stream, branch: Branch, *args: Any) -> tuple[Stream, Saved]:
        normed, of_norm = self.norm.explicit_forward(x)
        gate = self.gate.explicit_forward(normed)[0].sigmoid_()
        write, (_, *of_branch) = branch.explicit_forward(normed, *args)
        return torch.addcmul(x, gate, write), (branch, of_norm, of_branch, gate, write)

    def explicit_backward(self, dy: Stream, saved: Saved, parts: Receiver | None = None) -> Stream:
        """A product: each factor receives the other one times dy."""
        branch, of_norm, of_branch, gate, write = saved
        normed = self.norm.explicit_again(of_norm)
        dnormed = branch.explicit_backward(dy * gate, (normed, *of_branch))
        dnormed += self.gate.explicit_backward(sigmoid_backward(dy * write, gate), normed)
        return joined(dy, self.norm.explicit_backward(dnormed, of_norm), parts)


def sigmoid_backward(dt: Stream, t: Stream) -> Stream:
    """dt ⊙ t (1 − t), the gradient at the entry of t = σ(·). dt is used up."""
    return dt.mul_(t).addcmul_(dt, t, value=-1)
