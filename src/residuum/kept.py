"""Compile with Numba, once for all processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numba import njit


def kept(function: Callable[..., None], **options: Any) -> Any:
    """`function`, compiled and kept on disk, where Numba finds a folder for it: its own place, or the user's cache.

    Where no folder can be written to, each process compiles for itself. Takes `numba.njit`'s options.
    """
    try:
        return njit(cache=True, **options)(function)
    except RuntimeError:
        return njit(**options)(function)
