"""Keep Python's collector out of a graph of values."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collector_paused() -> Iterator[None]:
    """Pause the search for cycles while a graph is made, walked and dropped, and resume it if it was on.

    Edges lead from young to old, so a graph has no cycles and is freed by reference counts alone. The collector cannot
    know, and would walk the whole of a graph again and again while it grows.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
