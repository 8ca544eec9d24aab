"""The numbered members of a model's lists, such as its layers: what comparing siblings asks for."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator

from residuum.stream import Residual, Stream


def blocks_around(path: str) -> Iterator[str]:
    """The modules that `path` is or lies in and whose names end in a number, outermost first.

    `stages.1` and `stages.1.layers.0` for `stages.1.layers.0.mlp`, `layer3` for `layer3.mlp`.
    """
    parts = path.split(".")
    for i, part in enumerate(parts):
        if part[-1:].isdigit():
            yield ".".join(parts[: i + 1])


def list_of(block: str) -> str:
    """The list that a numbered module is a member of: `layers` for `layers.3`, `blocks.block` for `blocks.block_3`."""
    return re.sub(r"[._-]*\d+$", "", block)


def blocks_of(residual: Residual) -> set[str]:
    """The blocks that hold the connection's sum or its branch."""
    return {*blocks_around(residual.module), *blocks_around(residual.branch)}


def depth(residuals: list[Residual]) -> int:
    """How many blocks hold the connections: members of the longest list; without a list, two connections a block."""
    return len(_longest_list(residuals)) or -(-len(residuals) // 2)


def peers(residual: Residual, stream: Stream) -> list[Residual]:
    """The stream's connections at the same place of their blocks: `layers.0.mlp`, `layers.1.mlp` and so on."""
    blocks = _longest_list(stream.residuals)
    place = _place(residual, blocks)
    return [other for other in stream.residuals if _place(other, blocks) == place]


def _longest_list(residuals: list[Residual]) -> set[str]:
    members: dict[str, set[str]] = defaultdict(set)
    for residual in residuals:
        for block in blocks_of(residual):
            members[list_of(block)].add(block)
    return max(members.values(), key=len, default=set())


def _place(residual: Residual, blocks: set[str]) -> str:
    path = residual.branch or residual.module
    block = next((block for block in blocks_around(path) if block in blocks), "")
    return path[len(block) :] if block else path
