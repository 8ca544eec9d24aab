"""RS303: a stream that grows without bound."""

from __future__ import annotations

import math
from collections.abc import Iterator

from residuum.audit.finding import Evidence, Finding, Rule, Skip, place


class StreamGrowth(Rule):
    """The last state is more than a thousand times the first, root mean squares.

    Independent writes of one size grow a stream with the root of its depth: 11 times over 126 blocks. Models at the
    start stay below 36 times (`python benchmarks/healthy.py`); a thousand times, a channel sixty times the others'
    size is past what float16 holds (65,504).
    """

    code = "RS303"
    severity = "warning"
    title = "stream grows without bound"
    mend = "start the branches' last matrices smaller (by the root of the depth), or normalise what they write"
    most = 1e3

    def check(self, seen: Evidence) -> Iterator[Finding]:
        streams = [stream for stream in seen.flow.measured if len(stream) > 1]
        if not streams:
            raise Skip("no stream has two connections")
        for stream in streams:
            first, last = stream[0].forward.state_rms, stream[-1].forward.state_rms
            if math.isfinite(last) and first > 0 and last / first > self.most:
                said = f"the state after {place(stream[-1].residual)} is {last / first:.2g} times that after the first"
                yield self.finding(said, stream[-1].residual)


RULE = StreamGrowth()
