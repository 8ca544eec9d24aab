"""RS104: one block has fewer connections than its siblings."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator

from residuum.audit.finding import Evidence, Finding, Rule
from residuum.audit.rules._blocks import blocks_around, blocks_of, list_of
from residuum.stream import ResidualGraph


class MissingConnection(Rule):
    """Eleven blocks add twice to the stream and one adds once: a connection was forgotten or lost there.

    Blocks are siblings if they stand in one numbered list and ran the same weighted operations, on the same shapes, in
    sub-modules of the same names: layers that differ by design (attention beside Mamba, dense beside experts, a first
    layer or a stride of its own) are compared only with their like. Fires where at most a quarter of four or more
    siblings have fewer connections than the rest, the bound of RS102: more than a quarter is a pattern.
    """

    code = "RS104"
    severity = "error"
    title = "connection missing where sibling blocks have one"
    mend = "add the sub-layer's input to its output as the sibling blocks do: x + f(x)"
    example = """
x = self.attn(self.norm1(x))  # faulty: the other blocks write x + self.attn(...)
x = x + self.attn(self.norm1(x))  # mended
"""

    def check(self, seen: Evidence) -> Iterator[Finding]:
        # A skip inside a branch counts too: without the connection around it, it would pass for one.
        every = (each for residual in seen.graph.residuals for each in (residual, *residual.inner))
        counts = Counter(block for residual in every for block in blocks_of(residual))
        for siblings in _siblings(seen.graph):
            usual, agreeing = Counter(counts[block] for block in siblings).most_common(1)[0]
            fewer = [block for block in siblings if counts[block] < usual]
            if 4 * len(fewer) > len(siblings):
                continue
            for block in fewer:
                has = f"{counts[block] or 'no'} connection{'s' * (counts[block] > 1)}"
                rest = f"{agreeing} of its {len(siblings) - 1} siblings have {usual}"
                yield self.finding(f"{block} has {has}, but {rest}", module=block)


def _siblings(graph: ResidualGraph) -> Iterator[list[str]]:
    """Blocks of one list that did the same, in the order in which they ran."""
    work: dict[str, set[tuple[object, ...]]] = defaultdict(set)
    for node in graph.nodes:
        if node.transforms:
            for block in blocks_around(node.module):
                work[block].add((node.module[len(block) :], node.op, node.shape))
    alike: dict[tuple[object, ...], list[str]] = defaultdict(list)
    for block, done in work.items():
        alike[list_of(block), frozenset(done)].append(block)
    yield from alike.values()


RULE = MissingConnection()
