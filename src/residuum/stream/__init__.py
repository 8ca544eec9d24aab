"""See the residual stream of any `nn.Module`. This room imports nothing else of residuum."""

from residuum.stream.adapter import Adapter
from residuum.stream.errors import TraceError
from residuum.stream.flow import flow
from residuum.stream.forward import Forward
from residuum.stream.graph import Residual, ResidualGraph, Stream
from residuum.stream.loss import Loss
from residuum.stream.measured import Flow, Measured, Slope
from residuum.stream.node import Source
from residuum.stream.parameter import ParameterFlow
from residuum.stream.rounded import RoundedMap
from residuum.stream.split import Backward
from residuum.stream.trace import trace
from residuum.stream.where_nan import NanMaker, where_nan

__all__ = [
    "Adapter",
    "Backward",
    "Flow",
    "Forward",
    "Loss",
    "Measured",
    "NanMaker",
    "ParameterFlow",
    "Residual",
    "ResidualGraph",
    "RoundedMap",
    "Slope",
    "Source",
    "Stream",
    "TraceError",
    "flow",
    "trace",
    "where_nan",
]
