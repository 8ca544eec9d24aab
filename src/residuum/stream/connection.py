"""What a residual connection is, decided from the operations alone.

    y = x + f(x)

An addition is a residual connection if one operand, the *skip*, still carries an earlier value x (through nothing but
norms and what `carry.py` lets pass), and the other, the *write*, was computed from the same x through an operation
that transforms: with weights, or by pooling or a Fourier transform. That x is where the stream *forks*.
"""

from __future__ import annotations

from heapq import heappop, heappush
from typing import NamedTuple

from residuum.stream import ops
from residuum.stream.carry import carried, picks_one
from residuum.stream.node import ACTIVATION, WEIGHT, Connection, Node
from residuum.stream.normalisation import normalised_by
from residuum.stream.projection import projected_fork

# A sum of more addends than these is an average over many values, not a state and what is written to it.
MOST = 4


class Fork(NamedTuple):
    """How addends make a residual connection: the one at `skip_at` is its skip, those at `writes_at` its writes.

    `beside` is the same connection before these addends joined it.
    """

    node: Node
    skip: Node
    writes: tuple[Node, ...]
    skip_at: int
    writes_at: tuple[int, ...]
    projected: bool = False
    beside: Connection | None = None


def find_fork(addends: list[Node], partial: bool = False) -> Fork | None:
    """How a sum is a residual connection, None if it is an ordinary one. `partial`: added to some rows of the first.

    A write depends on the input; the skip may be a weight, such as the learned queries that read an image.
    """
    if len(addends) > MOST:
        return None
    found = []
    for i, skip in enumerate(addends[:1] if partial else addends):
        if skip.role not in (ACTIVATION, WEIGHT):
            continue
        forks = {}
        for j, write in enumerate(addends):
            if j != i and _may_write(write, skip) and (partial or _fits(write, skip)):
                forks[j] = _fork(skip, write)
        nearest = max((fork for fork in forks.values() if fork), key=lambda fork: fork.index, default=None)
        if nearest is not None:
            writes_at = tuple(j for j, fork in forks.items() if fork is nearest)
            found.append(_joined(addends, i, writes_at, nearest))
    if not found and len(addends) == 2 and addends[0].role == addends[1].role == ACTIVATION and not partial:
        for i, skip in enumerate(addends):
            write = addends[1 - i]
            if skip.shape == write.shape and (fork := projected_fork(skip, write)):
                found.append(Fork(fork, skip, parallel_writes(write, fork), i, (1 - i,), projected=True))
    return max(found, key=lambda each: each.node.index, default=None)


def parallel_writes(write: Node, fork: Node) -> tuple[Node, ...]:
    """The writes that `write` is the sum of: branches that share nothing with weights between the fork and the sum.

    So attention and feed-forward of a parallel block are two, a base layer and its low-rank adapter are one.
    """
    if write.op not in ops.SUM or write.connection is not None or len(write.activations) != 2:
        return (write,)
    one, other = (_transforms_behind(addend, fork) for addend in write.activations)
    if not one or not other or one & other:
        return (write,)
    return tuple(part for addend in write.activations for part in parallel_writes(addend, fork))


def behind(nodes: tuple[Node, ...], fork: Node) -> set[Node]:
    """`nodes` and all that they were computed from, back to the fork."""
    pending, seen = list(nodes), set()
    while pending:
        node = pending.pop()
        if node in seen or node.index <= fork.index:
            continue
        seen.add(node)
        pending += node.activations
    return seen


def branch_of(connection: Connection) -> set[Node]:
    """The nodes between fork and writes, the writes among them."""
    return behind(connection.writes, connection.fork)


def _may_write(write: Node, skip: Node) -> bool:
    """Whether an addend depends on the input and is neither noise nor `q − x`, for x + (q − x) is q alone."""
    while write.op in ops.VIEW and write.inputs:
        write = write.inputs[0]
    if write.op in ops.MULTIPLY and any(node.op in ops.NOISE for node in write.inputs):
        return False
    replaces = write.op in ops.ADD - ops.SUM and len(write.activations) == 2 and write.activations[1] is skip
    return write.role == ACTIVATION and not replaces


def _fits(write: Node, skip: Node) -> bool:
    """The sum has the skip's shape: the write has it too, or is broadcast to it."""
    if write.shape == skip.shape:
        return len(skip.shape) > 0
    missing = len(skip.shape) - len(write.shape)
    return missing >= 0 and all(w in (1, s) for w, s in zip(write.shape, skip.shape[missing:], strict=True))


