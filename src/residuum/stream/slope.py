"""How a quantity grows or shrinks from one connection to the next."""

from __future__ import annotations

import math
from collections.abc import Iterable


def log_slope(values: Iterable[float | None]) -> float | None:
    """The least-squares slope of log(value) on the connection's index: each connection multiplies by e^slope.

    What is missing, zero or not finite has no logarithm and is left out; None if fewer than two values remain.
    """
    points = [(i, math.log(v)) for i, v in enumerate(values) if v is not None and 0 < v < math.inf]
    if len(points) < 2:
        return None
    middle_i = sum(i for i, _ in points) / len(points)
    middle_y = sum(y for _, y in points) / len(points)
    return sum((i - middle_i) * (y - middle_y) for i, y in points) / sum((i - middle_i) ** 2 for i, _ in points)
