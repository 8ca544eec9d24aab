"""What the maps of a model whose weights are rounded say: their levels, and whether they learn."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import Tensor

from residuum.stream import ops
from residuum.stream.forward import SWAP
from residuum.stream.levels import LevelCapture, Rounded
from residuum.stream.node import Node
from residuum.stream.weights import leaves


@dataclass(frozen=True)
class RoundedMap:
    """A product with a weight that was rounded, in `module`; `parameters` are those that are rounded.

    `shares` are those of −1, 0 and 1 among its levels, None if it has others. `dead_outputs` is the share of a ternary
    map's outputs all of whose weights are 0. `learns`: a gradient comes back to its parameters entry by entry.
    `sample` holds the levels of at most 65,536 weights, the same ones at every look.
    """

    module: str
    parameters: tuple[str, ...]
    shares: tuple[float, float, float] | None
    dead_outputs: float | None
    learns: bool
    sample: Tensor = field(repr=False, compare=False)

    @property
    def name(self) -> str:
        """Its parameter's, where it has one."""
        return self.parameters[0] if len(self.parameters) == 1 else self.module


def rounded_maps(capture: LevelCapture, names: dict[Node, str]) -> Iterator[RoundedMap]:
    """Each once, however often it ran, in the order in which they ran."""
    seen = set()
    for rounded in capture.rounded:
        behind = leaves([rounded.levels])
        masters = [node for node in behind if node.shape.numel() >= rounded.levels.shape.numel()]
        parameters = tuple(
            names[node] for node in sorted(masters or behind, key=lambda each: each.index) if node in names
        )
        if (rounded.product.module, parameters) in seen:
            continue
        seen.add((rounded.product.module, parameters))
        kept, size = capture.levels[rounded.levels], rounded.levels.shape.numel()
        shares = dead = None
        if bool(kept.ternary):
            minus, zero = int(kept.minus) / size, int(kept.zero) / size
            shares = (minus, zero, 1 - minus - zero)
            dead = float(kept.zero_lines[_outputs(rounded)]) if kept.zero_lines else None
        yield RoundedMap(rounded.product.module, parameters, shares, dead, rounded.learns, kept.sample)


def _outputs(rounded: Rounded) -> int:
    """The axis of the levels along which outputs lie: the first as `linear` takes a weight, the last as `@` does."""
    node, swaps = rounded.weight, 0
    while node.op in ops.VIEW and node.inputs:
        swaps += node.op in SWAP
        node = node.inputs[0]
    return (int(rounded.product.op != "linear") + swaps) % 2
