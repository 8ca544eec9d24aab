"""RS307: a stream that promises to start as the identity, and does not."""

from __future__ import annotations

from collections.abc import Iterator

from residuum.audit.finding import Evidence, Finding, Rule, place


class NotIdentity(Rule):
    """Most branches of a stream write exactly nothing, as zero-initialised ones do, and a few write something.

    A promise is read off the values: at least three quarters of the writes are exactly zero, which no branch comes to
    by chance. A quarter is the bound of RS102 for what is an oversight and no design.
    """

    code = "RS307"
    severity = "warning"
    title = "not the identity at the start"
    mend = "start this branch's last matrix, scale or gate at zero as the others do, or none of them"

    def check(self, seen: Evidence) -> Iterator[Finding]:
        for stream in seen.flow.measured:
            writing = [m for m in stream if m.forward.write_rms != 0]
            if 4 * len(writing) > len(stream):
                continue
            for m in writing:
                rest = f"{len(stream) - len(writing)} of the stream's {len(stream)} connections write exactly nothing"
                yield self.finding(f"{place(m.residual)} writes {m.forward.write_rms:.2g}, but {rest}", m.residual)


RULE = NotIdentity()
