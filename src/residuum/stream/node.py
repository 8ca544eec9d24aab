"""A recorded call of one tensor function, and a residual connection: what the graph is made of."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.autograd.graph import GradientEdge

from residuum.stream import ops

ACTIVATION, WEIGHT, CONSTANT = "activation", "weight", "constant"


@dataclass(frozen=True, slots=True)
class Source:
    """Where in the user's code a connection stands."""

    file: str
    line: int
    function: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


class Node:
    """One call of a tensor function.

    `inputs` are the nodes of its tensor arguments in order. `role` says what the result depends on: an *activation* on
    the model's input, a *weight* on parameters alone (however they were transformed), a *constant* on neither.
    `edge` is where autograd continues from the result, kept only where gradients are measured. `connection` is set if
    the call is a residual connection. `factor` is the plain number that a product multiplies or divides by, if any.
    """

    __slots__ = ("connection", "edge", "factor", "index", "inputs", "module", "op", "role", "shape")

    def __init__(
        self, index: int, op: str, inputs: tuple[Node, ...], role: str, shape: torch.Size, module: str
    ) -> None:
        self.index = index
        self.op = op
        self.inputs = inputs
        self.role = role
        self.shape = shape
        self.module = module
        self.edge: GradientEdge | None = None
        self.connection: Connection | None = None
        self.factor: float | None = None

    @property
    def activations(self) -> list[Node]:
        return [node for node in self.inputs if node.role == ACTIVATION]

    @property
    def parametric(self) -> bool:
        """A weight meets an activation here, and does more than shift or scale it entry by entry."""
        if self.op in ops.NORM or self.role != ACTIVATION:
            return False
        if not any(node.role == WEIGHT for node in self.inputs):
            return False
        return not (self.op in ops.ELEMENTWISE and any(node.shape == self.shape for node in self.activations))

    def __lt__(self, other: Node) -> bool:
        """Newest first, so that a heap of nodes walks back through the run."""
        return self.index > other.index

    def __repr__(self) -> str:
        return f"<{self.index}: {self.op} {tuple(self.shape)} in {self.module or 'the model'}>"


@dataclass(frozen=True, slots=True)
class Connection:
    """One residual addition: its sum, its two operands, and the value x that both come from, where the stream forks."""

    sum: Node
    skip: Node
    write: Node
    fork: Node
    source: Source
    projected: bool = False
