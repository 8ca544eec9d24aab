"""RS203: parameters that the loss does not reach."""

from __future__ import annotations

from collections.abc import Iterator

from residuum.audit.finding import Finding, Severity
from residuum.stream import Flow


class MissingGradient:
    """A parameter that asks for a gradient gets none, or exactly zero: it will not train. Exact, so no threshold."""

    code = "RS203"
    severity: Severity = "warning"
    title = "parameter without gradient"
    shown = 4

    def check(self, flow: Flow) -> Iterator[Finding]:
        names = flow.without_gradient
        if names:
            some = ", ".join(names[: self.shown])
            rest = f" and {len(names) - self.shown} more" if len(names) > self.shown else ""
            yield Finding(
                self.code,
                self.severity,
                f"{len(names)} parameters get no gradient from {flow.loss_name}: {some}{rest}",
                "use them in what the loss is computed from, or freeze them (requires_grad_(False)) to say so",
            )


RULE = MissingGradient()
