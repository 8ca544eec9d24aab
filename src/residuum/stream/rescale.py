"""A scale that was taken out of what a map reads, or of its weight, and is put back into what it gives.

Quantised maps multiply whole numbers and give their sizes back afterwards: y = s_x s_W · round(W / s_W) round(x / s_x).
Such a scale is part of the map: neither a gate nor a scale of the connection.
"""

from __future__ import annotations

from residuum.stream import ops
from residuum.stream.carry import carried
from residuum.stream.connection import behind
from residuum.stream.node import ACTIVATION, WEIGHT, Connection, Node
from residuum.stream.weights import leaves

STATISTIC = ops.STATISTIC | {"max", "amax", "min", "amin", "aminmax", "median", "quantile", "logsumexp"}
SQUASH = ops.GATE | {"tanh", "tanh_"}


def rescales(product: Node, of: Node, connection: Connection) -> bool:
    """Whether all that `product`, on a write's way, multiplies by belongs to the map `of`, whose result it carries.

    That is a statistic of what the map was computed from (the largest entry of a token, say), what is computed from the
    map's own weights, and what the map's own module holds beside them, for c (W x) = (c W) x.
    """
    if not of.transforms:
        return False
    value = carried(product)[0]
    factors = list(product.inputs)
    factors.remove(value)
    before = behind((value,), connection.fork) | {connection.fork}
    passed = [_statistic(factor, before) for factor in factors]
    if None in passed:
        return False
    learned = [node for nodes in passed for node in nodes or () if node.role == WEIGHT]
    fixed = product.factor is not None or any(each.role not in (ACTIVATION, WEIGHT) for each in factors)
    own = leaves([each for each in of.inputs if each.role == WEIGHT])
    return leaves(learned) <= own and (not fixed or of.module == product.module != connection.sum.module)


def _statistic(factor: Node, values: set[Node]) -> set[Node] | None:
    """What a factor reads besides statistics of `values`; None if it is more than a size: a map, a gate."""
    pending, seen, apart = [(factor, False)], set(), set()
    while pending:
        node, reduced = pending.pop()
        if node.role != ACTIVATION:
            apart.add(node)
        elif not (reduced and node in values) and (node, reduced) not in seen:
            seen.add((node, reduced))
            if not node.inputs or node.op in SQUASH or (node.transforms and node.op not in ops.MULTIPLY):
                return None
            pending += [(each, reduced or _reduces(node)) for each in node.inputs]
    return apart


def _reduces(node: Node) -> bool:
    return node.op in STATISTIC and node.shape.numel() < node.inputs[0].shape.numel()
