"""Skips that pass a map of their own: to another width, or across parallel streams."""

from __future__ import annotations

from heapq import heappop, heappush

from residuum.stream import ops
from residuum.stream.carry import picks_one
from residuum.stream.node import Node
from residuum.stream.normalisation import normalised_by


def projected_fork(skip: Node, write: Node) -> Node | None:
    """The fork of a skip that changes on its way: in width, as in ResNet's down-sampling, or by mixing streams.

    Such a skip passes one linear map, and perhaps a pooling; the write passes two maps or more with a non-linearity
    between them, which is what tells it from the two linear maps of a low-rank adapter beside its base layer.
    """
    if _is_upsampled(write):  # a coarser map merged into a finer one
        return None
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
        elif picks_one(state) or not (_is_linear(state) and len(state.activations) == 1):
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


def _is_upsampled(node: Node) -> bool:
    while node.op in ops.CARRY and node.activations:
        node = node.activations[0]
    return node.op in ops.UPSAMPLE


def mixes_streams(node: Node) -> bool:
    """A product with a small matrix across parallel streams that leaves the feature axis, the last one, alone."""
    state = state_of(node)
    if state is None or node.op not in ops.MIX_STREAMS or len(state.shape) < 3:
        return False
    width = state.shape[-1]
    others = [each for each in node.inputs if each is not state]
    return node.shape[-1] == width and all(width not in each.shape[-2:] for each in others)


def state_of(node: Node) -> Node | None:
    """The operand that a map is applied to: of several activations the one whose features come out."""
    wide = [each for each in node.activations if each.shape[-1:] == node.shape[-1:]]
    return next(iter(wide or node.activations), None)


def _is_linear(node: Node) -> bool:
    """Linear in its activation, or a norm, which does not count as a non-linearity here."""
    if node.op in ops.MULTIPLY and len(node.activations) == 1:
        return True
    return node.op in ops.CARRY or node.op in ops.ADD or normalised_by(node) is not None
