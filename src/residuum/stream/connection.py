"""What a residual connection is, decided from the operations alone.

    y = x + f(x)

An addition is a residual connection if one operand, the *skip*, still carries an earlier value x (through nothing but
views, casts, scales, gates and dropout), and the other, the *write*, was computed from the same x through an operation
with weights. That x is where the stream *forks*.
"""

from __future__ import annotations

from heapq import heappop, heappush
from typing import NamedTuple

from residuum.stream import ops
from residuum.stream.node import ACTIVATION, WEIGHT, Connection, Node
from residuum.stream.normalisation import normalised_by


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
    found = []
    for i, skip in enumerate(addends[:1] if partial else addends):
        if skip.role not in (ACTIVATION, WEIGHT):
            continue
        forks = {}
        for j, write in enumerate(addends):
            if j != i and write.role == ACTIVATION and (partial or _fits(write, skip)):
                forks[j] = _fork(skip, write)
        nearest = max((fork for fork in forks.values() if fork), key=lambda fork: fork.index, default=None)
        if nearest is not None:
            writes_at = tuple(j for j, fork in forks.items() if fork is nearest)
            found.append(_joined(addends, i, writes_at, nearest))
    if not found and len(addends) == 2 and addends[0].role == addends[1].role == ACTIVATION and not partial:
        for i, skip in enumerate(addends):
            write = addends[1 - i]
            if skip.shape == write.shape and (fork := _projected_fork(skip, write)):
                found.append(Fork(fork, skip, parallel_writes(write, fork), i, (1 - i,), projected=True))
    return max(found, key=lambda each: each.node.index, default=None)


def carried(node: Node) -> list[Node]:
    """The operands whose value `node` carries on: all of a view or a cast, a factor of a product, the skip of a sum."""
    if node.connection is not None:
        return list(node.connection.carries)
    if node.op == "__setitem__":
        return [node.inputs[0], *_state_written(node)]
    if node.op in ops.JOIN:
        return node.activations
    if node.op in ops.PART and node.inputs and node.inputs[0].op == "__setitem__":
        # One row of a table that holds every layer's own memory is no other layer's row.
        return [node.inputs[0]] if _state_written(node.inputs[0]) else []
    if node.op in ops.CARRY:
        return list(node.inputs[:1]) if not node.reads_table else []
    if node.op in ops.MULTIPLY:
        factors = [operand for operand in node.activations if operand.shape == node.shape]
        return [factor for factor in factors if not _is_gate(factor)] or factors
    if node.op in ops.ADD and len(node.activations) == 1:
        return node.activations
    return []


def _state_written(node: Node) -> list[Node]:
    """What an assignment to a part writes there, if it is a state."""
    return [value for value in node.inputs[-1:] if value.role == ACTIVATION and carries_state(value)]


def carries_state(node: Node) -> bool:
    """Whether `node` is itself a state: the sum of an earlier connection, still carried on."""
    while node.connection is None:
        operands = carried(node)
        if not operands:
            return False
        node = operands[0]
    return True


def carries(node: Node, state: Node) -> bool:
    """Whether `node` still carries `state`, past the connections between them."""
    pending, seen = [node], {node}
    while pending:
        node = pending.pop()
        if node is state:
            return True
        new = [each for each in carried(node) if each not in seen and each.index >= state.index]
        seen.update(new)
        pending += new
    return False


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


def mixes_streams(node: Node) -> bool:
    """A product with a small matrix across parallel streams that leaves the feature axis, the last one, alone."""
    state = state_of(node)
    if state is None or node.op not in ops.MIX_STREAMS or len(state.shape) < 3:
        return False
    width = state.shape[-1]
    others = [each for each in node.inputs if each is not state]
    return node.shape[-1] == width and all(width not in each.shape[-2:] for each in others)


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
    learned = skip.role == WEIGHT
    carriers = [skip]
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
        normed = normalised_by(state)
        for parent in carried(state) if normed is None else [normed]:
            if parent not in carriers and not _picks_one(state):
                heappush(carriers, parent)
    return None