def _fork(skip: Node, write: Node) -> Node | None:
    """The nearest value that `skip` carries and from which `write` was computed by an operation with weights.

    Both are walked back together, newest first, so only what lies between fork and sum is looked at.
    """
    if (state := _state_0(skip, write)) is not None:
        return state
    learned = skip.role == WEIGHT
    carriers = [skip]
    seen = {skip}
    gated = skip.op in ops.MULTIPLY and len(skip.activations) > 1
    pending = [(write, False)]
    reached = {(write, False)}
    while carriers and pending:
        state = heappop(carriers)
        while pending and pending[0][0].index > state.index:
            node, transformed = heappop(pending)
            transformed = transformed or node.transforms
            for parent in node.inputs if learned else node.activations:
                if (parent, transformed) not in reached:
                    reached.add((parent, transformed))
                    heappush(pending, (parent, transformed))
        if (state, True) in reached:
            return state if _is_read(state, {node for node, _ in reached}) else None
        # A write that carries the state too is another part of it, or arithmetic on it: what lies behind the state is
        # then no fork for that.
        passed = (state, False)
        if pending and pending[0] == passed:
            heappop(pending)
        if state.connection is not None and pending and pending[0][0].index <= state.connection.root.index:
            parents = [state.connection.root]  # of what lies between, the write knows nothing
        elif (normed := normalised_by(state)) is not None:
            parents = [] if gated else [normed]
        else:
            parents = carried(state)
        for parent in parents:
            if parent not in seen and not picks_one(state):
                seen.add(parent)
                heappush(carriers, parent)
    return None


def _state_0(skip: Node, write: Node) -> Node | None:
    """State 0, added again to a later state: found without a walk through all that lies between."""
    while write.connection is None and (operands := carried(write)):
        write = operands[0]
    if write.connection is None:
        return None
    while skip.connection is None and (operands := carried(skip)):
        skip = operands[0]
    return skip if skip is write.connection.root else None


def _is_read(fork: Node, branch: set[Node]) -> bool:
    """Whether a branch reads the fork as its input, rather than adding it to something that came later.

    What is added again and again (a position's bias to every layer's scores, or its embedding to every layer's input)
    is behind all later values, and still no state.
    """
    value = {fork}
    for node in sorted(branch, key=lambda each: each.index):
        if value.isdisjoint(node.inputs):
            continue
        if node.op in ops.CARRY:
            value.add(node)
        elif node.op not in ops.ADD or node.connection is not None:
            return True
        elif not node.forks and all(each in value or _is_old(each, fork) for each in node.inputs):
            value.add(node)
    return False


def _is_old(node: Node, fork: Node) -> bool:
    """Older than the fork, as positions are that are added to it; but attention's scores, a product, are none."""
    if node.index > fork.index:
        return False
    while node.op in ops.CARRY or (node.op in ops.MULTIPLY and len(node.activations) == 1):
        if not node.activations:
            break
        node = node.activations[0]
    return not (node.op in ops.MATMUL and len(node.activations) > 1)


def _joined(addends: list[Node], skip_at: int, writes_at: tuple[int, ...], fork: Node) -> Fork:
    """`(x + f(x)) + g(x)` is one connection with two writes, `x + (x + f(x))` one whose skip counts twice."""
    skip = addends[skip_at]
    writes = tuple(part for j in writes_at for part in parallel_writes(addends[j], fork))
    beside = _sum_at(skip)
    if beside is not None and beside.fork is fork and not any(node.connection for node in behind(writes, fork)):
        return Fork(fork, beside.skip, beside.writes + writes, skip_at, writes_at, beside.projected, beside)
    for j in writes_at:
        beside = _sum_at(addends[j])
        if beside is not None and beside.fork is fork:
            return Fork(fork, skip, beside.writes, skip_at, writes_at, beside.projected, beside)
    return Fork(fork, skip, writes, skip_at, writes_at)


def _sum_at(node: Node) -> Connection | None:
    """The connection whose sum `node` is, whatever its shape or type."""
    while node.connection is None and node.op in ops.VIEW and node.activations:
        node = node.activations[0]
    return node.connection


def _transforms_behind(node: Node, fork: Node) -> set[Node]:
    reached = behind((node,), fork)
    if not any(fork in each.activations for each in reached):
        return set()
    return {each for each in reached if each.transforms}
