"""Recognise a normalisation, whether PyTorch's own function or one written out by hand."""

from __future__ import annotations

from itertools import permutations

from residuum.stream import ops
from residuum.stream.node import Node


def normalised_by(node: Node) -> Node | None:
    """The value that `node` normalises, or None if `node` is no normalisation.

    By hand, a normalisation is a value times (or over) a statistic of itself: RMSNorm's `x · rsqrt(mean(x²) + ε)`,
    LayerNorm's `(x − mean) / sqrt(var + ε)`. The statistic is smaller than the value, comes from it by a mean,
    variance, sum or norm, and meets no parameter on the way.
    """
    if ops.is_norm(node.op):
        return next(iter(node.activations), None)
    if node.op not in ops.MULTIPLY or len(node.activations) < 2:
        return None
    for value, statistic in permutations(node.activations, 2):
        if value.shape == node.shape != statistic.shape and _is_statistic_of(statistic, value):
            centred = value.op in ops.ADD and len(value.activations) == 2 and value.activations[1].shape != value.shape
            return value.activations[0] if centred else value  # behind `x − mean(x)` stands x
    return None


def _is_statistic_of(statistic: Node, value: Node) -> bool:
    # `x.float()`, `x - mean` or `gain * x` may be what is scaled while the statistic is taken of x itself, and the
    # other way round.
    sources = {value.index}
    source = value
    while source.activations and (
        source.op in ops.VIEW or source.op in ops.ADD or (source.op in ops.MULTIPLY and len(source.activations) == 1)
    ):
        source = source.activations[0]
        sources.add(source.index)
    oldest = min(sources)
    pending = [(statistic, False)]
    seen = set()
    while pending:
        node, reduced = pending.pop()
        if node.index in sources and reduced:
            return True
        if node.index < oldest or node.transforms or (node.index, reduced) in seen:
            continue
        seen.add((node.index, reduced))
        pending += [(parent, reduced or node.op in ops.STATISTIC) for parent in node.activations]
    return False
