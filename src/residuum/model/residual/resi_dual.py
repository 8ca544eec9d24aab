"""ResiDual: post-norm beside a second stream that sums every write and is never normalised on its way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from residuum.model.config import ModelConfig
from residuum.model.gradient import Saved
from residuum.model.norm import make_norm
from residuum.model.residual.base import Branch, Receiver, Residual, Stream, joined, register
from residuum.model.residual.xavier import xavier

if TYPE_CHECKING:
    from residuum.model.transformer import Transformer

Both = tuple[Stream, Stream]


@register("resi-dual")
class ResiDual(Residual):
    """x ← norm(x + w), d ← d + w with the write w = f(x); d begins as x, and norm(d) + x is read at the end.

    The write has two readers: dw = J_normᵀ gx + gd, so what d carries back passes no norm. At the start: Xavier's
    values, as in post-norm. Source: Xie et al. 2023, https://arxiv.org/abs/2304.14802.
    """

    use = "Where post-norm is wanted at a depth at which its gradient would vanish."

    final_norm = False

    def __init__(self, config: ModelConfig, place: int) -> None:
        super().__init__(config, place)
        self.norm = make_norm(config)
        if place == self.n_places - 1:
            self.end_norm = make_norm(config)

    @classmethod
    def initialise(cls, model: Transformer) -> None:
        xavier(model)

    def begin(self, x: Stream) -> Both:
        return x, x

    def begin_backward(self, dstate: Both) -> Stream:
        dx, dd = dstate
        return dx + dd

    def forward(self, state: Both, branch: Branch, *args: Any) -> Both:
        x, d = state
        write = branch(x, *args)
        return self.norm(x + write), d + write

    def explicit_forward(self, state: Both, branch: Branch, *args: Any) -> tuple[Both, Saved]:
        x, d = state
        write, of_branch = branch.explicit_forward(x, *args)
        y, of_norm = self.norm.explicit_forward(x + write)
        return (y, d + write), (branch, of_norm, of_branch)

    def explicit_backward(self, dstate: Both, saved: Saved, parts: Receiver | None = None) -> Both:
        branch, of_norm, of_branch = saved
        dy, dd = dstate
        dsum = self.norm.explicit_backward(dy, of_norm)
        return joined(dsum, branch.explicit_backward(dsum + dd, of_branch), parts), dd

    def end(self, state: Both) -> Stream:
        x, d = state
        return x + self.end_norm(d)

    def explicit_end(self, state: Both) -> tuple[Stream, Saved]:
        x, d = state
        normed, of_norm = self.end_norm.explicit_forward(d)
        return normed.add_(x), of_norm

    def explicit_end_backward(self, dx: Stream, saved: Saved) -> Both:
        return dx, self.end_norm.explicit_backward(dx, saved)