def _picks_one(node: Node) -> bool:
    """One step of a sequence, as a recurrence reads it: no state of the whole."""
    return node.op in ("__getitem__", "select") and len(node.shape) < len(node.inputs[0].shape)


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
        elif node.op not in ops.ADD or node.connection is not None or len(node.activations) < 2:
            return True
        elif not node.forks and all(each in value or _is_old(each, fork) for each in node.activations):
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
    if beside is not None and beside.fork is fork:
        return Fork(fork, beside.skip, beside.writes + writes, skip_at, writes_at, beside.projected, beside)
    for j in writes_at:
        beside = _sum_at(addends[j])
        if beside is not None and beside.fork is fork:
            return Fork(fork, skip, beside.writes, skip_at, writes_at, beside.projected, beside)
    return Fork(fork, skip, writes, skip_at, writes_at)


def _is_gate(node: Node) -> bool:
    """A factor between 0 and 1, or one minus it."""
    while node.op in ops.CARRY or node.op in ops.ADD:
        if len(node.activations) != 1:
            return False
        node = node.activations[0]
    return node.op in ops.GATE


def _sum_at(node: Node) -> Connection | None:
    """The connection whose sum `node` is, whatever its shape or type."""
    while node.connection is None and node.op in ops.VIEW and node.activations:
        node = node.activations[0]
    return node.connection


def _projected_fork(skip: Node, write: Node) -> Node | None:
    """The fork of a skip that changes on its way: in width, as in ResNet's down-sampling, or by mixing streams.

    Such a skip passes one linear map, and perhaps a pooling; the write passes two maps or more with a non-linearity
    between them, which is what tells it from the two linear maps of a low-rank adapter beside its base layer.
    """
    forks: dict[Node, int] = {}
    state: Node | None = skip
    maps = 0
    pooled = False
    while state is not None and state.connection is None:
        mixes = mixes_streams(state)
        if state.transforms or mixes:
            maps += state.op not in ops.POOL
            pooled = pooled or state.op in ops.POOL
        elif state.op in ops.POOL:
            pooled = True
        elif not (_is_linear(state) and len(state.activations) == 1):
            break
        if maps > 1:
            break
        state = state_of(state)
        if state is not None and (maps or pooled) and not (mixes and state.shape != skip.shape):
            forks[state] = 3 if maps else 1
    if not forks:
        return None
    oldest = min(fork.index for fork in forks)
    # How far the write has come, walking back: 1 after a map, 2 after what is not linear, 3 after a map again.
    pending = [(write, 0)]
    reached = set()
    while pending:
        node, stage = heappop(pending)
        if node is skip:
            return None
        if stage >= forks.get(node, 4):
            return node
        if node.index <= oldest or (node, stage) in reached or node.connection is not None:
            continue
        reached.add((node, stage))
        if node.transforms:
            stage = {0: 1, 2: 3}.get(stage, stage)
        elif stage == 1 and not _is_linear(node):
            stage = 2
        for parent in node.activations:
            heappush(pending, (parent, stage))
    return None


def state_of(node: Node) -> Node | None:
    """The operand that a map is applied to: of several activations the one whose features come out."""
    wide = [each for each in node.activations if each.shape[-1:] == node.shape[-1:]]
    return next(iter(wide or node.activations), None)


def _is_linear(node: Node) -> bool:
    """Linear in its activation, or a norm, which does not count as a non-linearity here."""
    if node.op in ops.MULTIPLY and len(node.activations) == 1:
        return True
    return node.op in ops.CARRY or node.op in ops.ADD or normalised_by(node) is not None


def _transforms_behind(node: Node, fork: Node) -> set[Node]:
    reached = behind((node,), fork)
    if not any(fork in each.activations for each in reached):
        return set()
    return {each for each in reached if each.transforms}
