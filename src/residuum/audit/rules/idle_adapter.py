"""RS308: a low-rank adapter that adds about nothing to its base layer."""

from __future__ import annotations

from collections.abc import Iterator

from residuum.audit.finding import Evidence, Finding, Rule
from residuum.audit.rules._start import only_starts


class IdleAdapter(Rule):
    """‖BA‖ is less than 1/10,000 of ‖W‖: what the adapter adds is below what float16 would notice (2⁻¹¹), as in RS301.

    The scale before an adapter (α/r, of the order of 1) is left out. With B at zero, as LoRA starts (Hu et al. 2021,
    arXiv 2106.09685), it is only news; with A at zero too, neither ever gets a gradient.
    """

    code = "RS308"
    severity = "warning"
    title = "adapter adds about nothing"
    mend = "train it longer or at a higher rate, check that it is not merged or disabled, or remove it"
    least = 1e-4

    def check(self, seen: Evidence) -> Iterator[Finding]:
        adapters = [adapter for adapter in seen.flow.adapters if adapter.base_norm > 0]
        zero = [a for a in adapters if a.product_norm == 0 and only_starts(a.parameters, seen.flow)]
        for a in adapters:
            share = a.product_norm / a.base_norm
            if share == 0 and a not in zero:
                said = f"the adapter on {a.base} adds exactly nothing, and neither matrix gets a gradient"
                yield self.finding(said, mend="start one of its two matrices with random values", module=a.module)
            if 0 < share < self.least:
                said = f"the adapter on {a.base} is {share:.1e} of it ({' and '.join(a.parameters)})"
                yield self.finding(said, module=a.module)
        if zero:
            mend = "nothing to mend before the first step; after training the adapter is dead"
            are = f"{len(zero)} adapters add" if len(zero) > 1 else f"the adapter on {zero[0].base} adds"
            names = [name for a in zero for name in a.parameters]
            yield self.finding(f"{are} exactly nothing", severity="info", mend=mend, names=names)


RULE = IdleAdapter()
