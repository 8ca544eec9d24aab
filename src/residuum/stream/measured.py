"""What one forward and one backward pass say, read off what was kept of them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from residuum.stream.adapter import Adapter, adapters_in
from residuum.stream.connection import branch_of
from residuum.stream.forward import Forward, Kept, forward_of
from residuum.stream.graph import Residual, ResidualGraph
from residuum.stream.levels import LevelCapture
from residuum.stream.node import Connection, Node
from residuum.stream.parameter import ParameterFlow
from residuum.stream.rounded import RoundedMap, rounded_maps
from residuum.stream.slope import log_slope
from residuum.stream.split import Backward, Split
from residuum.stream.waiting import waiting_in
from residuum.stream.weights import is_sharded, parameters_behind, parameters_of
from residuum.stream.where_nan import NanMaker


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
    parameters that a rounding turned into one value; `rounded` has the maps whose weights are rounded. `nan_maker` is
    looked for, in a run of its own, only if a value or a gradient is not finite; where that run found nothing, the
    model `changes` between runs (or is finite, and only the squares of its values are not). `waiting` names the
    parameters whose gradient is zero because another one that they are multiplied by starts at zero.
    """

    graph: ResidualGraph
    measured: list[list[Measured]]
    loss: float
    loss_name: str
    parameters: dict[str, ParameterFlow]
    adapters: list[Adapter]
    collapsed: list[str]
    rounded: list[RoundedMap]
    nan_maker: NanMaker | None
    changes: bool = False
    waiting: frozenset[str] = frozenset()

    @property
    def without_gradient(self) -> list[str]:
        """The parameters that ask for a gradient and get none, or exactly zero."""
        return [name for name, p in self.parameters.items() if p.verdict in ("no gradient", "zero")]

    @property
    def not_finite(self) -> list[str]:
        """The parameters whose gradient holds NaN or infinity."""
        return [name for name, p in self.parameters.items() if p.verdict == "not finite"]

    @property
    def finite(self) -> bool:
        """Whether the loss, every state and every parameter's gradient is."""
        numbers = (self.loss, *(m.forward.state_rms for m in self.all_measured))
        return all(map(math.isfinite, numbers)) and not self.not_finite

    @property
    def ternary(self) -> list[RoundedMap]:
        """The maps whose weights are −s, 0 and s, or −s and s alone."""
        return [each for each in self.rounded if each.shares is not None]

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


@dataclass(frozen=True)
class Passes:
    """What was kept of a forward pass and the backward pass through it; `names` are those of the parameters' nodes."""

    capture: LevelCapture
    graph: ResidualGraph
    kept: dict[Node, Kept]
    splits: dict[Connection, Split]
    names: dict[Node, str]

    def read(
        self,
        loss: float,
        loss_name: str,
        parameters: Mapping[str, nn.Parameter],
        flows: dict[str, ParameterFlow],
        scale: float = 1.0,
    ) -> Flow:
        """All but the maker of a NaN. The norms of gradients are divided by `scale`."""
        whole = not any(map(is_sharded, parameters.values()))
        return Flow(
            self.graph,
            [[self._measured(residual, scale) for residual in stream.residuals] for stream in self.graph.streams],
            loss,
            loss_name,
            flows,
            list(adapters_in(self.capture.nodes, self.names, parameters)) if whole else [],
            sorted({name for node in self.capture.collapsed() for name in parameters_behind(node, self.names)}),
            list(rounded_maps(self.capture, self.names)),
            nan_maker=None,
            waiting=waiting_in(self.capture.nodes, self.names, flows),
        )

    def _measured(self, residual: Residual, scale: float) -> Measured:
        connection = residual.connection
        backward = self.splits[connection].read()
        return Measured(
            residual,
            forward_of(self.kept[connection.sum]),
            backward and _divided(backward, scale),
            parameters_of(branch_of(connection), self.names),
        )


def _divided(backward: Backward, scale: float) -> Backward:
    norms = ("arriving", "identity", "branch", "elsewhere")
    return dataclasses.replace(backward, **{name: getattr(backward, name) / scale for name in norms})
