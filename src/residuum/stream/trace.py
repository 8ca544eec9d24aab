"""Run somebody's model once, as it was found and leaving it so, and read its residual graph off the run."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import UninitializedParameter

from residuum.stream.capture import Capture, tensors_in
from residuum.stream.errors import TraceError, in_one_line
from residuum.stream.graph import ResidualGraph, graph_of
from residuum.stream.raised import module_that_raised
from residuum.stream.untouched import untouched


def trace(model: nn.Module, *args: Any, **kwargs: Any) -> ResidualGraph:
    """Run `model(*args, **kwargs)` once, without gradients, and return its residual graph.

    Works on real and on meta tensors. The model is left as it was found: its mode, gradients, buffers, and the state of
    the random generators. Raises `TraceError` if the forward pass itself raises, or hides its operations.
    """
    model = unwrapped(model)
    capture = Capture(model)
    with untouched(model), torch.no_grad():
        run(model, capture, args, kwargs)
    graph = graph_of(capture)
    if not graph.streams:
        graph.hidden = _hidden(model, args, kwargs)
    return graph


def _hidden(model: nn.Module, args: Any, kwargs: Any) -> int:
    """How many tensors came from functions out of sight: known by their gradient, which a second run asks for."""
    capture = Capture(model)
    with untouched(model), torch.inference_mode(False), torch.enable_grad():
        try:
            run(model, capture, args, kwargs)
        except TraceError:  # what only runs without gradients has nothing to be known by
            return 0
    return capture.hidden


def unwrapped(model: Any) -> nn.Module:
    """The module inside `torch.compile` and data-parallel wrappers.

    Raises `TraceError` for what is no module, or whose operations cannot be seen.
    """
    while isinstance(model, nn.Module):
        if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):  # torch.compile's
            model = inner
        else:
            break
    if not isinstance(model, nn.Module):
        raise TraceError(f"give a torch.nn.Module, not {model!r:.60}")
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        raise TraceError(
            f"{type(model).__name__} is compiled by torch.jit, which hides its operations: give it uncompiled"
        )
    if any(isinstance(parameter, UninitializedParameter) for parameter in model.parameters()):
        raise TraceError(f"{type(model).__name__} has lazy parameters: run it once before")
    return model


def run(model: nn.Module, capture: Capture, args: Any, kwargs: Any) -> Any:
    """The model's own output, its run captured; what its forward pass raises comes back as one `TraceError`."""
    inputs = list(tensors_in((args, kwargs)))
    if any(value.numel() == 0 for value in inputs):
        raise TraceError("an input is empty: give at least one example")
    capture.feed(inputs)
    try:
        with _eager(), capture:
            return model(*args, **kwargs)
    except (Exception, SystemExit) as error:
        raised = in_one_line(error, module_that_raised(model, error))
        raise TraceError(f"{type(model).__name__}'s forward pass raised {raised}") from error


def _eager() -> AbstractContextManager:
    """Run compiled parts of the model uncompiled; if nothing was compiled so far, there is nothing to do."""
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()
