"""RS311: outputs of a ternary map that are always 0."""

from __future__ import annotations

from collections.abc import Iterator

from residuum.audit.finding import Evidence, Finding, Rule
from residuum.audit.rules._names import some


class DeadOutputs(Rule):
    """All weights of more than a tenth of a ternary map's outputs are rounded to 0: these outputs are 0 for any input.

    One scale serves the whole matrix, so the small weights of one output vanish together. By chance that is rare, where
    31 % of the weights are 0 once in 10⁵⁰ for 100 inputs, and small models have none after their training either
    (`python benchmarks/ternary_levels.py`); a tenth is no single output that has nothing to say. A whole matrix of 0 is
    RS309's.
    """

    code = "RS311"
    severity = "warning"
    title = "outputs of a ternary map always 0"
    mend = "give each output a scale of its own, decay these weights less, or make the map narrower"
    most = 0.1

    def check(self, seen: Evidence) -> Iterator[Finding]:
        dead = [(each.name, each.dead_outputs or 0.0) for each in seen.flow.ternary]
        found = [(name, share) for name, share in dead if self.most < share < 1]
        names = [name for name, _ in found]
        if names:
            maps = f"{len(names)} ternary maps" if len(names) > 1 else "1 ternary map"
            said = [f"{name} ({share:.0%} of them)" for name, share in found]
            yield self.finding(f"outputs of {maps} have no weight but 0: {some(said)}", names=names)


RULE = DeadOutputs()
