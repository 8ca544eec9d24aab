"""The connections of a stream as a person reads them: one a row, long repetitive stacks folded."""

from __future__ import annotations

import math
import re
from typing import NamedTuple

from residuum.stream import Backward, Forward, Measured, Residual

# A stream of more rows than fit a screen is folded, where at least this many blocks in a row look the same: the first
# and the last are shown as they are, and what lies between in one line per connection.
SCREEN, LEAST_REPEATS = 40, 4
# Of how many connections the longest repeated block may consist. Hybrids repeat patterns of 8 layers, two each.
LONGEST_BLOCK = 32


class Row(NamedTuple):
    """One connection, and what was measured there, if anything was."""

    residual: Residual
    measured: Measured | None = None

    @property
    def name(self) -> str:
        return self.residual.branch or self.residual.module or "the model"

    @property
    def forward(self) -> Forward | None:
        return self.measured.forward if self.measured else None

    @property
    def backward(self) -> Backward | None:
        return self.measured.backward if self.measured else None


def fold(rows: list[Row]) -> list[list[Row]]:
    """Groups of rows to show as one line each: of one row, or of the same connection of consecutive equal blocks."""
    if len(rows) <= SCREEN:
        return [[row] for row in rows]
    looks = [
        (row.residual.kind, row.residual.placement, row.residual.source, re.sub(r"\d+", "#", row.name)) for row in rows
    ]
    groups, start = [], 0
    while start < len(rows):
        block, repeats = _repetition(looks, start)
        end = start + block * repeats
        if repeats < LEAST_REPEATS:
            groups += [[rows[start]]]
            start += 1
            continue
        groups += [[row] for row in rows[start : start + block]]
        groups += [rows[start + block + i : end - block : block] for i in range(block)]
        groups += [[row] for row in rows[end - block : end]]
        start = end
    return groups


def name_of(group: list[Row]) -> str:
    """The name that the rows share, such as h.1…10.attn for the attention of ten blocks."""
    first, last = (re.split(r"(\d+)", row.name) for row in (group[0], group[-1]))
    parts = [a if a == b else f"{a}…{b}" for a, b in zip(first, last, strict=True)]
    return "".join(parts)


def index_of(group: list[Row]) -> str:
    """The connection's number, or the first and the last."""
    first, last = group[0].residual.index, group[-1].residual.index
    return str(first) if len(group) == 1 else f"{first}–{last}"


def span(values: list[float], spec: str, dash: str = "–") -> str:
    """The values as one text: the one that they are, or the least and the largest; nan where one is no number."""
    if any(math.isnan(value) for value in values):
        return "nan"
    least, largest = format(min(values), spec), format(max(values), spec)
    return least if least == largest else f"{least}{dash}{largest}"


def _repetition(looks: list[tuple], start: int) -> tuple[int, int]:
    """(connections in a block, blocks) of the repetition from `start` that covers most, in the smallest blocks."""
    best = (1, 1)
    for block in range(1, min(LONGEST_BLOCK, len(looks) - start) + 1):
        repeats = 1
        while looks[start + repeats * block :][:block] == looks[start : start + block]:
            repeats += 1
        if repeats >= LEAST_REPEATS and block * repeats > math.prod(best):
            best = (block, repeats)
    return best
