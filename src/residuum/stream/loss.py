"""A loss for a model that brought none, so that a gradient can be looked at."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from residuum.stream.capture import tensors_in
from residuum.stream.errors import TraceError


def default_loss(output: Any, inputs: list[Tensor]) -> tuple[Tensor, str]:
    """A scalar to differentiate, and what it is in words.

    The model's own `loss` if it returned one; the next token's cross-entropy if the output looks like scores over the
    input's tokens; otherwise the output's product with fixed random numbers, which asks for every entry's gradient
    alike (the output's own square would not: a final norm holds it constant).
    """
    own = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
    if isinstance(own, Tensor) and own.numel() == 1:
        return own.reshape(()), "the model's own loss"
    values = [value for value in tensors_in(output) if value.is_floating_point() and value.requires_grad]
    if not values:
        raise TraceError("the model's output carries no gradient: give loss=, or let a parameter require grad")
    for tokens in inputs:
        scores = values[0]
        if tokens.is_floating_point() or scores.shape[:-1] != tokens.shape or tokens.ndim != 2 or tokens.shape[1] < 2:
            continue
        if int(tokens.max()) < scores.shape[-1] and int(tokens.min()) >= 0:
            flat = scores[:, :-1].reshape(-1, scores.shape[-1])
            return F.cross_entropy(flat.float(), tokens[:, 1:].reshape(-1).long()), "next-token cross-entropy"
    value = values[0]
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(value.shape, generator=generator, dtype=torch.float32).to(value.device, value.dtype)
    return (value * direction).sum() / value.numel() ** 0.5, "a fixed random projection of the output"
