"""The matrix product of the explicit pairs."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

ONEDNN_FROM = 2**21
"""Multiplications from which oneDNN's product is the faster one: a call costs 17 µs, where PyTorch's own costs 3."""

HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def product(a: Float[Tensor, "*rows inner"], b: Float[Tensor, "inner columns"]) -> Float[Tensor, "*rows columns"]:
    """a b.

    PyTorch calls MKL for float32 on a CPU, and `torch.compile` calls oneDNN; on a processor that MKL was not made for,
    oneDNN is twice as fast (`benchmarks/products.py`).
    """
    if a.numel() * b.shape[1] >= ONEDNN_FROM and HAS_ONEDNN and _plain_float32(a, b):
        return torch.ops.mkldnn._linear_pointwise(a, b.t(), None, "none", [], "")
    return a @ b


def _plain_float32(a: Tensor, b: Tensor) -> bool:
    """Whether oneDNN would compute just what was asked for: autocast, for one, asks for another type."""
    return (
        a.dtype == b.dtype == torch.float32
        and a.device.type == "cpu"
        and bool(torch.backends.mkldnn.enabled)
        and not torch.is_autocast_enabled("cpu")
    )
