"""RS101: there is no residual connection at all."""

from __future__ import annotations

from collections.abc import Iterator

from residuum.audit.finding import Evidence, Finding, Rule, Skip


class NoConnection(Rule):
    """Without an identity path every gradient passes every branch, and a deep stack does not train (He et al. 2015)."""

    code = "RS101"
    severity = "error"
    title = "no residual connection"
    mend = "add the input of each sub-layer to its output: x + f(x)"
    example = """
x = self.mlp(self.norm(x))  # faulty
x = x + self.mlp(self.norm(x))  # mended
"""

    def check(self, seen: Evidence) -> Iterator[Finding]:
        if list(seen.graph.residuals):
            return
        if seen.graph.hidden:
            raise Skip(
                f"{seen.graph.hidden} tensors come from functions that cannot be seen into (compiled, vectorised)"
            )
        yield self.finding(f"no residual connection among {seen.graph.operations} operations")


RULE = NoConnection()
