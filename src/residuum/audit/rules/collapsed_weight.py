"""RS309: a quantised weight of which one value is left."""

from __future__ import annotations

from collections.abc import Iterator

from residuum.audit.finding import Evidence, Finding, Rule
from residuum.audit.rules._names import some


class CollapsedWeight(Rule):
    """A weight is rounded on its way to the activations (ternary layers, fake quantisation), and all its entries come
    out as one value: the layer tells its inputs' features apart no more. Exact, so no threshold.

    A weight that is zero itself has nothing to round; that is RS301's.
    """

    code = "RS309"
    severity = "error"
    title = "quantised weight collapsed to one value"
    mend = "look at the scale before the rounding: too large and all is zero, too small and all is clamped"

    def check(self, seen: Evidence) -> Iterator[Finding]:
        parameters = seen.parameters
        names = [name for name in seen.flow.collapsed if parameters[name].weight_rms > 0]
        if names:
            are = f"{len(names)} weights are" if len(names) > 1 else "1 weight is"
            yield self.finding(f"{are} rounded to a single value: {some(names)}", names=names)


RULE = CollapsedWeight()
