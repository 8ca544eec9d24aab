"""The numbered members of a model's lists, such as its layers: what rules that compare siblings ask for."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator

from residuum.stream import Residual


def blocks_around(path: str) -> Iterator[str]:
    """The numbered modules that `path` is or lies in: `stages.1`, `stages.1.layers.0` for `stages.1.layers.0.mlp`."""
    parts = path.split(".")
    for i, part in enumerate(parts):
        if part.isdigit():
            yield ".".join(parts[: i + 1])


def list_of(block: str) -> str:
    """The list that a numbered module is a member of: `layers` for `layers.3`."""
    return block.rpartition(".")[0]


def blocks_of(residual: Residual) -> set[str]:
    """The blocks that hold the connection's sum or its branch."""
    return {*blocks_around(residual.module), *blocks_around(residual.branch)}


def depth(residuals: Iterable[Residual]) -> int:
    """How many blocks hold the connections: members of the longest list; without a list, two connections a block."""
    residuals = list(residuals)
    members: dict[str, set[str]] = defaultdict(set)
    for residual in residuals:
        for block in blocks_of(residual):
            members[list_of(block)].add(block)
    return max(map(len, members.values()), default=-(-len(residuals) // 2))
