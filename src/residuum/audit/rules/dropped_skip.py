"""RS110: dropout or stochastic depth on the skip."""

from __future__ import annotations

from collections.abc import Iterator

from residuum.audit.finding import Evidence, Finding, Rule, place
from residuum.audit.rules._way import drops_by_hand, nodes_between, skip_nodes
from residuum.stream import ops


class DroppedSkip(Rule):
    """Entries, or whole examples, are dropped from the skip: value and gradient of the stream are lost there for good.

    What is dropped from the state is missing in every later layer, and the shares multiply: at a rate of 0.1 and 24
    connections, 8% of the entries arrive untouched. With dropout on the shortcut a 110-layer ResNet did not converge
    (He et al. 2016, arXiv 1603.05027, table 1). Exact, so no threshold. Dropout that is switched off (`eval`) is seen
    all the same; stochastic depth written by hand only while it drops. A skip and its branch dropped together, as one
    value, count as the skip.
    """

    code = "RS110"
    severity = "warning"
    title = "dropout on the skip"
    mend = "drop from the branch's write, never from the skip: x + dropout(f(x))"
    example = """
x = self.dropout(x + self.mlp(self.norm(x)))  # faulty: the skip is dropped too
x = x + self.dropout(self.mlp(self.norm(x)))  # mended
"""

    def check(self, seen: Evidence) -> Iterator[Finding]:
        for stream in seen.graph.streams:
            passed = [(r, skip_nodes(r), f"the skip of {place(r)}") for r in stream.residuals]
            passed += [
                (later, nodes, f"the state between {place(earlier)} and {place(later)}")
                for earlier, later, nodes in nodes_between(stream)
            ]
            for residual, nodes, where in passed:
                if any(node.op in ops.DROPOUT for node in nodes):
                    yield self.finding(f"{where} passes a dropout", residual)
                elif any(drops_by_hand(node) for node in nodes):
                    yield self.finding(f"{where} is multiplied by random numbers (stochastic depth)", residual)


RULE = DroppedSkip()
