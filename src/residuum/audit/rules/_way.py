"""The identity path, node by node: what rules about the skip ask for."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from residuum.audit.rules._blocks import blocks_of
from residuum.stream import ops
from residuum.stream.carry import carried
from residuum.stream.graph import Residual, Stream
from residuum.stream.node import CONSTANT, Node
from residuum.stream.normalisation import normalised_by

_RANDOM = frozenset({"rand", "rand_like", "randn", "randn_like", "bernoulli", "bernoulli_", "uniform_", "normal_"})


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


def drops_by_hand(node: Node) -> bool:
    """Whether a product's other operand comes from a random function and from no activation."""
    if node.op not in ops.MULTIPLY:
        return False
    pending = [operand for operand in node.inputs if operand.role == CONSTANT]
    seen: set[Node] = set()
    while pending:
        other = pending.pop()
        if other.op in _RANDOM:
            return True
        if other not in seen:
            seen.add(other)
            pending += other.inputs
    return False


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
