"""RS305: a few channels of the state tower over the rest."""

from __future__ import annotations

import math
from collections.abc import Iterator

from residuum.audit.finding import Evidence, Finding, Rule, place


class OutlierDimension(Rule):
    """A channel of more than six times the median channel, root mean squares.

    Six is where outlier features begin that 8-bit arithmetic must treat apart (Dettmers et al. 2022, arXiv 2208.07339);
    healthy models stay below 5 at the start (`python benchmarks/healthy.py`), trained ones often do not: news. A
    thousand times is what massive activations are defined by (Sun et al. 2024, arXiv 2402.17762): a warning.
    """

    code = "RS305"
    severity = "info"
    title = "outlier dimension"
    mend = "quantise these channels apart; in training, look at the norm's gain and at weight decay"
    most = 6.0
    massive = 1e3

    def check(self, seen: Evidence) -> Iterator[Finding]:
        for stream in seen.flow.measured:
            finite = [m for m in stream if math.isfinite(m.forward.outlier)]
            worst = max(finite, key=lambda m: m.forward.outlier, default=None)
            if worst is not None and worst.forward.outlier > self.most:
                said = (
                    f"one channel is {worst.forward.outlier:.3g} times the median channel after {place(worst.residual)}"
                )
                yield self.finding(said, worst.residual, "warning" if worst.forward.outlier > self.massive else None)


RULE = OutlierDimension()
