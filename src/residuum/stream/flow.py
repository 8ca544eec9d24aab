"""What a gradient does at every residual connection: how much takes the identity path, how much the branch path.

At `y = x + f(x)` the gradient `g = dL/dy` that arrives goes back to x twice, `dL/dx = g + Jᵀg`: unchanged along the
skip, and through the branch's Jacobian J. Both parts are read off one ordinary backward pass. Autograd sends each
contribution to x along an edge of its own and adds them up there; hooks on those edges see the parts before they are
summed, so nothing is run twice and nothing is derived from a difference.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge
from torch.autograd.graph import Node as GradNode

from residuum.stream.capture import Capture, tensors_in
from residuum.stream.connection import carried
from residuum.stream.errors import TraceError
from residuum.stream.graph import Residual, ResidualGraph, graph_of, run
from residuum.stream.loss import default_loss
from residuum.stream.node import Connection, Node
from residuum.stream.untouched import untouched


@dataclass(frozen=True)
class Forward:
    """Root mean square of the skip, of the write, and of the state that their sum makes."""

    skip_rms: float
    write_rms: float
    state_rms: float

    @property
    def write_share(self) -> float:
        """write / (skip + write), from 0 (the branch writes nothing) to 1 (it writes all)."""
        return _share(self.write_rms, self.skip_rms)


@dataclass(frozen=True)
class Backward:
    """Euclidean norms of the gradient that arrives at the state, and of its two parts where they reach x.

    `elsewhere` is the norm of what reaches x from readers outside this connection, 0 up to rounding in a plain stack.
    """

    arriving: float
    identity: float
    branch: float
    elsewhere: float

    @property
    def identity_share(self) -> float:
        """identity / (identity + branch), from 0 (nothing passes the skip) to 1 (nothing passes the branch)."""
        return _share(self.identity, self.branch)


@dataclass(frozen=True)
class Measured:
    """One connection with what was measured there; `backward` is None where x asks for no gradient."""

    residual: Residual
    forward: Forward
    backward: Backward | None


@dataclass(frozen=True)
class Flow:
    """One forward and one backward pass, measured. Parameters are named where their gradient is missing or wrong."""

    graph: ResidualGraph
    measured: list[list[Measured]]
    loss: float
    loss_name: str
    without_gradient: list[str]
    not_finite: list[str]

    @property
    def all_measured(self) -> list[Measured]:
        """The connections of every stream, one stream after another."""
        return [m for stream in self.measured for m in stream]


Loss = Callable[[Any], Tensor]


def flow(model: nn.Module, *args: Any, loss: Loss | None = None, **kwargs: Any) -> Flow:
    """Run `model(*args, **kwargs)` forward and backward once and measure every residual connection.

    `loss` takes the model's output and returns a scalar; without it `default_loss` finds one. The model is left as it
    was found, `.grad` included. Raises `TraceError` if the model cannot run or its loss carries no gradient.
    """
    args, kwargs = _asking_for_gradient(args), _asking_for_gradient(kwargs)
    inputs = list(tensors_in((args, kwargs)))
    norms: dict[Node, tuple[Tensor, Tensor, Tensor]] = {}
    capture = Capture(model, watch=_rms_into(norms), edges=True)
    capture.feed(inputs)
    with untouched(model), torch.enable_grad():
        with capture:
            output = run(model, args, kwargs)
        value, name = (loss(output), "the given loss") if loss else default_loss(output, inputs)
        if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
            raise TraceError(f"{name} must be one number that carries a gradient, got {_describe(value)}")
        graph = graph_of(capture.nodes)
        splits = {residual.connection.sum: _Split(residual.connection) for residual in graph.residuals}
        parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
        wanted = [*parameters.values(), *(x for x in inputs if x.is_leaf and x.requires_grad)]
        try:
            gradients = torch.autograd.grad(value.reshape(()), wanted, allow_unused=True)
        finally:
            for split in splits.values():
                split.close()
    # The largest entry tells zero, finite and not in one reading of the gradient; a norm could overflow or underflow.
    sizes = {n: None if g is None else float(_largest(g)) for n, g in zip(parameters, gradients, strict=False)}
    measured = []
    for stream in graph.streams:
        sums = [(residual, residual.connection.sum) for residual in stream.residuals]
        measured.append([Measured(r, Forward(*(float(n) for n in norms[s])), splits[s].result()) for r, s in sums])
    return Flow(
        graph,
        measured,
        float(value.detach()),
        name,
        [name for name, size in sizes.items() if size is None or size == 0],
        [name for name, size in sizes.items() if size is not None and not math.isfinite(size)],
    )


class _Split:
    """Hooks that see the two parts of one connection's gradient during a backward pass."""

    def __init__(self, connection: Connection) -> None:
        self._identity: list[Tensor] = []
        self._branch: list[Tensor] = []
        self._total: Tensor | None = None
        self._norms: dict[str, Tensor] = {}
        self._handles: list[Any] = []
        fork, out = connection.fork.edge, connection.sum.edge
        if fork is None or out is None:
            return
        self._handles.append(out.node.register_prehook(self._arrive(out.output_nr)))
        skip_path = _grad_nodes_of_skip(connection, fork)
        for grad_node in skip_path:
            self._listen(grad_node, fork, self._identity)
        for grad_node in _behind(skip_path, fork.node) - skip_path:
            self._listen(grad_node, fork, self._branch)
        self._handles.append(fork.node.register_prehook(self._sum_up(fork.output_nr)))

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()

    def result(self) -> Backward | None:
        if "arriving" not in self._norms:
            return None
        if "identity" not in self._norms:  # x is a leaf, whose own hook autograd.grad does not run
            self._measure()
        return Backward(*(float(self._norms[part]) for part in ("arriving", "identity", "branch", "elsewhere")))

    def _arrive(self, output: int) -> Callable[[Any], None]:
        def hook(grad_outputs: Any) -> None:
            if grad_outputs[output] is not None:
                self._norms["arriving"] = _norm(grad_outputs[output])

        return hook

    def _listen(self, grad_node: GradNode, fork: GradientEdge, parts: list[Tensor]) -> None:
        to_fork = [i for i, edge in enumerate(grad_node.next_functions) if edge == (fork.node, fork.output_nr)]

        def hook(grad_inputs: Any, _grad_outputs: Any) -> None:
            parts.extend(grad_inputs[i] for i in to_fork if grad_inputs[i] is not None)

        if to_fork:
            self._handles.append(grad_node.register_hook(hook))

    def _sum_up(self, output: int) -> Callable[[Any], None]:
        def hook(grad_outputs: Any) -> None:
            self._total = grad_outputs[output]
            self._measure()

        return hook

    def _measure(self) -> None:
        identity, branch = _sum(self._identity), _sum(self._branch)
        rest = self._total
        for part in (identity, branch):
            if rest is not None and part is not None:
                rest = rest - part
        for name, part in (("identity", identity), ("branch", branch), ("elsewhere", rest)):
            self._norms[name] = torch.zeros(()) if part is None else _norm(part)
        self._identity.clear()
        self._branch.clear()
        self._total = None


