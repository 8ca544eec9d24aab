"""Which parameters a connection's branch reads, directly or through any computation on them."""

from __future__ import annotations

from torch import nn

from residuum.stream.node import WEIGHT, Node


def parameter_nodes(model: nn.Module, nodes: list[Node]) -> dict[Node, str]:
    """The node of each parameter with its name: a capture records a model's parameters first, in their order."""
    return {node: name for node, (name, _) in zip(nodes, model.named_parameters(), strict=False)}


def parameters_behind(node: Node, names: dict[Node, str]) -> list[str]:
    """The parameters from which a weight was computed."""
    pending, seen = [node], set()
    while pending:
        node = pending.pop()
        if node not in seen and node.role == WEIGHT:
            seen.add(node)
            pending += node.inputs
    return sorted(names[node] for node in seen if node in names)


def parameters_of(branch: set[Node], names: dict[Node, str]) -> tuple[str, ...]:
    """The parameters that the nodes of a branch read, its norm's among them, in the model's order."""
    read = {name for node in branch for weight in node.inputs for name in parameters_behind(weight, names)}
    return tuple(name for name in names.values() if name in read)
