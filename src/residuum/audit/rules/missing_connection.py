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
    siblings have fewer connections than the rest, the bound of RS102: more than a quarter is a pattern. A skip that
    is taken from a wrong variable, so that one connection lies inside the branch of another, is one fewer too.
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
        outer, inner = Counter[str](), Counter[str]()
        for residual in seen.graph.residuals:
            outer.update(blocks_of(residual))
            inner.update(block for each in residual.inner for block in blocks_of(each))
        for siblings in _siblings(seen.graph):
            pairs = {block: (outer[block], inner[block]) for block in siblings}
            usual, agreeing = Counter(pairs.values()).most_common(1)[0]
            # A skip inside a branch is no connection of the stream. Yet where it lost the one around it, it stands for
            # that one: then both together are fewer.
            fewer = {block: pair for block, pair in pairs.items() if pair[0] < usual[0] or sum(pair) < sum(usual)}
            if 4 * len(fewer) > len(siblings):
                continue
            for block, pair in fewer.items():
                count, rest_have = (pair[0], usual[0]) if pair[0] < usual[0] else (sum(pair), sum(usual))
                has = f"{count or 'no'} connection{'s' * (count > 1)}"
                rest = f"{agreeing} of its {len(siblings) - 1} siblings have {rest_have}"
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