def _grad_nodes_of_skip(connection: Connection, fork: GradientEdge) -> set[GradNode]:
    """Autograd's nodes on the way of the skip, the addition's own among them."""
    found: set[GradNode] = set()
    pending = [connection.sum]
    while pending:
        node = pending.pop()
        if node.index <= connection.fork.index:
            continue
        if node.edge is not None:
            found.add(node.edge.node)
        pending += node.activations[:1] if connection.projected and node is not connection.sum else carried(node)
    if any((fork.node, fork.output_nr) in grad_node.next_functions for grad_node in found):
        return found
    # A sum made in place on a view hides its addition in a node of autograd's own, and no recorded call ends at the
    # fork: then the skip is all that lies behind the sum but not behind the write.
    write = connection.write.edge
    return _behind(found, fork.node) - (_behind({write.node}, fork.node) if write is not None else set())


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


def _rms_into(norms: dict[Node, tuple[Tensor, Tensor, Tensor]]) -> Any:
    def watch(skip: Tensor, write: Tensor) -> Callable[[Tensor, Node], None]:
        before = _rms(skip), _rms(write)

        def measured(state: Tensor, node: Node) -> None:
            norms[node] = (*before, _rms(state))

        return measured

    return watch


def _asking_for_gradient(values: Any) -> Any:
    """The inputs with a gradient asked of the floating-point ones: one of them may itself be the skip."""
    if isinstance(values, Tensor):
        wants = values.is_floating_point() and not values.requires_grad
        return values.detach().requires_grad_() if wants else values
    if type(values) in (tuple, list):
        return type(values)(_asking_for_gradient(value) for value in values)
    if type(values) is dict:
        return {key: _asking_for_gradient(value) for key, value in values.items()}
    return values


def _norm(value: Tensor) -> Tensor:
    value = value.detach()
    return torch.linalg.vector_norm(value, dtype=torch.promote_types(value.dtype, torch.float32))


def _rms(value: Tensor) -> Tensor:
    return _norm(value) / max(value.numel(), 1) ** 0.5


def _largest(value: Tensor) -> Tensor:
    return torch.linalg.vector_norm(value, math.inf) if value.numel() else value.new_zeros(())


def _sum(parts: list[Tensor]) -> Tensor | None:
    total = None
    for part in parts:
        total = part if total is None else total + part
    return total


def _share(part: float, rest: float) -> float:
    return part / (part + rest) if part + rest > 0 else 0.0


def _describe(value: Any) -> str:
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
