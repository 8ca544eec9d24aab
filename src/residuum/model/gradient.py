"""Where the explicit engine's parameter gradients go: added to `.grad`, in place where there is one."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from residuum.model.product import product

Saved = tuple[Any, ...]
"""What a part keeps of its forward for its backward."""

BLOCK = 512
"""Rows of a weight's gradient that are computed at a time, so that what is added to it is small."""


def accumulate(parameter: Tensor, gradient: Tensor) -> None:
    """grad ← grad + gradient. The tensor given must be nobody else's: it may become `.grad` itself."""
    if not parameter.requires_grad:
        return
    if parameter.grad is None:
        parameter.grad = gradient.detach().to(grad_dtype(parameter))
    else:
        parameter.grad += gradient.detach()


def accumulate_product(weight: Tensor, dy: Float[Tensor, "rows d_out"], x: Float[Tensor, "rows d_in"]) -> None:
    """grad ← grad + dyᵀ x, a second matrix as large as W never existing. Shapes: grad [d_out, d_in]."""
    if not weight.requires_grad:
        return
    size = BLOCK if weight.device.type == "cpu" else len(weight)  # a GPU wants few large products
    if weight.grad is None and len(weight) <= size:
        accumulate(weight, product(dy.t(), x))
        return
    grad = zeros_grad(weight)
    for start in range(0, len(weight), size):
        block = slice(start, start + size)
        grad[block].add_(product(dy[:, block].t(), x).detach())


def zeros_grad(parameter: Tensor) -> Tensor:
    """`.grad`, made of zeros if there is none: for gradients that touch a few rows."""
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter, dtype=grad_dtype(parameter))
    return parameter.grad


def grad_dtype(parameter: Tensor) -> torch.dtype:
    """The parameter's own, unless somebody asked for another (PyTorch's `Tensor.grad_dtype`)."""
    return getattr(parameter, "grad_dtype", None) or parameter.dtype
