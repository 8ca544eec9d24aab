"""A few of many, spread over all of them."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def spread(count: int, most: int, device: torch.device) -> Tensor:
    """At most `most` different numbers below `count`, in strides by the golden ratio, which keep to no column."""
    stride = max(round(count * 0.618), 1)
    while math.gcd(stride, count) > 1:
        stride += 1
    return torch.arange(min(count, most), device=device) * stride % count
