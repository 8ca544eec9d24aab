"""RS102: the connections of one stream place their norms differently."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from residuum.audit.finding import Evidence, Finding, Rule, place


class MixedPlacement(Rule):
    """One connection among many that is normalised differently is more often an oversight than a design.

    Fires where fewer than a quarter of a stream's connections differ from the rest: designs that mix on purpose
    (Mix-LN: the first quarter post, the rest pre) stay below it.
    """

    code = "RS102"
    severity = "warning"
    title = "norm placed differently from the rest of the stream"
    mend = "normalise it as the others are, if the difference is not meant"

    def check(self, seen: Evidence) -> Iterator[Finding]:
        for stream in seen.graph.streams:
            common, count = Counter(r.placement for r in stream.residuals).most_common(1)[0]
            different = [r for r in stream.residuals if r.placement != common]
            if 4 * len(different) >= len(stream.residuals):
                continue
            for residual in different:
                rest = f"{count} of the stream's {len(stream.residuals)} connections are {common}"
                yield self.finding(f"{place(residual)} is {residual.placement}, but {rest}", residual)


RULE = MixedPlacement()
