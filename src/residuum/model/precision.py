"""The type that sums are taken in."""

from __future__ import annotations

from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """A sum over a vocabulary, or of squares, would lose its small terms in half precision."""
    return x.float() if x.itemsize < 4 else x
