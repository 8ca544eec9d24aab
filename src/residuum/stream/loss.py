"""A loss for a model that brought none, so that a gradient can be looked at."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from residuum.stream.capture import tensors_in
from residuum.stream.errors import TraceError, in_one_line

Loss = Callable[[Any], Tensor]


def loss_of(output: Any, loss: Loss | None, tokens: list[tuple[Tensor, int]]) -> tuple[Tensor, str]:
    """The number to differentiate, from the user's own `loss` or the default one, and its name."""
    if loss is None:
        value, name = default_loss(output, tokens)
    else:
        try:
            value, name = loss(output), "the given loss"
        except Exception as error:
            raise TraceError(f"the given loss raised {in_one_line(error)}") from error
    if isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex() and not value.requires_grad:
        raise TraceError(f"{name} carries no gradient: compute it from the model's output, without detach or no_grad")
    if not isinstance(value, Tensor) or value.numel() != 1 or value.is_complex():
        raise TraceError(f"{name} must be one real number that carries a gradient, got {_describe(value)}")
    return value.reshape(()), name


def default_loss(output: Any, tokens: list[tuple[Tensor, int]]) -> tuple[Tensor, str]:
    """A scalar to differentiate, and what it is in words.

    The model's own loss if it returned one (named `loss`, or first and a single number); the next token's cross-entropy
    if the output scores the vocabulary of one of `tokens`, which come with the number of rows of the table that they
    were looked up in; otherwise the output's product with fixed random numbers, which asks for every entry's gradient
    alike (the output's own square would not: a final norm holds it constant).
    """
    values = [value for value in tensors_in(output) if value.is_floating_point() and value.requires_grad]
    if not values:
        raise TraceError("the model's output carries no gradient: give loss=, or let a parameter require grad")
    own = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", values[0])
    if isinstance(own, Tensor) and own.ndim == 0:
        return own, "the model's own loss"
    for read, rows in tokens:
        scores = values[0]
        if scores.shape == (*read.shape, rows) and read.ndim == 2 and read.shape[1] > 1:
            flat = scores[:, :-1].reshape(-1, rows)
            return F.cross_entropy(flat.float(), read[:, 1:].reshape(-1).long()), "next-token cross-entropy"
    value = values[0]
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(value.shape, generator=generator, dtype=torch.float32).to(value.device, value.dtype)
    return (value * direction).sum() / value.numel() ** 0.5, "a fixed random projection of the output"


def _describe(value: Any) -> str:
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
