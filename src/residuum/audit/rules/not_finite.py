"""RS204: NaN or infinity in a value or a gradient, and the operation that made it."""

from __future__ import annotations

import math
from collections.abc import Iterator

from residuum.audit.finding import Evidence, Finding, Rule, place
from residuum.audit.rules._names import some
from residuum.stream import Flow, Residual


class NotFinite(Rule):
    """One NaN reaches every weight at the next step. Exact, so no threshold.

    What made it is found by a second run in which every operation is looked at (`residuum.where_nan`).
    """

    code = "RS204"
    severity = "error"
    title = "NaN or infinity"
    mend = "keep what goes into the operation in its range: logarithms, divisions, roots at zero, half precision"

    def check(self, seen: Evidence) -> Iterator[Finding]:
        seen_at = _seen_at(seen.flow)
        if seen_at is None:
            return
        message, residual = seen_at
        maker = seen.flow.nan_maker
        if maker is None:
            yield self.finding(f"{message}; a second run was finite: the model changes between runs", residual)
        else:
            module = maker.module or (residual.module if residual else "")
            source = maker.source or (residual.source if residual else None)
            yield Finding(self.code, self.severity, f"{message}: {maker.told}", self.mend, module, source)


def _seen_at(flow: Flow) -> tuple[str, Residual | None] | None:
    for m in flow.all_measured:
        if not math.isfinite(m.forward.state_rms):
            where = "the write" if not math.isfinite(m.forward.write_rms) else "the sum"
            return f"{where} of {place(m.residual)} holds NaN or infinity", m.residual  # what follows has it from here
    names = flow.not_finite
    if not names and math.isfinite(flow.loss):
        return None
    which = f", as do the gradients of {len(names)} parameters ({some(names)})" if names else ""
    if not math.isfinite(flow.loss):
        return f"the loss is {flow.loss:.3g}{which.replace('as do', 'NaN or infinite')}", None
    return f"the gradients of {len(names)} parameters hold NaN or infinity ({some(names)})", None


RULE = NotFinite()
