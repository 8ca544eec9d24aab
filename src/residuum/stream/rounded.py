"""What the maps of a model whose weights are rounded say: their levels, and whether they learn."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from residuum.stream import ops
from residuum.stream.block import block_of
from residuum.stream.forward import SWAP
from residuum.stream.levels import LevelCapture, Rounded
from residuum.stream.node import Node
from residuum.stream.weights import leaves


@dataclass(frozen=True)
class RoundedMap:
    """A product with a weight that was rounded, in `module`; `parameters` are those that are rounded.

    `shares` are those of −1, 0 and 1 among its levels, None if it has others. `dead_outputs` is the share of a ternary
    map's outputs all of whose weights are 0. `learns`: a gradient comes back to its parameters entry by entry.
    `block` is the block of the parameter that they are ('[3]' of stacked experts, '[64:96]' of a fused projection), ''
    for all of it, None where it cannot be told. `sample` holds the levels, of `shape`, of at most 65,536 weights, the
    same ones at every look. `read` has two shares of what the map reads, of a sample as large: those that rounding made
    0, and those at the largest level; None where no rounding of it was seen.
    """

    module: str
    parameters: tuple[str, ...]
    shares: tuple[float, float, float] | None
    dead_outputs: float | None
    learns: bool
    block: str | None
    shape: torch.Size
    sample: Tensor = field(repr=False, compare=False)
    read: tuple[float, float] | None

    @property
    def name(self) -> str:
        """Its parameter's, where it has one, and the block of it: 'experts.up[3]'; '[?]' where that cannot be told."""
        whole = self.parameters[0] if len(self.parameters) == 1 else self.module
        return whole + ("[?]" if self.block is None else self.block)


def rounded_maps(capture: LevelCapture, names: dict[Node, str]) -> Iterator[RoundedMap]:
    """Each once, however often it ran, in the order in which they ran."""
    seen: set[tuple[str, tuple[str, ...], str | Node]] = set()
    for rounded in capture.rounded:
        behind = leaves([rounded.levels])
        masters = [node for node in behind if node.shape.numel() >= rounded.levels.shape.numel()]
        parameters = tuple(
            names[node] for node in sorted(masters or behind, key=lambda each: each.index) if node in names
        )
        module, block = rounded.product.module, block_of(rounded.levels, capture.cuts)
        key = (module, parameters, rounded.levels if block is None else block)
        if key in seen:
            continue
        seen.add(key)
        kept, size = capture.levels[rounded.levels], rounded.levels.shape.numel()
        shares = dead = None
        if bool(kept.ternary):
            minus, zero = int(kept.minus) / size, int(kept.zero) / size
            shares = (minus, zero, 1 - minus - zero)
            dead = float(kept.zero_lines[_outputs(rounded)]) if kept.zero_lines else None
        read = None if rounded.read is None else capture.reads[rounded.read]
        yield RoundedMap(
            module,
            parameters,
            shares,
            dead,
            rounded.learns,
            block,
            rounded.levels.shape,
            kept.sample,
            (float(read.lost), float(read.top)) if read is not None else None,
        )


def _outputs(rounded: Rounded) -> int:
    """The axis of the levels along which outputs lie: the first as `linear` takes a weight, the last as `@` does."""
    node, swaps = rounded.weight, 0
    while node.op in ops.VIEW and node.inputs:
        swaps += node.op in SWAP
        node = node.inputs[0]
    return (int(rounded.product.op != "linear") + swaps) % 2
