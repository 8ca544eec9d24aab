"""Where norms stand around a branch, from the operations themselves."""

from __future__ import annotations

from residuum.stream.carry import carried, carries
from residuum.stream.connection import branch_of
from residuum.stream.node import Connection, Node
from residuum.stream.normalisation import normalised_by
from residuum.stream.projection import mixes_streams

Readers = dict[Node, list[Node]]


def placement_of(connection: Connection, normed_after: bool, readers: Readers) -> str:
    """pre, post, sandwich or none. `normed_after`: a norm on the stream itself follows the sum."""
    inside = all(_carries_norm(write) for write in connection.writes)
    if normed_after:
        return "post"
    if norm_before(connection, readers) or (connection.projected and _is_normed(connection.fork)):
        return "sandwich" if inside else "pre"
    return "post" if inside else "none"


def readers_of(nodes: list[Node]) -> Readers:
    """Who reads each node's result."""
    readers: Readers = {node: [] for node in nodes}
    for node in nodes:
        for parent in set(node.inputs):
            readers[parent].append(node)
    return readers


def norm_before(connection: Connection, readers: Readers) -> bool:
    """Whether every first operation of the branch with weights reads the stream through a norm."""
    branch = branch_of(connection)
    pending, seen, found = [connection.fork], set(), False
    while pending:
        for reader in readers[pending.pop()]:
            if reader not in branch or reader in seen:
                continue
            seen.add(reader)
            if reader.transforms and not mixes_streams(reader):
                return False
            if normalised_by(reader) is not None:
                found = True
            else:
                pending.append(reader)
    return found


def norm_reading(node: Node, readers: Readers) -> Node | None:
    """The norm that reads `node` itself, if any: between them stands nothing but the norm's own arithmetic."""
    pending, seen = [node], set()
    while pending:
        for reader in readers[pending.pop(0)]:
            if reader in seen or reader.transforms or reader.connection is not None:
                continue
            seen.add(reader)
            value = normalised_by(reader)
            if value is not None and carries(value, node):
                return reader
            if value is None:
                pending.append(reader)
    return None


def _is_normed(node: Node) -> bool:
    """A norm, give or take an activation function: what a projected skip and its branch may both read."""
    while normalised_by(node) is None and len(node.activations) == 1 and not node.transforms:
        node = node.activations[0]
    return normalised_by(node) is not None


def _carries_norm(node: Node) -> bool:
    while normalised_by(node) is None and node.connection is None and carried(node):
        node = carried(node)[0]
    return normalised_by(node) is not None
