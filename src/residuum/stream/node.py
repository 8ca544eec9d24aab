"""A recorded call of one tensor function, and a residual connection: what the graph is made of."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.autograd.graph import GradientEdge

from residuum.stream import ops

ACTIVATION, WEIGHT, BUFFER, CONSTANT = "activation", "weight", "buffer", "constant"


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
    the model's input, a *weight* on parameters alone (however they were transformed), a *buffer* on matrices that the
    model holds beside its parameters (quantised weights, say), a *constant* on none of them. `edge` is where autograd
    continues from the result, kept only where gradients are measured. `connection` is set if the call is a residual
    connection, or one of the sums that make up one; `forks` if a stream forks at the result,
    `reread` if the same part was read once more, which is then an alias of this one. `factor` is the plain
    number that a product multiplies or divides by, or that a sum multiplies its second addend by, if any.

    `transforms` is what tells a branch from arithmetic: a weight meets an activation and does more than shift or scale
    it entry by entry, or entries are mixed without a weight, by pooling or a Fourier transform.
    """

    __slots__ = (
        "connection", "edge", "factor", "forks", "index", "inputs", "module", "op", "reread", "role", "shape",
        "transforms",
    )  # fmt: skip

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
        self.forks = False
        self.reread = False
        self.transforms = role == ACTIVATION and self._transforms()

    @property
    def activations(self) -> list[Node]:
        return [node for node in self.inputs if node.role == ACTIVATION]

    @property
    def reads_table(self) -> bool:
        """Rows of a weight are picked by an activation, as an embedding does."""
        picks = self.op in ops.LOOKUP or self.op in ops.PART
        return picks and any(node.role == WEIGHT for node in self.inputs[:2])

    def _transforms(self) -> bool:
        if self.op in ops.CARRY:
            return self.reads_table
        if self.op in ops.MIX:
            return True
        roles = {node.role for node in self.inputs}
        if BUFFER in roles and self.op in ops.MATMUL:
            return True
        if WEIGHT not in roles or ops.is_norm(self.op):
            return False
        return not (self.op in ops.ELEMENTWISE and any(node.shape == self.shape for node in self.activations))

    def __lt__(self, other: Node) -> bool:
        """Newest first, so that a heap of nodes walks back through the run."""
        return self.index > other.index

    def __repr__(self) -> str:
        return f"<{self.index}: {self.op} {tuple(self.shape)} in {self.module or 'the model'}>"


@dataclass(frozen=True, slots=True, eq=False)  # told apart by identity: comparing would walk back through `earlier`
class Connection:
    """One residual addition: its sum, its operands, and the value x that all of them come from, where the stream forks.

    `writes` are several where branches run in parallel; where they are added in turn, `earlier` is the connection as it
    was before the last one. `carries` are the operands that carry a state on: the skip, and a write that is itself one.
    `root` is the oldest value that the stream carries here, state 0 where nothing cuts it.
    `projected` is set where the skip passes a map of its own, `fused` where the write exists only inside the call that
    adds it (`addmm`, say).
    """

    sum: Node
    skip: Node
    writes: tuple[Node, ...]
    fork: Node
    source: Source
    carries: tuple[Node, ...]
    root: Node
    projected: bool = False
    fused: bool = False
    earlier: Connection | None = None

    @property
    def junction(self) -> Node:
        """Where the gradients of both paths meet: the fork, or what it is a part of if each path reads that anew."""
        return self.fork.inputs[0] if self.fork.reread else self.fork
