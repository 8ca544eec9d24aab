"""A stream from its beginning to its end: what a residual connection is measured in."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

from residuum.model import Block, ModelConfig
from residuum.model.gradient import Saved
from residuum.model.residual import Receiver

Stream = Float[Tensor, "batch pos d_model"]


class Stack(nn.Module):
    """The blocks of a Transformer: x [batch, pos, d_model] in, and what is read of the stream after them out."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        blocks = [Block(config, layer) for layer in range(config.n_layers)]
        self.blocks: Sequence[Block] = nn.ModuleList(blocks)  # type: ignore[assignment]

    def forward(self, x: Stream) -> Stream:
        state = self.blocks[0].attn_residual.begin(x)
        for block in self.blocks:
            state = block(state)
        return self.blocks[-1].ff_residual.end(state)

    def explicit_forward(self, x: Stream) -> tuple[Stream, Saved]:
        state, kept = self.blocks[0].attn_residual.begin(x), []
        for block in self.blocks:
            state, saved = block.explicit_forward(state)
            kept.append(saved)
        y, of_end = self.blocks[-1].ff_residual.explicit_end(state)
        return y, (kept, of_end)

    def explicit_backward(self, dy: Stream, saved: Saved, parts: Receiver | None = None) -> Stream:
        kept, of_end = saved
        dstate = self.blocks[-1].ff_residual.explicit_end_backward(dy, of_end)
        for block, of_block in zip(reversed(self.blocks), reversed(kept), strict=True):
            dstate = block.explicit_backward(dstate, of_block, parts)
        return self.blocks[0].attn_residual.begin_backward(dstate)
