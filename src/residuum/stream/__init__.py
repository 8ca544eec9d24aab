"""See the residual stream of any `nn.Module`. This room imports nothing else of residuum."""

from residuum.stream.errors import TraceError
from residuum.stream.flow import Backward, Flow, Forward, Loss, Measured, flow
from residuum.stream.graph import Residual, ResidualGraph, Stream, trace
from residuum.stream.node import Source

__all__ = [
    "Backward",
    "Flow",
    "Forward",
    "Loss",
    "Measured",
    "Residual",
    "ResidualGraph",
    "Source",
    "Stream",
    "TraceError",
    "flow",
    "trace",
]
