"""How many ternary weights change their level while they train."""

from __future__ import annotations

from torch import Tensor

from residuum.stream import RoundedMap


class Flips:
    """Of each ternary map the share of weights whose level is not what it was at the last look.

    Looked at are the weights in `RoundedMap.sample`: of a larger map the share is known to 0.002.
    """

    def __init__(self) -> None:
        self._before: dict[str, Tensor] = {}

    def since_last(self, maps: list[RoundedMap]) -> dict[str, float | None]:
        """Of each map by name; None where there was no look before this one."""
        before, self._before = self._before, {each.name: each.sample for each in maps}
        return {
            name: float((sample != before[name]).float().mean()) if name in before else None
            for name, sample in self._before.items()
        }
