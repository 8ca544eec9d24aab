"""The first weights of a connection that has its own way to keep the stream's variance."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

if TYPE_CHECKING:
    from residuum.model.transformer import Transformer


def plain(model: Transformer) -> None:
    """Each branch's last matrix ~ N(0, init_std²), as all others: without GPT-2's division by √(2 n_layers)."""
    for _, branch in model.connections():
        _, last = branch.value_path()
        for part in last:
            nn.init.normal_(part.weight, std=model.config.init_std)
