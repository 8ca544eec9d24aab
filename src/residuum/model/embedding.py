"""The token embedding."""

from __future__ import annotations

from torch import nn


class Embedding(nn.Embedding):
    """y = W[token], with W ~ N(0, std²) at the start. Shapes: W [vocab, d_model], y [batch, pos, d_model]."""

    weight: nn.Parameter

    def __init__(self, vocab_size: int, d_model: int, std: float) -> None:
        super().__init__(vocab_size, d_model)
        nn.init.normal_(self.weight, std=std)
