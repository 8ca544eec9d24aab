"""The type that sums are taken in."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """A sum over a vocabulary, or of squares, would lose its small terms in half precision."""
    return x.float() if x.itemsize < 4 else x


def inner(a: Tensor, b: Tensor) -> Tensor:
    """⟨a, b⟩ over all entries: the gradient of a number that one of them was multiplied by."""
    return torch.dot(at_least_float32(a).flatten(), at_least_float32(b).flatten())


def without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """What follows is computed in the type of its operands, on whatever device x is."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()
