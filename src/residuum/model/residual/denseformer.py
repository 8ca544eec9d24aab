"""DenseFormer: after each block, a learned sum over what every block so far has put out."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from residuum.model.config import ModelConfig
from residuum.model.gradient import Saved, accumulate
from residuum.model.norm import make_norm
from residuum.model.precision import inner
from residuum.model.residual.base import Branch, Receiver, Residual, Stream, joined, register

State = tuple[Stream, ...]
"""x; then the embedding X_0 and the outputs X_1, X_2, … of the blocks so far."""


@register("denseformer")
class DenseFormer(Residual):
    """y = x + f(norm(x)), and after each block's feed-forward, with X_i that sum: y_i = Σ_{j ≤ i} α_ij X_j.

    X_0 is the embedding. The backward of the sum: dX_j = Σ_i α_ij g_i, dα_ij = ⟨g_i, X_j⟩; of the rest, pre-norm's. At
    the start α_ii = 1 and all others 0, which is pre-norm. The paper's dilation and period, which leave some X_j out of
    some sums, are not here. Source: Pagliardini et al. 2024, https://arxiv.org/abs/2402.02622.
    """

    use = "To let deep blocks read what early ones put out, where memory for every block's output is at hand."

    def __init__(self, config: ModelConfig, place: int) -> None:
        super().__init__(config, place)
        self.norm = make_norm(config)
        if place % 2:
            alpha = torch.zeros(place // 2 + 2)
            alpha[-1] = 1
            self.alpha = nn.Parameter(alpha)

    def begin(self, x: Stream) -> State:
        return x, x

    def begin_backward(self, dstate: State) -> Stream:
        dx, dembedding = dstate
        return dx + dembedding

    def forward(self, state: State, branch: Branch, *args: Any) -> State:
        x, *outputs = state
        y = x + branch(self.norm(x), *args)
        return self._summed([*outputs, y]) if self.place % 2 else (y, *outputs)

    def explicit_forward(self, state: State, branch: Branch, *args: Any) -> tuple[State, Saved]:
        x, *outputs = state
        normed, of_norm = self.norm.explicit_forward(x)
        write, (_, *of_branch) = branch.explicit_forward(normed, *args)
        y = x + write
        if self.place % 2 == 0:
            return (y, *outputs), (branch, (), of_norm, of_branch)
        outputs.append(y)
        return self._summed(outputs), (branch, tuple(outputs), of_norm, of_branch)

    def explicit_backward(self, dstate: Any, saved: Saved, parts: Receiver | None = None) -> Any:
        branch, outputs, of_norm, of_branch = saved
        dy, *doutputs = dstate
        if outputs:
            *doutputs, dy = self._summed_backward(dy, doutputs, outputs)
        dnormed = branch.explicit_backward(dy, (self.norm.explicit_again(of_norm), *of_branch))
        return joined(dy, self.norm.explicit_backward(dnormed, of_norm), parts), *doutputs

    def end(self, state: State) -> Stream:
        return state[0]

    def explicit_end(self, state: State) -> tuple[Stream, Saved]:
        return state[0], ()

    def explicit_end_backward(self, dx: Stream, saved: Saved) -> Any:
        del saved
        return dx, *[None] * (self.n_places // 2 + 1)  # after the last sum nobody reads any X_j

    def _summed(self, outputs: list[Stream]) -> State:
        y = outputs[-1] * self.alpha[-1]
        for j, output in enumerate(outputs[:-1]):
            y = torch.addcmul(y, output, self.alpha[j])
        return y, *outputs

    def _summed_backward(self, dy: Stream, doutputs: list[Stream | None], outputs: State) -> list[Stream]:
        """Each dX_j grows by α_j dy."""
        accumulate(self.alpha, torch.stack([inner(dy, output) for output in outputs]))
        alpha = self.alpha.detach()
        return [
            dy * alpha[j] if doutput is None else torch.addcmul(doutput, dy, alpha[j])
            for j, doutput in enumerate(doutputs)
        ]
