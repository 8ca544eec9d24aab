"""RS206: a block that is frozen while its neighbours train."""

from __future__ import annotations

from collections.abc import Iterator

from residuum.audit.finding import Evidence, Finding, Rule, place
from residuum.stream import Measured, ParameterFlow


class FrozenBlock(Rule):
    """Every parameter of a branch has requires_grad=False, while most connections of its stream train.

    Freezing half of the connections or more is a design (adapters on attention only), and freezing the first ones is a
    way to fine-tune where the embedding is frozen too: then it is only news. Exact, so no threshold.
    """

    code = "RS206"
    severity = "warning"
    title = "frozen block among trained ones"
    mend = "requires_grad_(True) on the branch, if it is meant to train"

    def check(self, seen: Evidence) -> Iterator[Finding]:
        flow, parameters = seen.flow, seen.parameters
        for stream, measured in zip(flow.graph.streams, flow.measured, strict=True):
            holding = [m for m in measured if m.parameters]
            frozen = [m for m in holding if _frozen(m, parameters)]
            if 2 * len(frozen) >= len(holding):
                continue
            first = frozen == holding[: len(frozen)] and not _trains(stream.origin, parameters)
            for m in frozen:
                said = (
                    f"{place(m.residual)} is frozen; {len(holding) - len(frozen)} of {len(holding)} connections train"
                )
                yield self.finding(said, m.residual, "info" if first else None)


def _frozen(m: Measured, parameters: dict[str, ParameterFlow]) -> bool:
    return all(parameters[name].verdict == "frozen" for name in m.parameters)


def _trains(module: str, parameters: dict[str, ParameterFlow]) -> bool:
    inside = [p for name, p in parameters.items() if name.startswith(f"{module}.")]
    return any(p.verdict != "frozen" for p in inside)


RULE = FrozenBlock()
