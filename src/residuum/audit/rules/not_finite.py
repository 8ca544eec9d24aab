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
            none = "; a second run found none: perhaps the model changes between runs, or only squares overflow"
            yield self.finding(message + none if seen.flow.changes else message, residual)
        else:
            module = maker.module or (residual.module if residual else "")
            source = maker.source or (residual.source if residual else None)
            yield Finding(self.code, self.severity, f"{message}: {maker.told}", self.mend, module, source)


def _seen_at(flow: Flow) -> tuple[str, Residual | None] | None:
    for m in flow.all_measured:
        if not math.isfinite(m.forward.state_rms):
            where = "the write" if not math.isfinite(m.forward.write_rms) else "the sum"
            return f"{where} of {place(m.residual)} holds NaN or infinity", m.residual  # what follows has it from here
    wrong = []
    if not math.isfinite(flow.loss):
        wrong.append(f"the loss is {flow.loss:.3g}")
    if flow.not_finite:
        names = flow.not_finite
        wrong.append(f"the gradients of {len(names)} parameters hold NaN or infinity ({some(names)})")
    return (" and ".join(wrong), None) if wrong else None


RULE = NotFinite()
