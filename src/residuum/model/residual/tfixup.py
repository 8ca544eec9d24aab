"""T-Fixup: no norms, and first weights so small that none are missed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from residuum.model.config import ModelConfig
from residuum.model.gradient import Saved
from residuum.model.residual.base import Branch, Receiver, Residual, Stream, joined, register
from residuum.model.residual.xavier import xavier

if TYPE_CHECKING:
    from residuum.model.transformer import Transformer


@register("tfixup")
class TFixup(Residual):
    """y = x + f(x), without a norm anywhere. Back: dL/dx = g + J_fᵀ g.

    First values: Xavier's, with a gain for the value and output projections and the feed-forward of (9 L)^−¼ in a
    decoder and 0.67 L^−¼ in an encoder; embeddings of standard deviation d_model^−½ (9 L)^−¼. The stream begins at
    √d_model times the embedding, as in the models of the paper: no norm would enlarge it later.

    Source: Huang et al. 2020, https://proceedings.mlr.press/v119/huang20f.html.
    """

    use = "To train without norms and without warm-up; for the first weights alone, as nothing else differs."

    final_norm = False

    def __init__(self, config: ModelConfig, place: int) -> None:
        super().__init__(config, place)
        self.enlarged = config.d_model**0.5

    @classmethod
    def initialise(cls, model: Transformer) -> None:
        decoder = (9 * model.config.n_layers) ** -0.25
        xavier(model, value_gain=decoder if model.config.causal else 0.67 * model.config.n_layers**-0.25)
        nn.init.normal_(model.embedding.weight, std=model.config.d_model**-0.5 * decoder)

    def begin(self, x: Stream) -> Stream:
        return x * self.enlarged

    def begin_backward(self, dstate: Stream) -> Stream:
        return dstate * self.enlarged

    def forward(self, x: Stream, branch: Branch, *args: Any) -> Stream:
        return x + branch(x, *args)

    def explicit_forward(self, x: Stream, branch: Branch, *args: Any) -> tuple[Stream, Saved]:
        write, of_branch = branch.explicit_forward(x, *args)
        return x + write, (branch, of_branch)

    def explicit_backward(self, dy: Stream, saved: Saved, parts: Receiver | None = None) -> Stream:
        branch, of_branch = saved
        return joined(dy, branch.explicit_backward(dy, of_branch), parts)
