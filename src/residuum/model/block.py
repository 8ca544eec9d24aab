"""A block: attention, then feed-forward, each joined to the stream by a residual connection."""

from __future__ import annotations

from jaxtyping import Bool
from torch import Tensor, nn

from residuum.model.attention import Attention, LayerCache
from residuum.model.config import ModelConfig
from residuum.model.feedforward import make_feedforward
from residuum.model.gradient import Saved
from residuum.model.residual import Receiver, State, residual_of


class Block(nn.Module):
    """The `layer`-th block (from 0): the stream's state in, the state two connections later out."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        residual = residual_of(config)
        self.attn_residual = residual(config, 2 * layer)
        self.attn = Attention(config)
        self.ff_residual = residual(config, 2 * layer + 1)
        self.ff = make_feedforward(config)

    def forward(
        self,
        state: State,
        angles: tuple[Tensor, Tensor] | None = None,
        mask: Bool[Tensor, "batch pos"] | None = None,
        cache: LayerCache | None = None,
    ) -> State:
        state = self.attn_residual(state, self.attn, angles, mask, cache)
        return self.ff_residual(state, self.ff)

    def explicit_forward(
        self,
        state: State,
        angles: tuple[Tensor, Tensor] | None = None,
        mask: Bool[Tensor, "batch pos"] | None = None,
    ) -> tuple[State, Saved]:
        state, of_attn = self.attn_residual.explicit_forward(state, self.attn, angles, mask)
        state, of_ff = self.ff_residual.explicit_forward(state, self.ff)
        return state, (of_attn, of_ff)

    def explicit_backward(self, dstate: State, saved: Saved, parts: Receiver | None = None) -> State:
        """`parts` receives both parts of the gradient at each connection, the last connection's first."""
        of_attn, of_ff = saved
        del saved  # so that what each connection kept is freed as soon as it is used
        dstate = self.ff_residual.explicit_backward(dstate, of_ff, parts)
        del of_ff
        return self.attn_residual.explicit_backward(dstate, of_attn, parts)
