"""RS204: NaN or infinity in a value or a gradient."""

from __future__ import annotations

import math
from collections.abc import Iterator

from residuum.audit.finding import Evidence, Finding, Rule, place


class NotFinite(Rule):
    """One NaN reaches every weight at the next step. Exact, so no threshold."""

    code = "RS204"
    severity = "error"
    title = "NaN or infinity"
    mend = "look at the branch's operations from here backwards: logarithms, divisions, half precision"
    shown = 4

    def check(self, seen: Evidence) -> Iterator[Finding]:
        flow = seen.flow
        for m in flow.all_measured:
            if not math.isfinite(m.forward.state_rms):
                where = "the write" if not math.isfinite(m.forward.write_rms) else "the sum"
                yield self.finding(f"{where} of {place(m.residual)} holds NaN or infinity", m.residual)
                return  # what follows has it from here
        if flow.not_finite or not math.isfinite(flow.loss):
            names = flow.not_finite
            rest = f" and {len(names) - self.shown} more" if len(names) > self.shown else ""
            yield self.finding(
                f"the loss is {flow.loss:.3g}, and the gradients of {len(names)} parameters hold NaN or infinity"
                + (f": {', '.join(names[: self.shown])}{rest}" if names else ""),
                mend="look at the loss and at the operations nearest to it",
            )


RULE = NotFinite()
