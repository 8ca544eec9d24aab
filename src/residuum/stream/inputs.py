"""Run a model with a gradient asked of its inputs, for one of them may itself be the skip."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor, nn

from residuum.stream.capture import Capture
from residuum.stream.errors import TraceError
from residuum.stream.trace import run

_Captured = TypeVar("_Captured", bound=Capture)


def run_asking(
    model: nn.Module, new_capture: Callable[[], _Captured], args: Any, kwargs: Any
) -> tuple[_Captured, Any, list[Tensor], Any]:
    """The capture, the inputs as they were given to the model, the leaves that ask for a gradient, and the output.

    Some models do with their inputs what is not allowed where a gradient is asked of them: they run once more, in a new
    capture, with the inputs as they are.
    """
    leaves: list[Tensor] = []
    try:
        capture = new_capture()
        inputs = _asking_for_gradient((args, kwargs), leaves)
        return capture, inputs, leaves, run(model, capture, *inputs)
    except TraceError:
        capture = new_capture()
        return capture, (args, kwargs), [], run(model, capture, args, kwargs)


def _asking_for_gradient(values: Any, leaves: list[Tensor]) -> Any:
    """The inputs as views of new leaves, which may be overwritten where a leaf may not."""
    if isinstance(values, Tensor):
        if values.is_inference():
            values = values.clone()
        if not (values.is_floating_point() or values.is_complex()) or values.requires_grad:
            return values
        leaves.append(values.detach().requires_grad_())
        return leaves[-1].view_as(leaves[-1])
    if type(values) in (tuple, list):
        return type(values)(_asking_for_gradient(value, leaves) for value in values)
    if type(values) is dict:
        return {key: _asking_for_gradient(value, leaves) for key, value in values.items()}
    return values
