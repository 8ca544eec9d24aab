"""RS103: a gradient arrives, and none of it takes the identity path back."""

from __future__ import annotations

from collections.abc import Iterator

from residuum.audit.finding import Finding, Severity, Skip, place
from residuum.stream import Flow


class BlockedSkip:
    """The skip was detached, or multiplied by zero: a gradient must pass the branch or die. Exact, so no threshold."""

    code = "RS103"
    severity: Severity = "error"
    title = "identity path carries no gradient"

    def check(self, flow: Flow) -> Iterator[Finding]:
        measured = [m for m in flow.all_measured if m.backward is not None]
        if not measured:
            raise Skip("no connection carries a gradient")
        for m in measured:
            if m.backward is not None and m.backward.arriving > 0 and m.backward.identity == 0:
                yield Finding(
                    self.code,
                    self.severity,
                    f"a gradient of norm {m.backward.arriving:.3g} arrives at {place(m.residual)}, none takes the skip",
                    "add the skip itself, not a detached, frozen or zero-scaled copy of it",
                    m.residual.module,
                    m.residual.source,
                )


RULE = BlockedSkip()
