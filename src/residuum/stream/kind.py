"""What kind a connection is: what its skip and its writes pass on their way to the sum."""

from __future__ import annotations

from residuum.stream import ops
from residuum.stream.carry import carried
from residuum.stream.node import CONSTANT, WEIGHT, Connection, Node
from residuum.stream.normalisation import normalised_by
from residuum.stream.projection import mixes_streams
from residuum.stream.rescale import rescales


def kind_of(connection: Connection) -> str:
    """identity, scaled, gated, dropout, projected or multi-stream."""
    skip = _path(connection.skip, connection.fork)
    if mixes_streams(_whole(connection.fork)):
        return "multi-stream"
    if connection.projected:
        return "multi-stream" if any(mixes_streams(node) for node in skip) else "projected"
    if any(_is_dropout(node) for node in skip):
        return "dropout"
    if connection.sum.op in ops.LERP:
        return "gated" if len(connection.sum.activations) > 2 else "scaled"
    normed = any(normalised_by(node) is not None for node in skip)
    products = [] if normed else [node for node in skip if node.op in ops.MULTIPLY]
    for write in connection.writes:
        steps, end = _steps(write)
        # Stochastic depth divides what it keeps by the chance of keeping it: that is no scale of the connection's own.
        dropped = any(_is_dropout(node) for node in steps)
        scales = [node for node in steps if node.op in ops.MULTIPLY and not _is_dropout(node)]
        scales = [node for node in scales if not rescales(node, end, connection)]
        products += [node for node in scales if not dropped or _learned(node)]
    if any(len(node.activations) > 1 for node in products):
        return "gated"
    return "scaled" if products or normed or connection.sum.factor is not None else "identity"


def _is_dropout(node: Node) -> bool:
    """PyTorch's own, or a product with a mask made of random numbers (stochastic depth)."""
    if node.op in ops.DROPOUT:
        return True
    if node.op not in ops.MULTIPLY:
        return False
    pending = [each for each in node.inputs if each.role == CONSTANT]
    while pending:
        each = pending.pop()
        if each.op in ops.RANDOM:
            return True
        pending += each.inputs
    return False


def _learned(product: Node) -> bool:
    return any(node.role == WEIGHT for node in product.inputs) or len(product.activations) > 1


def _path(node: Node, end: Node) -> list[Node]:
    """What the skip passes on its way from the fork `end` to the sum."""
    pending: list[list[Node]] = [[node]]
    seen = {node}
    while pending:
        path = pending.pop()
        if path[-1] is end:
            return path[:-1]
        for each in path[-1].inputs:
            if each not in seen and each.index >= end.index:
                seen.add(each)
                pending.append([*path, each])
    return []


def _whole(node: Node) -> Node:
    """What `node` is a part of."""
    while node.op in ops.CARRY and node.activations:
        node = node.activations[0]
    return node


def _steps(node: Node) -> tuple[list[Node], Node]:
    """What a write passes unchanged but for scale on its way to the sum, up to a norm, whose own gain is no scale; and
    what it was before."""
    steps = []
    while node.connection is None and normalised_by(node) is None and carried(node):
        steps.append(node)
        node = carried(node)[0]
    if normalised_by(node) is not None and not any(each.role == WEIGHT for each in node.inputs):
        gain = next((step for step in reversed(steps) if any(each.role == WEIGHT for each in step.inputs)), None)
        steps = [step for step in steps if step is not gain]
    return steps, node
