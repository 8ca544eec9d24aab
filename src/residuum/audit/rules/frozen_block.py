"""RS206: a block that is frozen while its neighbours train."""

from __future__ import annotations

from collections.abc import Iterator

from residuum.audit.finding import Evidence, Finding, Rule, place
from residuum.stream import Flow, Measured


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
        flow = seen.flow
        for stream, measured in zip(flow.graph.streams, flow.measured, strict=True):
            holding = [m for m in measured if m.parameters]
            frozen = [m for m in holding if _frozen(m, flow)]
            if 2 * len(frozen) >= len(holding):
                continue
            first = frozen == holding[: len(frozen)] and not _trains(stream.origin, flow)
            for m in frozen:
                said = (
                    f"{place(m.residual)} is frozen; {len(holding) - len(frozen)} of {len(holding)} connections train"
                )
                yield self.finding(said, m.residual, "info" if first else None)


def _frozen(m: Measured, flow: Flow) -> bool:
    return all(flow.parameters[name].verdict == "frozen" for name in m.parameters)


def _trains(module: str, flow: Flow) -> bool:
    inside = [p for name, p in flow.parameters.items() if name.startswith(f"{module}.")]
    return any(p.verdict != "frozen" for p in inside)


RULE = FrozenBlock()
