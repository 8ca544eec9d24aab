"""Which part of a model an error comes from."""

from __future__ import annotations

from torch import nn


def module_that_raised(model: nn.Module, error: BaseException) -> str:
    """The path of the innermost module of `model` that was running when `error` was raised; empty if it was `model`."""
    names = {id(module): name for name, module in model.named_modules()}
    found, trace = "", error.__traceback__
    while trace is not None:
        found = names.get(id(trace.tb_frame.f_locals.get("self")), found)
        trace = trace.tb_next
    return found
