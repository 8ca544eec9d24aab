"""RS106: a pre-norm stack whose last state is read as it is."""

from __future__ import annotations

from collections.abc import Iterator

from residuum.audit.finding import Evidence, Finding, Rule
from residuum.audit.rules._readout import pre_norm, readout


class NoFinalNorm(Rule):
    """With pre-norm nothing ever scales the stream itself, so it grows with every write; a norm must stand at its end.

    Pre-norm Transformers have one before the read-out for this reason (Xiong et al. 2020, arXiv 2002.04745, section
    3.1; GPT-2 added it with pre-norm). Looked for in streams of at least four connections (two blocks), most of them
    pre-norm, that no other stream goes on from. Any norm that reads the last state counts, after pooling or slicing
    too.
    """

    code = "RS106"
    severity = "warning"
    title = "no final norm in a pre-norm stack"
    mend = "normalise the last state once before what reads it: self.head(self.final_norm(x))"
    example = """
return self.head(x)  # faulty: the scale of x grows with depth
return self.head(self.final_norm(x))  # mended
"""

    def check(self, seen: Evidence) -> Iterator[Finding]:
        for stream in seen.graph.streams:
            if not pre_norm(stream):
                continue
            after = readout(seen.graph, stream)
            if after is None or after.normed or after.norms_behind:  # a norm behind the read-out is RS107's
                continue
            reader = f"{after.maps[0].module or 'a linear map'} reads it" if after.maps else "it leaves the model"
            last = stream.residuals[-1]
            yield self.finding(
                f"no norm follows the last of {len(stream.residuals)} connections: {reader} as it is", last
            )


RULE = NoFinalNorm()
