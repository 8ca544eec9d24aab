"""RS101: there is no residual connection at all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from residuum.audit.finding import Evidence, Finding, Rule, Skip


class NoConnection(Rule):
    """Without an identity path every gradient passes every branch, and a deep stack does not train (He et al. 2015).

    Fires too where one line of code adds in four or more blocks of one width, and no block's sum is the state that the
    next one adds to: those are skips inside the blocks, and none leads from one block to the next.
    """

    code = "RS101"
    severity = "error"
    title = "no residual connection"
    mend = "add the input of each sub-layer to its output: x + f(x)"
    apart = 4
    example = """
x = self.mlp(self.norm(x))  # faulty
x = x + self.mlp(self.norm(x))  # mended
"""

    def check(self, seen: Evidence) -> Iterator[Finding]:
        if list(seen.graph.residuals):
            yield from self._apart(seen)
            return
        if seen.graph.hidden:
            raise Skip(
                f"{seen.graph.hidden} tensors come from functions that cannot be seen into (compiled, vectorised)"
            )
        yield self.finding(f"no residual connection among {seen.graph.operations} operations")

    def _apart(self, seen: Evidence) -> Iterator[Finding]:
        if any(len(stream.residuals) > 1 for stream in seen.graph.streams):
            return
        alone = [stream.residuals[0] for stream in seen.graph.streams]
        (_, shape), count = Counter((each.source, each.shape) for each in alone).most_common(1)[0]
        if count >= self.apart:
            first = next(each for each in alone if each.shape == shape)
            yield self.finding(
                f"{count} connections, and none adds to what another made: no stream leads through", first
            )


RULE = NoConnection()
