"""RS302: a branch that drowns the skip."""

from __future__ import annotations

from collections.abc import Iterator

from residuum.audit.finding import Evidence, Finding, Rule, place


class DominatingBranch(Rule):
    """A write of more than 255/256 of skip and write together: added in bfloat16 (2⁻⁸), the skip rounds away.

    Healthy models stay below 0.85 at the start, GPT-2's and Llama's first connections, which read a small embedding,
    among them. A skip that is exactly zero, as a decoder's first queries are, is not drowned.
    """

    code = "RS302"
    severity = "warning"
    title = "dominating branch"
    mend = "start the branch's last matrix smaller, normalise before the branch, or scale the embedding up"
    most = 1 - 2**-8

    def check(self, seen: Evidence) -> Iterator[Finding]:
        for m in seen.flow.all_measured:
            if m.forward.skip_rms > 0 and m.forward.write_share > self.most:
                said = f"{place(m.residual)} writes {m.forward.write_share:.2%} of skip and write together"
                yield self.finding(said, m.residual)


RULE = DominatingBranch()
