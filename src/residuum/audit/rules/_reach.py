"""How much of the gradient at a stream's last connection arrives at its first: what RS201 and RS202 both ask."""

from __future__ import annotations

import math
from collections.abc import Iterator

from residuum.audit.finding import Skip
from residuum.stream import Flow, Residual


def reach(flow: Flow) -> Iterator[tuple[Residual, Residual, float]]:
    """(first, last, ratio) of every stream with at least two connections that carry a gradient."""
    found = False
    for stream in flow.measured:
        carrying = [m for m in stream if m.backward is not None and m.backward.arriving > 0]
        finite = [m for m in carrying if m.backward is not None and math.isfinite(m.backward.arriving)]
        if len(finite) > 1 and finite[0].backward and finite[-1].backward:
            found = True
            yield finite[0].residual, finite[-1].residual, finite[0].backward.arriving / finite[-1].backward.arriving
    if not found:
        raise Skip("no stream has two connections that carry a finite gradient")
