"""The engine whose backward is derived by hand: the forward's parts in exact reverse order, and no graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from residuum.model import ModelConfig, Transformer
from residuum.model.block import Block
from residuum.model.cross_entropy import explicit_cross_entropy

if TYPE_CHECKING:
    from residuum.engine.engine import Batch


class Explicit:
    """`explicit_forward` from part to part, then `explicit_backward` from the last to the first."""

    def __init__(self, segment: int | None = None) -> None:
        self.segment = segment

    def loss_and_grads(self, model: Transformer, batch: Batch, scale: float = 1.0, parts=None) -> Float[Tensor, ""]:
        tokens, targets = batch
        with torch.no_grad():
            x, of_embed = model.explicit_embed(tokens)
            angles = model.rotary(0, tokens.shape[1]) if model.rotary is not None else None
            blocks = list(model.blocks)
            size = self.segment or len(blocks)
            segments = [blocks[i : i + size] for i in range(0, len(blocks), size)]
            inputs = []
            for segment in segments[:-1]:
                inputs.append(x)
                for block in segment:
                    x = block.explicit_forward(x, angles)[0]
            x, saved = _forward(segments[-1], x, angles)
            if model.final_norm is not None:
                x, of_norm = model.final_norm.explicit_forward(x)
            loss, dx = explicit_cross_entropy(x, model.head, targets, scale)
            del x
            if model.final_norm is not None:
                dx = model.final_norm.explicit_backward(dx, of_norm)
                del of_norm
            dx = _backward(segments[-1], dx, saved, parts)
            for segment in reversed(segments[:-1]):
                dx = _backward(segment, dx, _forward(segment, inputs.pop(), angles)[1], parts)
            model.explicit_embed_backward(dx, of_embed)
        return loss

def _forward(blocks, x, angles):
    saved = []
    for block in blocks:
        x, kept = block.explicit_forward(x, angles)
        saved.append(kept)
        del kept
    return x, saved

def _backward(blocks, dx, saved, parts):
    for block in reversed(blocks):
        dx = block.explicit_backward(dx, saved.pop(), parts)
    return dx
