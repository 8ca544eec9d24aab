"""RS207: a rounding that lets no gradient past."""

from __future__ import annotations

from collections.abc import Iterator

from residuum.audit.finding import Evidence, Finding, Rule
from residuum.audit.rules._names import some
from residuum.audit.rules._rounded import stopped


class StoppedRounding(Rule):
    """A weight is rounded on its way to the activations (ternary layers, fake quantisation), and autograd knows no way
    from the rounded weight to the weight itself, entry by entry. Rounding has slope 0: such a weight never learns.

    What reaches it through its scale alone, as where the scale is the mean of |W| and not detached, is a gradient, but
    moves all entries alike. Exact, so no threshold. Frozen weights are left out; a layer that leaves the estimator out
    while it evaluates has to be looked at in training mode.
    """

    code = "RS207"
    severity = "error"
    title = "rounding stops the gradient"
    mend = "let the gradient past it: w + (quantised - w).detach(), the straight-through estimator (arXiv 1308.3432)"
    example = """
y = F.linear(x, (w / scale).round().clamp(-1, 1) * scale)  # faulty: round has slope 0
y = F.linear(x, w + ((w / scale).round().clamp(-1, 1) * scale - w).detach())  # mended
"""

    def check(self, seen: Evidence) -> Iterator[Finding]:
        names = stopped(seen.flow, seen.parameters)
        if names:
            get = f"{len(names)} weights get" if len(names) > 1 else "1 weight gets"
            yield self.finding(f"{get} no gradient past their rounding: {some(names)}", names=names)


RULE = StoppedRounding()
