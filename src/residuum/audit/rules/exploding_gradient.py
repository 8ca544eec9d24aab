"""RS202: the gradient grows without bound on its way to the first connection."""

from __future__ import annotations

from collections.abc import Iterator

from residuum.audit.finding import Evidence, Finding, Rule, place
from residuum.audit.rules._reach import reach


class ExplodingGradient(Rule):
    """More than a thousand times the gradient at the last connection arrives at the first.

    The bound mirrors RS201's and is far from what works: over 24 blocks at the start, 1.2 times the gradient arrives
    with pre-norm and 36 times with post-norm (`python benchmarks/gradient_reach.py`).
    """

    code = "RS202"
    severity = "warning"
    title = "exploding gradient"
    mend = "normalise before the branch (pre), or start the branches' last matrices smaller"
    most = 1e3

    def check(self, seen: Evidence) -> Iterator[Finding]:
        for first, last, ratio in reach(seen.flow):
            if ratio > self.most:
                yield self.finding(f"the gradient at {place(first)} is {ratio:.2g} times that at {place(last)}", first)


RULE = ExplodingGradient()
