"""Where the explicit engine's parameter gradients go: added to `.grad`, in place where there is one."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from residuum.model.product import product

BLOCK = 512


def accumulate(parameter: nn.Parameter, gradient: Tensor) -> None:
    """grad ← grad + gradient. The tensor given must be nobody else's: it may become `.grad` itself."""
    if not parameter.requires_grad:
        return
    if parameter.grad is None:
        parameter.grad = gradient.to(_grad_dtype(parameter))
    else:
        parameter.grad += gradient


def accumulate_product(weight: nn.Parameter, dy: Float[Tensor, "rows d_out"], x: Float[Tensor, "rows d_in"]) -> None:
    """grad ← grad + dyᵀ x, some rows of it at a time: a second matrix as large as W never exists.

    Shapes: grad [d_out, d_in].
    """
    if not weight.requires_grad:
        return
    if weight.grad is None and len(weight) <= BLOCK:
        accumulate(weight, product(dy.t(), x.t()))
        return
    grad, xt = zeros_grad(weight), x.t()
    for start in range(0, len(weight), BLOCK):
        block = slice(start, start + BLOCK)
        grad[block] += product(dy[:, block].t(), xt)


def zeros_grad(parameter: nn.Parameter) -> Tensor:
    """`.grad`, made of zeros if there is none: for gradients that touch a few rows."""
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter, dtype=_grad_dtype(parameter))
    return parameter.grad


def _grad_dtype(parameter: nn.Parameter) -> torch.dtype:
    """The parameter's own, unless somebody asked for another (PyTorch's `grad_dtype`)."""
    return getattr(parameter, "grad_dtype", None) or parameter.dtype
