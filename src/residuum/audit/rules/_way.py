"""The identity path, node by node: what rules about the skip ask for."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from residuum.audit.rules._blocks import blocks_of
from residuum.stream.carry import carried
from residuum.stream.graph import Residual, Stream
from residuum.stream.node import Node
from residuum.stream.normalisation import normalised_by


def skip_nodes(residual: Residual) -> list[Node]:
    """What the skip passes between the fork and the sum, newest first."""
    connection = residual.connection
    return way_back(connection.skip, connection.fork, connection.projected) or []


def nodes_between(stream: Stream) -> Iterator[tuple[Residual, Residual, list[Node]]]:
    """(earlier, later, nodes) of connections in a row: what the state passes from one sum to the fork of the next.

    Between a connection outside all blocks (wav2vec 2's convolved positions) and the first block the state is still
    being embedded; what it passes there is left out.
    """
    for earlier, later in zip(stream.residuals, stream.residuals[1:], strict=False):
        if blocks_of(later) and not blocks_of(earlier):
            continue
        yield earlier, later, way_back(later.connection.fork, earlier.connection.sum) or []


def way_back(
    start: Node, end: Node, projected: bool = False, closed: Callable[[Node], bool] | None = None
) -> list[Node] | None:
    """The nodes through which `start` still carries `end`, norms and activation functions among them, `end` not.

    None if there is no such way, or none that passes no `closed` node.
    """
    came_from: dict[Node, Node | None] = {start: None}
    pending = [start]
    while pending:
        node = pending.pop()
        if node is end:
            return _walked(came_from, node)
        if node.index < end.index or (closed is not None and closed(node)):
            continue
        for parent in _carries_on(node, projected):
            if parent not in came_from:
                came_from[parent] = node
                pending.append(parent)
    return None


def _carries_on(node: Node, projected: bool) -> list[Node]:
    value = normalised_by(node)
    if value is not None:
        return [value]
    if operands := carried(node):
        return operands
    shaped_alike = len(node.activations) == 1 and node.activations[0].shape == node.shape and not node.transforms
    return node.activations[:1] if projected or shaped_alike else []


def _walked(came_from: dict[Node, Node | None], end: Node) -> list[Node]:
    nodes = []
    node = came_from[end]
    while node is not None:
        nodes.append(node)
        node = came_from[node]
    return nodes[::-1]
