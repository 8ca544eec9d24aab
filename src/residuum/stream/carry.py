"""Which of its operands an operation carries on: what may stand between a state and the sum that it is added in."""

from __future__ import annotations

from residuum.stream import ops
from residuum.stream.node import ACTIVATION, Node


def carried(node: Node) -> list[Node]:
    """The operands whose value `node` carries on: all of a view or a cast, a factor of a product, the skip of a sum."""
    if node.connection is not None:
        return list(node.connection.carries)
    if node.op == "copy_":
        return list(node.inputs[1:2])
    if node.op == "__setitem__":
        written = _state_written(node)
        return written if node.inputs[-1].shape == node.shape else [node.inputs[0], *written]
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
    if node.op in ops.SUM and len(node.activations) == 2:
        return _common(*node.activations)
    return []


def _common(a: Node, b: Node) -> list[Node]:
    """The value that both addends carry, as in `α x + β x`."""
    one, other = _carried_at_once(a), _carried_at_once(b)
    return next(([node] for node in one if node in other), [])


def _carried_at_once(node: Node) -> list[Node]:
    """The values that a product or a view carries, itself first, short of any sum."""
    found = [node]
    while (node.op in ops.MULTIPLY or node.op in ops.VIEW) and (operands := carried(node)):
        node = operands[0]
        found.append(node)
    return found


def carries(node: Node, state: Node) -> bool:
    """Whether `node` still carries `state`, past the connections between them."""
    pending, seen = [node], {node}
    while pending:
        node = pending.pop()
        if node is state or (node.connection is not None and node.connection.root is state):
            return True
        new = [each for each in carried(node) if each not in seen and each.index >= state.index]
        seen.update(new)
        pending += new
    return False


def root_of(fork: Node) -> Node:
    """The oldest value that the stream carries to the fork."""
    while (operands := carried(fork)) or fork.connection is not None:
        fork = fork.connection.root if fork.connection is not None else operands[0]
    return fork


def carries_state(node: Node) -> bool:
    """Whether `node` is itself a state: the sum of an earlier connection, still carried on."""
    while node.connection is None:
        operands = carried(node)
        if not operands:
            return False
        node = operands[0]
    return True


def picks_one(node: Node) -> bool:
    """One step of a sequence, as a recurrence reads it: no state of the whole."""
    return node.op in ("__getitem__", "select") and len(node.shape) < len(node.inputs[0].shape)


def _state_written(node: Node) -> list[Node]:
    """What an assignment to a part writes there, if it is a state."""
    return [value for value in node.inputs[-1:] if value.role == ACTIVATION and carries_state(value)]


def _is_gate(node: Node) -> bool:
    """A factor between 0 and 1, or one minus it."""
    while node.op in ops.CARRY or node.op in ops.ADD:
        if len(node.activations) != 1:
            return False
        node = node.activations[0]
    return node.op in ops.GATE
