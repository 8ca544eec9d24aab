"""RS111: the skip, or the state between two blocks, is changed in one block only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from residuum.audit.finding import Evidence, Finding, Rule, place
from residuum.audit.rules._blocks import peers
from residuum.audit.rules._way import drops_by_hand, nodes_between, skip_nodes
from residuum.stream import Residual, Stream, ops
from residuum.stream.node import Node
from residuum.stream.normalisation import normalised_by

# Entries in another order, or some of them hidden: the only views and parts that make another state.
_CHANGED = frozenset({"roll", "flip", "masked_fill", "masked_fill_"})
# Another shape, type or memory, a part, a shift (positions): the state is still itself.
_SAME = (ops.VIEW | ops.PART | ops.ADD | ops.DROPOUT) - _CHANGED
# Between blocks tokens may come and go, on purpose and at one place.
_SAME_BETWEEN = _SAME | ops.JOIN


class TransformedSkip(Rule):
    """One skip among its peers is scaled, masked, reordered, or put together from parts, or one state between two
    blocks passes an activation function: y = 0.5 x + f(x), x.flip(-1) + f(x), relu(x) before the next block.

    Compared are the connections at the same place of sibling blocks, four or more of them. Fires where at most a
    quarter pass an operation there that most do not, the bound of RS102: what all do is a design (ResNet's ReLU after
    each sum). Projected skips are left out; norms are RS107's, dropout RS110's, a cut RS103's.
    """

    code = "RS111"
    severity = "warning"
    title = "skip transformed"
    mend = "add the state as it is, as the sibling blocks do: x + f(x)"
    example = """
x = 0.5 * x + self.mlp(self.norm(x))  # faulty: the other blocks write x + self.mlp(...)
x = x + self.mlp(self.norm(x))  # mended
"""

    def check(self, seen: Evidence) -> Iterator[Finding]:
        for stream in seen.graph.streams:
            straight = [r for r in stream.residuals if r.kind not in ("projected", "multi-stream")]
            skips = [(r, f"the skip of {place(r)}", _changes(_on_skip(r), _SAME)) for r in straight]
            states = [
                (later, f"the state between {place(earlier)} and {place(later)}", _changes(nodes, _SAME_BETWEEN))
                for earlier, later, nodes in nodes_between(stream)
                if later in straight
            ]
            for ways in (skips, states):
                changes = {r.index: passed for r, _, passed in ways}
                for residual, where, passed in ways:
                    added = passed - _usual(residual, stream, changes)
                    if added:
                        said = f"{where} passes {' and '.join(sorted(added))}, those of its sibling blocks do not"
                        yield self.finding(said, residual)


def _on_skip(residual: Residual) -> list[Node]:
    total = residual.connection.sum
    return [*skip_nodes(residual), *([total] if total.op in ops.LERP else [])]


def _changes(nodes: list[Node], same: frozenset[str]) -> frozenset[str]:
    """The operations that make another state of it; every way to write a product or a quotient is one."""
    changing = [
        node
        for node in nodes
        if node.op not in same and node.factor != 0 and normalised_by(node) is None and not drops_by_hand(node)
    ]
    return frozenset("a product" if node.op in ops.MULTIPLY else node.op.strip("_") for node in changing)


def _usual(residual: Residual, stream: Stream, changes: dict[int, frozenset[str]]) -> frozenset[str]:
    """What more than a quarter of the peers pass; all that this one passes if there are too few to compare with."""
    alike = [changes[peer.index] for peer in peers(residual, stream) if peer.index in changes]
    if len(alike) < 4:
        return changes[residual.index]
    passing = Counter(op for passed in alike for op in passed)
    return frozenset(op for op, count in passing.items() if 4 * count > len(alike))


RULE = TransformedSkip()
