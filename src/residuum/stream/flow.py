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
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from residuum.stream.adapter import Adapter, adapters_in
from residuum.stream.capture import tensors_in
from residuum.stream.connection import branch_of
from residuum.stream.errors import TraceError, in_one_line
from residuum.stream.forward import Forward, Kept, forward_of, share, watch_into
from residuum.stream.graph import Residual, ResidualGraph, graph_of
from residuum.stream.inputs import run_asking
from residuum.stream.levels import LevelCapture
from residuum.stream.loss import Loss, loss_of
from residuum.stream.measurable import check_measurable
from residuum.stream.node import Connection, Node
from residuum.stream.parameter import ParameterFlow, parameter_flow
from residuum.stream.placement import readers_of
from residuum.stream.slope import log_slope
from residuum.stream.split import Split
from residuum.stream.trace import unwrapped
from residuum.stream.untouched import untouched
from residuum.stream.weights import parameter_nodes, parameters_behind, parameters_of
from residuum.stream.where_nan import NanMaker, where_nan


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


@dataclass(frozen=True)
class Measured:
    """One connection with what was measured there; `backward` is None where x asks for no gradient.

    `parameters` are the names of those that its branch reads, directly or through any computation on them.
    """

    residual: Residual
    forward: Forward
    backward: Backward | None
    parameters: tuple[str, ...]


@dataclass(frozen=True)
class Slope:
    """How fast a stream's norms change with depth: least-squares slopes of log(value) on the connection's index.

    From one connection to the next `state` (the root mean square) and `gradient` (the norm that arrives) are multiplied
    by e^slope. None where fewer than two connections have a finite value above zero.
    """

    state: float | None
    gradient: float | None


@dataclass(frozen=True)
class Flow:
    """One forward and one backward pass, measured.

    `parameters` has every parameter by name; `adapters` the low-rank ones beside a base layer; `collapsed` names the
    parameters that a rounding turned into one value. `nan_maker` is looked for, in a run of its own, only if a value or
    a gradient is not finite; where that run found nothing, the model `changes` between runs
    (or is finite, and only the squares of its values are not).
    """

    graph: ResidualGraph
    measured: list[list[Measured]]
    loss: float
    loss_name: str
    parameters: dict[str, ParameterFlow]
    adapters: list[Adapter]
    collapsed: list[str]
    nan_maker: NanMaker | None
    changes: bool = False

    @property
    def without_gradient(self) -> list[str]:
        """The parameters that ask for a gradient and get none, or exactly zero."""
        return [name for name, p in self.parameters.items() if p.verdict in ("no gradient", "zero")]

    @property
    def not_finite(self) -> list[str]:
        """The parameters whose gradient holds NaN or infinity."""
        return [name for name, p in self.parameters.items() if p.verdict == "not finite"]

    @property
    def slopes(self) -> list[Slope]:
        """One for each stream."""
        return [
            Slope(
                log_slope(m.forward.state_rms for m in stream),
                log_slope(m.backward.arriving if m.backward else None for m in stream),
            )
            for stream in self.measured
        ]

    @property
    def all_measured(self) -> list[Measured]:
        """The connections of every stream, one stream after another."""
        return [m for stream in self.measured for m in stream]


def flow(model: nn.Module, *args: Any, loss: Loss | None = None, **kwargs: Any) -> Flow:
    """Run `model(*args, **kwargs)` forward and backward once and measure every residual connection.

    `loss` takes the model's output and returns a scalar; without it `default_loss` finds one. The model is left as it
    was found, `.grad` included. Raises `TraceError` if the model cannot run or its loss carries no gradient.
    """
    model = unwrapped(model)
    check_measurable(model, args, kwargs)
    kept: dict[Node, Kept] = {}
    parameters = dict(model.named_parameters())

    def new_capture() -> LevelCapture:
        kept.clear()
        return LevelCapture(model, watch=watch_into(kept), edges=True)

    with untouched(model), torch.inference_mode(False), torch.enable_grad():
        capture, inputs, leaves, output = run_asking(model, new_capture, args, kwargs)
        sharded = _is_sharded(model)
        if not sharded:
            _check_unchanged(model, parameters)
        value, name = loss_of(output, loss, capture.tables(tensors_in(inputs)))
        graph = graph_of(capture)
        shared = _shared(graph, capture.nodes)
        measurable = [r.connection for r in graph.residuals if not (r.connection in shared and sharded)]
        splits = {connection: Split(connection, connection in shared) for connection in measurable}
        asked = {n: p for n, p in parameters.items() if p.requires_grad}
        wanted = [*asked.values(), *leaves]
        try:
            gradients = torch.autograd.grad(value, wanted, allow_unused=True, retain_graph=bool(shared))
            for split in splits.values():
                split.stop_listening()
            for split in splits.values():
                split.finish()
        except Exception as error:
            raise TraceError(f"the backward pass raised {in_one_line(error)}") from error
        finally:
            for split in splits.values():
                split.close()
            for node in capture.nodes:
                node.edge = None  # autograd's graph is not kept alive by what was measured on it
    gradient_of = dict(zip(asked, gradients, strict=False))
    names = parameter_nodes(model, capture.nodes)
    measured = [
        [
            Measured(r, forward_of(kept[c.sum]), _backward(splits.get(c)), parameters_of(branch_of(c), names))
            for r, c in ((residual, residual.connection) for residual in stream.residuals)
        ]
        for stream in graph.streams
    ]
    flows = {} if sharded else {n: parameter_flow(p, gradient_of.get(n)) for n, p in parameters.items()}
    collapsed = {name for node in capture.collapsed() for name in parameters_behind(node, names)}
    finite = math.isfinite(float(value.detach())) and not any(p.verdict == "not finite" for p in flows.values())
    finite = finite and all(math.isfinite(m.forward.state_rms) for stream in measured for m in stream)
    maker = None if finite else where_nan(model, *args, loss=loss, **kwargs)
    return Flow(
        graph,
        measured,
        float(value.detach()),
        name,
        flows,
        list(adapters_in(capture.nodes, names, parameters)),
        sorted(collapsed),
        maker,
        changes=not finite and maker is None,
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
    """Parameters that are gathered for one pass and given back in it.

    They leave nothing for a local second pass, and their gradients go to the shards past `torch.autograd.grad`.
    """
    fsdp = sys.modules.get("torch.distributed.fsdp")
    return fsdp is not None and any(isinstance(module, fsdp.FSDPModule) for module in model.modules())


def _backward(split: Split | None) -> Backward | None:
    if split is None:
        return None
    parts = [split.norms.get(part) for part in ("arriving", "identity", "branch", "elsewhere", "cosine")]
    return None if None in parts else Backward(*(float(part) for part in parts if part is not None))


def _check_unchanged(model: nn.Module, before: dict[str, nn.Parameter]) -> None:
    after = dict(model.named_parameters())
    changed = sorted(n for n in {**before, **after} if before.get(n) is not after.get(n))
    if changed:
        some = ", ".join(changed[:4]) + (" and others" if len(changed) > 4 else "")
        raise TraceError(f"the model made or replaced parameters while it ran ({some}): run it once before, then audit")
