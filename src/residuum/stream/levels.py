"""Weights that pass through a rounding on their way to the activations: how many values are left of them?"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from residuum.stream import ops
from residuum.stream.capture import Capture
from residuum.stream.node import WEIGHT, Node

# Functions that leave a few values of many; a limit may then leave fewer.
ROUND = frozenset(
    {"round", "round_", "floor", "floor_", "ceil", "ceil_", "trunc", "trunc_", "fix", "sign", "sign_", "sgn"}
)


class LevelCapture(Capture):
    """A capture that also notes, of each rounded weight, whether all its entries have become one value."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._same: dict[Node, Tensor] = {}
        super().__init__(*args, **kwargs)

    def collapsed(self) -> list[Node]:
        """The rounded weights that hold one value only, in the order in which they were made."""
        return [node for node, same in self._same.items() if bool(same)]

    def _record(self, op: str, inputs: tuple[Node, ...], role: str, value: Tensor) -> Node:
        node = super()._record(op, inputs, role, value)
        rounded = op in ROUND or (op in ops.CLAMP and any(n in self._same for n in inputs))
        if role == WEIGHT and rounded and value.numel() > 1 and not value.is_meta:
            self._same[node] = torch.eq(*value.detach().aminmax())
        return node
