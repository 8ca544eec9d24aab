"""Which parameters a node reads, directly or through any computation on them."""

from __future__ import annotations

from torch import Tensor, nn

from residuum.stream.node import WEIGHT, Node


def parameter_nodes(model: nn.Module, nodes: list[Node]) -> dict[Node, str]:
    """The node of each parameter with its name: a capture records a model's parameters first, in their order."""
    return {node: name for node, (name, _) in zip(nodes, model.named_parameters(), strict=False)}


def parameters_behind(weight: Node, names: dict[Node, str]) -> tuple[str, ...]:
    """The parameters from which a weight was computed, in the model's order."""
    return _behind([weight], names)


def parameters_of(branch: set[Node], names: dict[Node, str]) -> tuple[str, ...]:
    """The parameters that the nodes of a branch read, its norm's among them, in the model's order."""
    return _behind([weight for node in branch for weight in node.inputs], names)


def is_sharded(weight: Tensor) -> bool:
    """A DTensor: each process holds a part of it."""
    return hasattr(weight, "placements")


def leaves(weights: list[Node]) -> set[Node]:
    """The parameters from which weights were computed: what no recorded function made."""
    return {node for node in upstream(weights) if not node.inputs}


def upstream(weights: list[Node]) -> set[Node]:
    """The weights, and all weights from which they were computed."""
    pending, seen = list(weights), set()
    while pending:
        node = pending.pop()
        if node not in seen and node.role == WEIGHT:
            seen.add(node)
            pending += node.inputs
    return seen


def _behind(weights: list[Node], names: dict[Node, str]) -> tuple[str, ...]:
    found = sorted((node for node in leaves(weights) if node in names), key=lambda node: node.index)
    return tuple(names[node] for node in found)
