"""A small healthy pre-norm model whose parts a test can replace."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import residuum


class Stack(nn.Module):
    """Two linear maps with a bend between, five times."""

    def __init__(self, layers: int = 5, width: int = 12) -> None:
        super().__init__()
        self.embed = nn.Linear(7, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(layers))
        self.ups = nn.ModuleList(nn.Linear(width, 20) for _ in range(layers))
        self.downs = nn.ModuleList(nn.Linear(20, width) for _ in range(layers))
        self.last = nn.LayerNorm(width)
        self.out = nn.Linear(width, 3)

    def branch(self, i: int, x: Tensor) -> Tensor:
        return self.downs[i](torch.tanh(self.ups[i](self.norms[i](x))))

    def join(self, i: int, x: Tensor) -> Tensor:
        return x + self.branch(i, x)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for i in range(len(self.norms)):
            x = self.join(i, x)
        return self.out(self.last(x))


def variant(**methods: Any) -> Stack:
    """A stack with some of its methods replaced."""
    return type("Variant", (Stack,), methods)()


def found(model: nn.Module, code: str, **options: Any) -> list[residuum.audit.Finding]:
    """The findings of one rule on five examples of four positions."""
    torch.manual_seed(1)
    return [f for f in residuum.audit(model, torch.randn(5, 4, 7), **options).findings if f.code == code]
