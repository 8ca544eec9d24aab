"""RS304: the positions of a stream become one."""

from __future__ import annotations

from collections.abc import Iterator

from residuum.audit.finding import Evidence, Finding, Rule, Skip, place


class RankCollapse(Rule):
    """The last state's effective rank is less than a quarter of the first's.

    Attention without skips makes all positions alike at a doubly exponential rate (Dong et al. 2021, arXiv 2103.03404);
    what is left of the rank then tends to 1. Healthy models keep at least 0.45 of it (`python benchmarks/healthy.py`).
    Where the first state has a rank below 8 there is too little to lose, and where it is of fewer positions too. News
    only, for small models pass through it in their first steps and go on to train; a warning where less than 1.5 is
    left. That bound is argued and not measured: at a rank of 1 all positions are one, at 2 they still span a plane.
    """

    code = "RS304"
    severity = "warning"
    title = "effective rank collapses"
    mend = "let the skip carry more (smaller writes), or look for attention that spreads over all positions alike"
    least = 0.25
    enough = 8.0
    one = 1.5

    def check(self, seen: Evidence) -> Iterator[Finding]:
        judged = [s for s in seen.flow.measured if len(s) > 1 and s[0].forward.effective_rank >= self.enough]
        if not judged:
            raise Skip("no stream has two connections and a first state of effective rank 8 or more")
        for stream in judged:
            first, last = stream[0].forward.effective_rank, stream[-1].forward.effective_rank
            if stream[-1].forward.sampled == stream[0].forward.sampled and last < self.least * first:
                said = (
                    f"the state's effective rank falls from {first:.1f} to {last:.1f} at {place(stream[-1].residual)}"
                )
                yield self.finding(said, stream[-1].residual, None if last < self.one else "info")


RULE = RankCollapse()
