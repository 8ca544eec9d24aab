"""RS301: a branch that writes about nothing."""

from __future__ import annotations

from collections.abc import Iterator

from residuum.audit.finding import Finding, Severity, place
from residuum.stream import Flow


class DeadBranch:
    """A write of less than 1/10,000 of skip and write together: below what float16 would even notice (2⁻¹¹ ≈ 1/2,000).

    Zero-initialised models start with branches that write exactly nothing, and scaled ones (LayerScale's 1e-6) with
    next to nothing: then it is no fault, only news.
    """

    code = "RS301"
    severity: Severity = "warning"
    title = "dead branch"
    least = 1e-4

    def check(self, flow: Flow) -> Iterator[Finding]:
        for m in flow.all_measured:
            if m.forward.write_rms == 0:
                yield Finding(
                    self.code,
                    "info",
                    f"{place(m.residual)} writes exactly nothing",
                    "nothing to mend at the start of a zero-initialised model; after training it is a dead branch",
                    m.residual.module,
                    m.residual.source,
                )
            elif m.forward.write_share < self.least:
                yield Finding(
                    self.code,
                    "info" if m.residual.kind == "scaled" else self.severity,
                    f"{place(m.residual)} writes {m.forward.write_share:.1e} of skip and write together",
                    "remove the branch, or look at what keeps its last matrix small (its scale, weight decay, gate)",
                    m.residual.module,
                    m.residual.source,
                )


RULE = DeadBranch()
