"""Take the gradient apart at one connection while a backward pass runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge
from torch.autograd.graph import Node as GradNode

from residuum.stream.carry import carried
from residuum.stream.connection import branch_of
from residuum.stream.graph import ResidualGraph
from residuum.stream.node import Connection, Node
from residuum.stream.placement import readers_of
from residuum.stream.projection import state_of


@dataclass(frozen=True)
class Backward:
    """Euclidean norms of the gradient that arrives at the state, and of its two parts where they reach x.

    `elsewhere` is the norm of what reaches x from readers outside this connection, 0 up to rounding in a plain stack.
    `cosine` is that of the two parts, each taken as one long vector: below 0 the branch works against the skip. It is 0
    where one part is zero.
    """

    arriving: float
    identity: float
    branch: float
    elsewhere: float
    cosine: float

    @property
    def identity_share(self) -> float:
        """identity / (identity + branch), from 0 (nothing passes the skip) to 1 (nothing passes the branch)."""
        return share(self.identity, self.branch)


class Split:
    """Hooks on the edges by which autograd sends gradient to the fork x of one connection.

    Autograd adds up what reaches x along several edges; on each edge the part is still alone. What comes along the
    skip's edge is the identity part, the rest the branch part. Where the branch's inner values are also read from
    outside (an auxiliary loss, keys reused by a later layer), their gradient takes the branch's edges too; such a
    connection is `shared`, and its parts are read off a second, local pass from y to x alone.
    """

    def __init__(self, connection: Connection, shared: bool) -> None:
        self._fork, self._sum = connection.junction.edge, connection.sum.edge
        self.shared = shared
        self._identity: list[Tensor] = []
        self._branch: list[Tensor] = []
        self._arriving: Tensor | None = None
        self._total: Tensor | None = None
        self._handles: list[Any] = []
        self.norms: dict[str, Tensor] = {}
        if self._fork is None or self._sum is None:
            return
        self._skip_path = _grad_nodes_of_skip(connection, self._fork)
        self._handles.append(self._sum.node.register_prehook(self._arrive))
        self._handles.append(self._fork.node.register_prehook(self._gather))
        if not shared:
            self._listen()

    def finish(self) -> None:
        """Measure what the main pass, now over, left to do: all of a shared connection."""
        if self._arriving is None or self._total is None:
            return
        assert self._fork is not None and self._sum is not None
        self._listen()
        torch.autograd.grad([self._sum], [self._fork], [self._arriving], retain_graph=True, allow_unused=True)
        self.stop_listening()
        self._measure(self._total)

    def stop_listening(self) -> None:
        """Remove the hooks: a local pass of another connection must not be heard here."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def read(self) -> Backward | None:
        """What was measured, None if no gradient went through the connection; here the device is waited for."""
        parts = [self.norms.get(part) for part in ("arriving", "identity", "branch", "elsewhere", "cosine")]
        return None if None in parts else Backward(*(float(part) for part in parts if part is not None))

    def close(self) -> None:
        """Remove the hooks and let go of every tensor."""
        self.stop_listening()
        self._identity, self._branch, self._arriving, self._total = [], [], None, None

    def _arrive(self, grad_outputs: Any) -> None:
        assert self._sum is not None
        gradient = grad_outputs[self._sum.output_nr]
        if gradient is not None:
            self.norms["arriving"] = norm(gradient)
            self._arriving = gradient if self.shared else None

    def _gather(self, grad_outputs: Any) -> None:
        assert self._fork is not None
        total = grad_outputs[self._fork.output_nr]
        if self.shared:
            self._total = total
        else:
            self._measure(total)
            self.stop_listening()  # another backward pass through the same graph is not the one

    def _listen(self) -> None:
        assert self._fork is not None
        for grad_node in self._skip_path:
            self._listen_to(grad_node, self._identity)
        for grad_node in _behind(self._skip_path, self._fork.node) - self._skip_path:
            self._listen_to(grad_node, self._branch)

    def _listen_to(self, grad_node: GradNode, parts: list[Tensor]) -> None:
        assert self._fork is not None
        fork = (self._fork.node, self._fork.output_nr)
        to_fork = [i for i, edge in enumerate(grad_node.next_functions) if edge == fork]

        def hook(grad_inputs: Any, _grad_outputs: Any) -> None:
            parts.extend(grad_inputs[i] for i in to_fork if grad_inputs[i] is not None)

        if to_fork:
            self._handles.append(grad_node.register_hook(hook))

    def _measure(self, total: Tensor | None) -> None:
        identity, branch = _sum(self._identity), _sum(self._branch)
        rest = total
        for part in (identity, branch):
            if rest is not None and part is not None:
                rest = rest - part
        for name, part in (("identity", identity), ("branch", branch), ("elsewhere", rest)):
            self.norms[name] = torch.zeros(()) if part is None else norm(part)
        self.norms["cosine"] = torch.zeros(()) if identity is None or branch is None else _cosine(identity, branch)
        self._identity.clear()
        self._branch.clear()


