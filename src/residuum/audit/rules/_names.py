"""Long lists of parameters, cut to what a reader takes in."""

from __future__ import annotations

from collections.abc import Sequence

SHOWN = 4


def some(names: Sequence[str]) -> str:
    """The first four names, and how many more there are."""
    rest = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + rest
