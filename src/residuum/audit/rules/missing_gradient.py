"""RS203: parameters that the loss does not reach."""

from __future__ import annotations

from collections.abc import Iterator

from residuum.audit.finding import Evidence, Finding, Rule


class MissingGradient(Rule):
    """A parameter that asks for a gradient gets none, or exactly zero: it will not train. Exact, so no threshold."""

    code = "RS203"
    severity = "warning"
    title = "parameter without gradient"
    mend = "use them in what the loss is computed from, or freeze them (requires_grad_(False)) to say so"
    shown = 4

    def check(self, seen: Evidence) -> Iterator[Finding]:
        names = seen.flow.without_gradient
        if names:
            some = ", ".join(names[: self.shown])
            rest = f" and {len(names) - self.shown} more" if len(names) > self.shown else ""
            yield self.finding(f"{len(names)} parameters get no gradient from {seen.flow.loss_name}: {some}{rest}")


RULE = MissingGradient()
