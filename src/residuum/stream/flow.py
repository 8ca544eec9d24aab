"""What a gradient does at every residual connection: how much takes the identity path, how much the branch path.

At `y = x + f(x)` the gradient `g = dL/dy` that arrives goes back to x twice, `dL/dx = g + Jᵀg`: unchanged along the
skip, and through the branch's Jacobian J. Both parts are read off one ordinary backward pass: autograd sends each
contribution to x along an edge of its own and adds them up there, and hooks on those edges see the parts before they
are summed. Neither is derived from the other. Only a connection whose branch is also read from outside takes a second,
local pass (`split.py`).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from residuum.stream.capture import Capture, tensors_in
from residuum.stream.errors import TraceError
from residuum.stream.graph import Residual, ResidualGraph, branch_of, graph_of, readers_of, run, unwrapped
from residuum.stream.loss import default_loss
from residuum.stream.node import Connection, Node
from residuum.stream.split import Split, norm
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
    model = unwrapped(model)
    if any(parameter.is_meta for parameter in model.parameters()):
        raise TraceError("parameters on the meta device have no values to measure: residuum.trace gives the structure")
    if any(parameter.is_inference() for parameter in model.parameters()):
        raise TraceError("the model was built under torch.inference_mode and can have no gradient: build it outside")
    norms: dict[Node, tuple[Tensor, Tensor, Tensor]] = {}
    with untouched(model), torch.inference_mode(False), torch.enable_grad():
        leaves: list[Tensor] = []
        try:
            capture = Capture(model, watch=_rms_into(norms), edges=True)
            inputs = _asking_for_gradient((args, kwargs), leaves)
            output = run(model, capture, *inputs)
        except TraceError:  # some models do with their inputs what is not allowed where a gradient is asked of them
            norms, leaves = {}, []
            capture = Capture(model, watch=_rms_into(norms), edges=True)
            inputs = (args, kwargs)
            output = run(model, capture, *inputs)
        value, name = _loss_of(output, loss, capture.tables(tensors_in(inputs)))
        graph = graph_of(capture)
        shared = _shared(graph, capture.nodes)
        measurable = [r.connection for r in graph.residuals if not (r.connection in shared and _is_sharded(model))]
        splits = {connection: Split(connection, connection in shared) for connection in measurable}
        parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
        wanted = [*parameters.values(), *leaves]
        try:
            gradients = torch.autograd.grad(value, wanted, allow_unused=True, retain_graph=bool(shared))
            for split in splits.values():
                split.stop_listening()
            for split in splits.values():
                split.finish()
        except Exception as error:
            raise TraceError(f"the backward pass raised {type(error).__name__}: {error}") from error
        finally:
            for split in splits.values():
                split.close()
            for node in capture.nodes:
                node.edge = None  # autograd's graph is not kept alive by what was measured on it
    # The largest entry tells zero, finite and not in one reading of the gradient; a norm could overflow or underflow.
    sizes = {n: None if g is None else float(_largest(g)) for n, g in zip(parameters, gradients, strict=False)}
    measured = []
    for stream in graph.streams:
        forwards = [Forward(*(float(n) for n in norms[residual.connection.sum])) for residual in stream.residuals]
        backwards = [_backward(splits.get(residual.connection)) for residual in stream.residuals]
        measured.append([Measured(*each) for each in zip(stream.residuals, forwards, backwards, strict=True)])
    return Flow(
        graph,
        measured,
        float(value.detach()),
        name,
        [name for name, size in sizes.items() if size is None or size == 0],
        [name for name, size in sizes.items() if size is not None and not math.isfinite(size)],
    )


def _shared(graph: ResidualGraph, nodes: list[Node]) -> set[Connection]:
    """The connections whose branch is read, half-way, by something outside it."""
    readers, found = readers_of(nodes), set()
    for connection in (residual.connection for residual in graph.residuals):
        branch = branch_of(connection)
        inside = branch | {connection.sum}
        if any(reader not in inside for node in branch for reader in readers[node]):
            found.add(connection)
    return found


def _is_sharded(model: nn.Module) -> bool:
    """Parameters that are gathered for one pass and given back after it leave nothing for a local second one."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    return fsdp is not None and any(isinstance(module, fsdp.FSDPModule) for module in model.modules())


def _backward(split: Split | None) -> Backward | None:
    if split is None:
        return None
    parts = [split.norms.get(part) for part in ("arriving", "identity", "branch", "elsewhere")]
    return None if None in parts else Backward(*(float(part) for part in parts if part is not None))


def _loss_of(output: Any, loss: Loss | None, tokens: list[tuple[Tensor, int]]) -> tuple[Tensor, str]:
    """The number to differentiate and its name."""
    if loss is None:
        value, name = default_loss(output, tokens)
    else:
        try:
            value, name = loss(output), "the given loss"
        except Exception as error:
            raise TraceError(f"the given loss raised {type(error).__name__}: {error}") from error
    if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad or value.is_complex():
        raise TraceError(f"{name} must be one real number that carries a gradient, got {_describe(value)}")
    return value.reshape(()), name


def _rms_into(norms: dict[Node, tuple[Tensor, Tensor, Tensor]]) -> Any:
    def watch(skip: Tensor, write: Tensor) -> Callable[[Tensor, Node], None]:
        before = _rms(skip), _rms(write)

        def measured(state: Tensor, node: Node) -> None:
            norms[node] = (*before, _rms(state))

        return measured

    return watch


def _asking_for_gradient(values: Any, leaves: list[Tensor]) -> Any:
    """The inputs with a gradient asked of the floating-point ones, for one of them may itself be the skip.

    They are views of new leaves, which may be overwritten where a leaf may not.
    """
    if isinstance(values, Tensor):
        if values.is_inference():
            values = values.clone()
        if not values.is_floating_point() or values.requires_grad:
            return values
        leaves.append(values.detach().requires_grad_())
        return leaves[-1].view_as(leaves[-1])
    if type(values) in (tuple, list):
        return type(values)(_asking_for_gradient(value, leaves) for value in values)
    if type(values) is dict:
        return {key: _asking_for_gradient(value, leaves) for key, value in values.items()}
    return values


def _rms(value: Tensor) -> Tensor:
    return norm(value) / max(value.numel(), 1) ** 0.5


def _largest(value: Tensor) -> Tensor:
    return torch.linalg.vector_norm(value, math.inf) if value.numel() else value.new_zeros(())


def _share(part: float, rest: float) -> float:
    return part / (part + rest) if part + rest > 0 else 0.0


def _describe(value: Any) -> str:
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
