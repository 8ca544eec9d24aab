"""RS203: parameters that the loss does not reach."""

from __future__ import annotations

from collections.abc import Iterator

from residuum.audit.finding import Evidence, Finding, Rule
from residuum.audit.rules._names import some
from residuum.stream import Flow


class MissingGradient(Rule):
    """A parameter that asks for a gradient gets none, or exactly zero: it will not train. Exact, so no threshold.

    A zero is no fault where it lies behind a matrix that starts at zero, in a branch that writes exactly nothing or in
    an adapter: it trains from the second step on.
    """

    code = "RS203"
    severity = "warning"
    title = "parameter without gradient"
    mend = "use them in what the loss is computed from, or freeze them (requires_grad_(False)) to say so"

    def check(self, seen: Evidence) -> Iterator[Finding]:
        parameters, starting = seen.parameters, _behind_zero(seen.flow)
        names = [
            name
            for name in seen.flow.without_gradient
            if parameters[name].verdict == "no gradient" or name not in starting
        ]
        if names:
            are = f"{len(names)} parameters get" if len(names) > 1 else "1 parameter gets"
            yield self.finding(f"{are} no gradient from {seen.flow.loss_name}: {some(names)}", names=names)


def _behind_zero(flow: Flow) -> set[str]:
    branches = {name for m in flow.all_measured if m.forward.write_rms == 0 for name in m.parameters}
    return branches | {name for a in flow.adapters if a.product_norm == 0 for name in a.parameters}


RULE = MissingGradient()
