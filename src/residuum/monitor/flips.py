"""How many ternary weights change their level while they train."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from residuum.stream import RoundedMap


class Flips:
    """Of each ternary map the share of weights whose level is not what it was at the last look.

    Looked at are the weights in `RoundedMap.sample`: of a larger map the share is known to 0.002.
    """

    def __init__(self) -> None:
        self._before: dict[Any, Tensor] = {}

    def since_last(self, maps: list[RoundedMap]) -> list[float | None]:
        """Of each map; None where the last look, if there was one, did not see the same weights."""
        before = self._before
        self._before = {_weights(each): each.sample for each in maps if each.block is not None}
        return [_changed(before.get(_weights(each)), each.sample) for each in maps]


def _weights(each: RoundedMap) -> tuple[Any, ...]:
    """Which they are."""
    return each.module, each.parameters, each.block, each.shape


def _changed(before: Tensor | None, now: Tensor) -> float | None:
    return None if before is None else float((now != before).float().mean())