def splits_of(graph: ResidualGraph, nodes: list[Node]) -> dict[Connection, Split]:
    """A split at every connection, to be made before the backward pass."""
    shared = _read_from_outside(graph, nodes)
    return {c: Split(c, c in shared) for c in (residual.connection for residual in graph.residuals)}


def _read_from_outside(graph: ResidualGraph, nodes: list[Node]) -> set[Connection]:
    """The connections whose branch is read, half-way, by something outside it."""
    readers, found = readers_of(nodes), set()
    for connection in (residual.connection for residual in graph.residuals):
        branch = branch_of(connection)
        inside = branch | {connection.sum}
        if any(reader not in inside for node in branch for reader in readers[node]):
            found.add(connection)
    return found


def _grad_nodes_of_skip(connection: Connection, fork: GradientEdge) -> set[GradNode]:
    """Autograd's nodes on the way of the skip, the addition's own among them."""
    found: set[GradNode] = set()
    pending = [connection.sum]
    while pending:
        node = pending.pop()
        if node.index <= connection.junction.index:
            continue
        if node.edge is not None:
            found.add(node.edge.node)
        if node is connection.sum:
            pending.append(connection.skip)
        else:
            state = state_of(node) if connection.projected else None
            pending += carried(node) if state is None else [state]
    if connection.fork.reread and connection.sum.edge is not None:  # a part that was overwritten is on no way any more
        found &= _behind({connection.sum.edge.node}, fork.node)
    if any((fork.node, fork.output_nr) in grad_node.next_functions for grad_node in found):
        return found
    # A sum made in place on a view hides its addition in a node of autograd's own, and no recorded call ends at the
    # fork: then the skip is all that lies behind the sum but not behind the write.
    writes = {write.edge.node for write in connection.writes if write.edge is not None}
    return _behind(found, fork.node) - _behind(writes, fork.node)


def _behind(start: set[GradNode], fork: GradNode) -> set[GradNode]:
    """`start` and autograd's nodes between it and the fork."""
    # Autograd numbers its nodes as they are made: what is older than the fork cannot lie before it. Leaves have no age.
    oldest = fork._sequence_nr() if fork.next_functions else 0
    pending: list[GradNode | None] = list(start)
    found: set[GradNode] = set()
    while pending:
        grad_node = pending.pop()
        if grad_node is None or grad_node is fork or grad_node in found:
            continue
        if not grad_node.next_functions or grad_node._sequence_nr() < oldest:
            continue
        found.add(grad_node)
        pending += [edge[0] for edge in grad_node.next_functions]
    return found


def norm(value: Tensor) -> Tensor:
    """The Euclidean norm, summed in float32 at least."""
    value = value.detach()
    return torch.linalg.vector_norm(value, dtype=torch.promote_types(value.dtype, torch.float32))


def share(part: float, rest: float) -> float:
    """part / (part + rest), 0 if there is neither."""
    return part / (part + rest) if part + rest > 0 else 0.0


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    """The cosine of two gradients taken as one long vector each; 0 if either is zero."""
    wide = torch.promote_types(a.dtype, torch.float32)
    sizes = norm(a) * norm(b)
    product = torch.linalg.vecdot(a.detach().flatten().to(wide), b.detach().flatten().to(wide)).real
    return torch.where(sizes == 0, sizes, product / sizes)


def _sum(parts: list[Tensor]) -> Tensor | None:
    total = None
    for part in parts:
        total = part if total is None else total + part
    return total
