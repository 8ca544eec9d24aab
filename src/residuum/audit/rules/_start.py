"""Whether what is zero will stay so: what RS203, RS301 and RS308 ask."""

from __future__ import annotations

from collections.abc import Iterable

from residuum.stream import Flow


def only_starts(names: Iterable[str], flow: Flow) -> bool:
    """Whether a branch or adapter that gives exactly nothing trains all the same.

    The matrix that starts at zero gets a gradient itself, and through it the rest from the second step on; where no
    parameter gets one, none ever will. Sharded parameters cannot be looked at, and get the benefit of the doubt.
    """
    return not flow.parameters or any(flow.parameters[name].gradient_rms for name in names)
