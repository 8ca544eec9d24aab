"""RS105: the stream ends in a projection, and another of a different width goes on."""

from __future__ import annotations

from collections.abc import Iterator

from residuum.audit.finding import Evidence, Finding, Rule, place
from residuum.stream import Residual, ResidualGraph
from residuum.stream.node import Node


class WidthChange(Rule):
    """Between two connections stands one linear map to another width: no identity path crosses it.

    The state of a stream is followed back from its first connection; where one weighted operation alone lies between it
    and the last state of another stream, and the width (the last axis, of positions by width) differs, the stream was
    cut there. Exact, so no threshold. Where the positions change as well, as in vision's pyramids (Swin) and strided
    encoders, and for maps with spatial axes, it is a design and only news.
    """

    code = "RS105"
    severity = "warning"
    title = "stream changes width"
    mend = "keep one width along the stream, or give the skip a projection of its own: self.project(x) + f(x)"
    example = """
x = self.widen(x)  # faulty: 512 to 768, and every gradient passes this map
x = self.project(x) + self.block(x)  # mended: a projected skip beside the wider block
"""

    def check(self, seen: Evidence) -> Iterator[Finding]:
        for stream in seen.graph.streams:
            first = stream.residuals[0]
            last = _cut_before(first, seen.graph)
            if last is None or last.shape == first.shape:
                continue
            pyramid = len(first.shape) > 3 or first.shape[:-1] != last.shape[:-1]
            if not pyramid or first.shape[-1] != last.shape[-1]:
                widths = f"from {_shape(last)} after {place(last)} to {_shape(first)} before {place(first)}"
                yield self.finding(f"the stream goes {widths}", first, "info" if pyramid else None)


def _cut_before(first: Residual, graph: ResidualGraph) -> Residual | None:
    """The connection whose state, through one weighted operation, is where `first` begins."""
    maps = 0
    node: Node | None = first.connection.fork
    while node is not None and node.connection is None and maps < 2:
        maps += node.transforms
        node = next(iter(node.activations), None)
    if node is None or maps != 1:
        return None
    return next((r for r in graph.residuals if r.connection is node.connection), None)


def _shape(residual: Residual) -> str:
    return "×".join(str(size) for size in residual.shape)


RULE = WidthChange()
