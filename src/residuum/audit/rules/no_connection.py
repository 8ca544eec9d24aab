"""RS101: there is no residual connection at all."""

from __future__ import annotations

from collections.abc import Iterator

from residuum.audit.finding import Finding, Severity, Skip
from residuum.stream import Flow


class NoConnection:
    """Without an identity path every gradient passes every branch, and a deep stack does not train (He et al. 2015)."""

    code = "RS101"
    severity: Severity = "error"
    title = "no residual connection"

    def check(self, flow: Flow) -> Iterator[Finding]:
        if list(flow.graph.residuals):
            return
        if flow.graph.hidden:
            raise Skip(
                f"{flow.graph.hidden} tensors come from functions that cannot be seen into (compiled, vectorised)"
            )
        yield Finding(
            self.code,
            self.severity,
            f"no residual connection among {flow.graph.operations} operations",
            "add the input of each sub-layer to its output: x + f(x)",
        )


RULE = NoConnection()
