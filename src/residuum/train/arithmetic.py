"""Sums and products as text: data that needs no file and has one right answer."""

from __future__ import annotations

TERMS = range(100)
FACTORS = range(1, 10)


def arithmetic() -> list[tuple[str, str]]:
    """a+b=c for all a and b below 100, and a*b=c where one is below 100 and the other from 1 to 9; each with its name.

    A problem and its mirror, 3+14 and 14+3, have one name: they are trained on together, or held out together.
    """
    sums = [((min(a, b), "+", max(a, b)), f"{a}+{b}={a + b}") for a in TERMS for b in TERMS]
    factors = sorted({pair for a in TERMS for b in FACTORS for pair in ((a, b), (b, a))})
    products = [((min(a, b), "*", max(a, b)), f"{a}*{b}={a * b}") for a, b in factors]
    return [("{}{}{}".format(*name), problem) for name, problem in sums + products]
