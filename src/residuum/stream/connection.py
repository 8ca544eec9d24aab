"""What a residual connection is, decided from the operations alone.

    y = x + f(x)

An addition is a residual connection if one operand, the *skip*, still carries an earlier value x (through nothing but
views, casts, scales, gates and dropout), and the other, the *write*, was computed from the same x through a parametric
operation. That x is where the stream *forks*.
"""

from __future__ import annotations

from heapq import heappop, heappush

from residuum.stream import ops
from residuum.stream.node import ACTIVATION, Node
from residuum.stream.normalisation import normalised_by


def find_fork(a: Node, b: Node) -> tuple[Node, Node, Node, bool] | None:
    """(skip, write, fork, projected) if `a + b` is a residual connection, None if it is an ordinary sum."""
    if not (a.role == b.role == ACTIVATION) or a.shape != b.shape or len(a.shape) < 2:
        return None
    found = [(skip, write, fork, False) for skip, write in ((a, b), (b, a)) if (fork := _fork(skip, write))]
    if not found:
        found = [
            (skip, write, fork, True) for skip, write in ((a, b), (b, a)) if (fork := _projected_fork(skip, write))
        ]
    return max(found, key=lambda each: each[2].index, default=None)


def carried(node: Node) -> list[Node]:
    """The operands whose value `node` carries on: all of a view or a cast, a factor of a product, the skip of a sum."""
    if node.connection is not None:
        return [node.connection.skip]
    if node.op in ops.VIEW or node.op in ops.DROPOUT:
        return node.activations[:1]
    if node.op in ops.MULTIPLY:
        return [operand for operand in node.activations if operand.shape == node.shape]
    if node.op in ops.ADD and len(node.activations) == 1:
        return node.activations
    return []


def _fork(skip: Node, write: Node) -> Node | None:
    """The nearest value that `skip` carries and from which `write` was computed by a parametric operation.

    Both are walked back together, newest first, so only what lies between fork and sum is looked at.
    """
    carriers = [skip]
    pending = [(write, False)]
    reached = {(write, False)}
    while carriers and pending:
        state = heappop(carriers)
        while pending and pending[0][0].index > state.index:
            node, parametric = heappop(pending)
            parametric = parametric or node.parametric
            for parent in node.activations:
                if (parent, parametric) not in reached:
                    reached.add((parent, parametric))
                    heappush(pending, (parent, parametric))
        if (state, True) in reached:
            return state
        for parent in carried(state):
            heappush(carriers, parent)
    return None


def _projected_fork(skip: Node, write: Node) -> Node | None:
    """The fork of a skip that changes width on its way, as in ResNet's down-sampling.

    Such a skip passes one linear map; the write passes two or more with a non-linearity between them, which is what
    tells it from the two linear maps of a low-rank adapter beside its base layer.
    """
    fork, maps = skip, 0
    while maps == 0:
        if not fork.activations or not (fork.parametric or fork.op in ops.NORM or fork.op in ops.VIEW):
            return None
        maps += fork.parametric
        fork = fork.activations[0]
    pending = [(write, 0, False)]
    reached = set()
    while pending:
        node, maps, bent = heappop(pending)
        if node is fork and maps == 2 and bent:
            return fork
        if node.index <= fork.index or (node, maps, bent) in reached:
            continue
        reached.add((node, maps, bent))
        bent = bent or (maps == 1 and not (node.parametric or _is_linear(node)))
        maps = min(maps + node.parametric, 2)
        for parent in node.activations:
            heappush(pending, (parent, maps, bent))
    return None


def _is_linear(node: Node) -> bool:
    return node.op in ops.VIEW or node.op in ops.ADD or normalised_by(node) is not None
