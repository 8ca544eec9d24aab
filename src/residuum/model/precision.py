"""The type that sums are taken in."""

from __future__ import annotations

import torch
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """A sum over a vocabulary, or of squares, would lose its small terms in half precision."""
    return x.float() if x.itemsize < 4 else x


def inner(a: Tensor, b: Tensor) -> Tensor:
    """⟨a, b⟩ over all entries: the gradient of a number that one of them was multiplied by."""
    return torch.dot(at_least_float32(a).flatten(), at_least_float32(b).flatten())
