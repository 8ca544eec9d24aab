"""What happens to a stream's last state: what RS106 and RS107 both ask."""

from __future__ import annotations

from typing import NamedTuple

from residuum.stream import ResidualGraph, Stream
from residuum.stream.node import Node
from residuum.stream.normalisation import normalised_by


class Readout(NamedTuple):
    """Whether a norm reads the last state; if not, the weighted operations that do, and the norms behind those."""

    normed: bool
    maps: list[Node]
    norms_behind: list[Node]


def readout(graph: ResidualGraph, stream: Stream) -> Readout | None:
    """Follow the last state forward, in one pass over what ran after it.

    None if another stream begins there: what reads the state is then no read-out, but the next stage's embedding.
    """
    last = stream.residuals[-1].connection.sum
    begins = {s.residuals[0].connection.fork for s in graph.streams if s is not stream and len(s.residuals) > 1}
    before, behind = {last}, set()
    maps, norms_behind = [], []
    normed = False
    for node in graph.nodes[last.index + 1 :]:
        if any(parent in behind for parent in node.inputs):
            behind.add(node)
            if node.op != "normalize" and normalised_by(node) is not None:
                norms_behind.append(node)
        elif any(parent in before for parent in node.inputs):
            if normalised_by(node) is not None:
                normed = True
            elif node.transforms:
                maps.append(node)
                behind.add(node)
            else:
                before.add(node)
    return Readout(normed, maps, norms_behind) if begins.isdisjoint(before | behind) else None


def pre_norm(stream: Stream) -> bool:
    """Whether the stream is a stack of at least two pre-norm blocks: most connections normalise before the branch.

    A state that the identity path itself normalises on the way (post-norm) needs no norm at the end.
    """
    placements = [residual.placement for residual in stream.residuals]
    return len(placements) >= 4 and 2 * sum(p in ("pre", "sandwich") for p in placements) > len(placements)
