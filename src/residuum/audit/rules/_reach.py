"""How much of the gradient at a stream's last connection arrives at its first: what RS201 and RS202 both ask."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from statistics import median

from residuum.audit.finding import Skip, place
from residuum.stream import Flow, Residual

# With fewer connections a median says nothing of what more of them would do.
ENOUGH = 4


@dataclass(frozen=True)
class Reach:
    """The gradient at the first connection over that at the last, and what one connection multiplies it by.

    `factor` is e to the median slope over all pairs (Theil 1950, Sen 1968), so that neither one place (a small
    embedding that is scaled up once) decides, nor two kinds of connection that take turns; None in a stream of fewer
    than four connections.
    """

    first: Residual
    last: Residual
    ratio: float
    factor: float | None

    @property
    def each(self) -> str:
        """Where the factor was measured, in words."""
        return f"between {place(self.first)} and {place(self.last)}"


def reach(flow: Flow) -> Iterator[Reach]:
    """One for every stream with at least two connections that carry a gradient."""
    found = False
    for stream in flow.measured:
        arriving = [(m.residual, m.backward.arriving) for m in stream if m.backward is not None]
        carrying = [(residual, size) for residual, size in arriving if 0 < size < math.inf]
        if len(carrying) > 1:
            found = True
            (first, at_first), (last, at_last) = carrying[0], carrying[-1]
            factor = _factor([size for _, size in carrying]) if len(carrying) >= ENOUGH else None
            yield Reach(first, last, at_first / at_last, factor)
    if not found:
        raise Skip("no stream has two connections that carry a finite gradient")


def _factor(sizes: list[float]) -> float:
    logs = [math.log(size) for size in sizes]
    return math.exp(median((a - b) / (j - i) for (i, a), (j, b) in combinations(enumerate(logs), 2)))
