"""How one figure goes with another: the straight line through it, and whether their orders agree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Line(NamedTuple):
    """y ≈ intercept + slope x by least squares; `r2` is the share of y's variance that it explains, 1 if y has none."""

    slope: float
    intercept: float
    r2: float


def line(x: Sequence[float], y: Sequence[float]) -> Line:
    """The least-squares line."""
    a, b = np.asarray(x, float), np.asarray(y, float)
    slope = float((a - a.mean()) @ (b - b.mean()) / ((a - a.mean()) @ (a - a.mean())))
    intercept = float(b.mean() - slope * a.mean())
    left, whole = float(((b - intercept - slope * a) ** 2).sum()), float(((b - b.mean()) ** 2).sum())
    return Line(slope, intercept, 1 - left / whole if whole else 1.0)


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> float:
    """Spearman's: the correlation of ranks, equal values sharing theirs; 0 where x or y is constant."""
    a, b = _ranks(x), _ranks(y)
    return float(np.corrcoef(a, b)[0, 1]) if a.std() and b.std() else 0.0


def _ranks(values: Sequence[float]) -> np.ndarray:
    given = np.asarray(values, float)
    return (given[:, None] > given).sum(1) + (given[:, None] == given).sum(1) / 2
