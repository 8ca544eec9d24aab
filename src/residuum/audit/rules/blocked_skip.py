"""RS103: a gradient arrives, and none of it takes the identity path back."""

from __future__ import annotations

from collections.abc import Iterator

from residuum.audit.finding import Evidence, Finding, Rule, Skip, place


class BlockedSkip(Rule):
    """The skip was detached, or multiplied by zero: a gradient must pass the branch or die. Exact, so no threshold."""

    code = "RS103"
    severity = "error"
    title = "identity path carries no gradient"
    mend = "add the skip itself, not a detached, frozen or zero-scaled copy of it"

    def check(self, seen: Evidence) -> Iterator[Finding]:
        measured = [m for m in seen.flow.all_measured if m.backward is not None]
        if not measured:
            raise Skip("no connection carries a gradient")
        for m in measured:
            if m.backward is not None and m.backward.arriving > 0 and m.backward.identity == 0:
                arriving = f"a gradient of norm {m.backward.arriving:.3g} arrives at {place(m.residual)}"
                yield self.finding(f"{arriving}, none takes the skip", m.residual)


RULE = BlockedSkip()
