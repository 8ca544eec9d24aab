"""RS310: a ternary weight that is almost all 0."""

from __future__ import annotations

from collections.abc import Iterator

from residuum.audit.finding import Evidence, Finding, Rule
from residuum.audit.rules._names import some


class MostlyZero(Rule):
    """More than nine tenths of a ternary map's weights (−s, 0 and s are all its values) are rounded to 0.

    What is left then carries all that the map says. Rounded by mean|W|, as BitNet b1.58 is (Ma et al. 2024, arXiv
    2402.17764), 31 % of normal weights are 0, 25 % of uniform ones, and at most 52 % after a small model's training; by
    max|W|, the mistake that this finds, 96 % and more of 64 × 64 normal ones (`python benchmarks/ternary_levels.py`).
    All of them 0 is RS309's.
    """

    code = "RS310"
    severity = "warning"
    title = "ternary weight almost all 0"
    mend = "round by the mean of |W|, not its largest entry; look for a few weights that are far larger than the rest"
    most = 0.9

    def check(self, seen: Evidence) -> Iterator[Finding]:
        zeros = [(each.name, each.shares[1]) for each in seen.flow.ternary if each.shares is not None]
        found = [(name, share) for name, share in zeros if self.most < share < 1]
        names = [name for name, _ in found]
        if names:
            are = f"{len(names)} ternary weights are" if len(names) > 1 else "1 ternary weight is"
            said = [f"{name} ({share:.1%})" for name, share in found]
            yield self.finding(f"{are} almost all 0: {some(said)}", names=names)


RULE = MostlyZero()
