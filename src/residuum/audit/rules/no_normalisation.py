"""RS109: a deep stack without any normalisation."""

from __future__ import annotations

from collections.abc import Iterator

from residuum.audit.finding import Evidence, Finding, Rule
from residuum.stream.normalisation import normalised_by


class NoNormalisation(Rule):
    """Eight or more connections in a row, and not one norm in the whole model.

    At the usual initialisations each unnormalised write adds as much variance as the state has, so it doubles with
    every connection and the loss starts by exploding (Zhang et al. 2019, Fixup, arXiv 1901.09321, section 2): eight
    are a factor of 2⁸. What starts as the identity by a scale, a gate or zero writes (ReZero, SkipInit, Fixup,
    highway) needs no norm: such a stream is left alone.
    """

    code = "RS109"
    severity = "warning"
    title = "no normalisation in a deep stack"
    mend = "normalise before each branch and after the last: x + f(norm(x)), or scale the writes from zero (ReZero)"
    example = """
x = x + self.mlp(x)  # faulty in a deep stack: the variance doubles with every block
x = x + self.mlp(self.norm(x))  # mended
x = x + self.scale * self.mlp(x)  # mended without a norm: self.scale starts at zero
"""
    least = 8

    def check(self, seen: Evidence) -> Iterator[Finding]:
        long = [stream for stream in seen.graph.streams if len(stream.residuals) >= self.least]
        if not long or any(normalised_by(node) is not None for node in seen.graph.nodes):
            return
        silent = (
            {m.residual.connection for m in seen.measured.all_measured if m.forward.write_rms == 0}
            if seen.measured
            else set()
        )
        for stream in long:
            if not any(r.kind in ("scaled", "gated") or r.connection in silent for r in stream.residuals):
                yield self.finding(f"{len(stream.residuals)} connections and no norm anywhere", stream.residuals[0])


RULE = NoNormalisation()
