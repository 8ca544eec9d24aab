"""Xavier's first weights, which the original Transformer and its descendants take."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from residuum.model.linear import Linear

if TYPE_CHECKING:
    from residuum.model.transformer import Transformer


def xavier(model: Transformer, value_gain: float = 1.0) -> None:
    """W ~ U(−a, a) with a = gain √(6 / (d_in + d_out)); the gain is `value_gain` on each branch's value path, else 1.

    Source: Glorot, Bengio 2010, https://proceedings.mlr.press/v9/glorot10a.html.
    """
    for _, branch in model.connections():
        inner, last = branch.value_path()
        for part in branch.modules():
            if isinstance(part, Linear):
                nn.init.xavier_uniform_(part.weight, value_gain if part in (*inner, *last) else 1.0)
