"""Mean and 95% interval of a few seeds, and of the difference between two things measured with the same seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

LEAST_SEEDS = 3
"""With two seeds the interval's factor is 12.7, and says nothing."""


@dataclass(frozen=True)
class Interval:
    """mean ± half: the 95% interval of a mean of n values that are normally distributed. `half` is None for n = 1."""

    mean: float
    half: float | None
    n: int

    @property
    def excludes_zero(self) -> bool:
        """Whether the whole interval lies on one side of 0."""
        return self.half is not None and abs(self.mean) > self.half

    def __str__(self) -> str:
        return f"{self.mean:.3f}" if self.half is None else f"{self.mean:.3f} ± {self.half:.3f}"


def interval(values: Sequence[float]) -> Interval:
    """mean ± t s / √n, where s is the sample's standard deviation and t Student's 97.5% quantile for n − 1 degrees.

    Source: Student 1908, https://doi.org/10.1093/biomet/6.1.1.
    """
    n = len(values)
    if n < 2:
        return Interval(values[0], None, n)
    half = t_quantile(0.975, n - 1) * statistics.stdev(values) / math.sqrt(n)
    return Interval(statistics.fmean(values), half, n)


def paired(a: Sequence[float], b: Sequence[float]) -> Interval:
    """The interval of a − b, where a[i] and b[i] share a seed: what the seed does to both is no noise."""
    return interval([x - y for x, y in zip(a, b, strict=True)])


def t_quantile(p: float, degrees: int) -> float:
    """The t below which Student's distribution with `degrees` of freedom has probability p, for 0.5 ≤ p < 1.

    Halves an interval until two neighbouring floats are left.
    """
    low, high = 0.0, 1.0
    while _central(high, degrees) < 2 * p - 1:
        low, high = high, 2 * high
    while low < (middle := (low + high) / 2) < high:
        if _central(middle, degrees) < 2 * p - 1:
            low = middle
        else:
            high = middle
    return high


def _central(t: float, degrees: int) -> float:
    """P(|T| < t), a finite sum for whole degrees of freedom.

    Source: Abramowitz, Stegun 1964, 26.7.3 and 26.7.4, https://personal.math.ubc.ca/~cbm/aands/page_948.htm.
    """
    angle = math.atan(t / math.sqrt(degrees))
    sine, cosine = math.sin(angle), math.cos(angle)
    if degrees == 1:
        return 2 * angle / math.pi
    term = total = 1.0 if degrees % 2 == 0 else cosine
    for k in range(degrees % 2 + 1, degrees - 2, 2):
        term *= cosine**2 * k / (k + 1)
        total += term
    return sine * total if degrees % 2 == 0 else 2 / math.pi * (angle + sine * total)
