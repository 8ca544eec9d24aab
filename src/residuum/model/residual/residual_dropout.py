"""Residual dropout: entries of every write are dropped while training."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from residuum.model.config import ModelConfig
from residuum.model.residual.added import Added
from residuum.model.residual.base import Stream, register


@register("residual-dropout")
class ResidualDropout(Added):
    """y = x + m ⊙ f(norm(x)) / (1 − p), m ~ Bernoulli(1 − p) for each entry; p = residual_drop or 0.1.

    dL/dx = g + (J_f J_norm)ᵀ (m ⊙ g) / (1 − p): what was dropped receives nothing. Evaluating it is pre-norm.

    Source: Vaswani et al. 2017, section 5.4, https://arxiv.org/abs/1706.03762.
    """

    use = "Against over-fitting, where the data are few."
    settings = ("residual_drop",)

    def __init__(self, config: ModelConfig, place: int) -> None:
        super().__init__(config, place)
        self.p = 0.1 if config.residual_drop is None else config.residual_drop

    def add(self, x: Stream, write: Tensor) -> Stream:
        return self.explicit_add(x, write)[0]

    def explicit_add(self, x: Stream, write: Tensor) -> tuple[Stream, Any]:
        """Keeps a byte an entry."""
        if not self.training or self.p == 0:
            return x + write, None
        kept, share = kept_entries(write, self.p)
        return torch.addcmul(x, write, kept.to(write.dtype).div_(share)), (kept, share)

    def explicit_add_backward(self, dy: Stream, saved: Any) -> Tensor:
        if saved is None:
            return dy
        kept, share = saved
        return (dy * kept).div_(share)


def kept_entries(like: Tensor, p: float) -> tuple[Bool[Tensor, "*any"], float]:
    """Which entries are kept, and the share that is: 1 − p to the nearest 1/65,536.

    Sixteen random bits an entry are a fifth of the time of PyTorch's Bernoulli numbers on a CPU, which would be most of
    what this connection costs.
    """
    below = round(p * 65536)
    words = torch.empty(-(-like.numel() // 4), dtype=torch.int64, device=like.device).random_(-(2**63), None)
    drawn = words.view(torch.int16)[: like.numel()].view(like.shape)
    return drawn >= below - 32768, 1 - below / 65536
