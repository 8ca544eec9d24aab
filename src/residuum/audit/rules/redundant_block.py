"""RS306: a block that writes and yet turns its state far less than the other blocks do."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median

from residuum.audit.finding import Evidence, Finding, Rule, Severity, place
from residuum.audit.rules._blocks import peers
from residuum.audit.rules.dead_branch import DeadBranch


class RedundantBlock(Rule):
    """A block influence of less than a thousandth of the median at the same place of the sibling blocks.

    Block influence is 1 − the mean cosine of skip and state (ShortGPT, Men et al. 2024, arXiv 2403.03853); the
    blocks with the least can be removed. Compared are attention with attention and feed-forward with feed-forward.
    It grows with the square of the write: a thousandth is a write of 1/32 of the others' size, or one along the
    skip, which only lengthens the state. Healthy blocks stay above 0.009 of their median (`python
    benchmarks/healthy.py`). Places that turn little anywhere (a median below 1e-3: post-norm at the start) are not
    judged, for a thousandth of that is rounding; a branch that writes about nothing is RS301's.
    """

    code = "RS306"
    severity = "warning"
    title = "redundant block"
    mend = "remove the block, or look at what keeps its write small or along the skip"
    least = 1e-3
    turning = 1e-3

    def check(self, seen: Evidence) -> Iterator[Finding]:
        for stream, measured in zip(seen.flow.graph.streams, seen.flow.measured, strict=True):
            for m in measured:
                f = m.forward
                common = median(measured[peer.index].forward.influence for peer in peers(m.residual, stream))
                if common < self.turning:
                    continue
                if f.influence < self.least * common and f.write_share >= DeadBranch.least:
                    said = f"{place(m.residual)} has a block influence of {f.influence:.1e}"
                    severity: Severity = "info" if m.residual.kind == "scaled" else "warning"
                    yield self.finding(f"{said}, the median of its peers is {common:.1e}", m.residual, severity)


RULE = RedundantBlock()
