"""The audit for a pull request: what a reviewer asks of a residual stream, answered in order."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator

from residuum.audit.audit import STRUCTURE_ONLY, Audit, counted
from residuum.audit.finding import Finding
from residuum.audit.paths import shorten
from residuum.audit.rows import Row, fold, index_of, name_of
from residuum.audit.rules._blocks import blocks_around
from residuum.stream import Flow, Source

# A parameter's name tells where to look; past these the JSON has the rest.
SHOWN = 3


def render_markdown(audit: Audit) -> str:
    """GitHub's Markdown, in which nothing that a model calls itself can be mistaken for markup."""
    lines = [f"## Residual audit of {code(audit.target)}", "", f"**{text(audit.headline)}.**"]
    if audit.seen.measured is None:
        lines[-1] += f" {STRUCTURE_ONLY.capitalize()}."
    for remark in audit.remarks:
        lines += ["", f"> {text(remark)}"]
    for question, answer in (
        ("Are there residual connections?", _connections(audit)),
        ("Where?", _where(audit)),
        ("Which order of norm?", _placements(audit)),
        ("Does the gradient reach every parameter?", _reach(audit)),
        ("Is anything NaN or unbounded?", _bounds(audit)),
        ("What is to be done?", _mends(audit)),
    ):
        lines += ["", f"### {question}", "", *answer]
    return "\n".join(lines) + "\n"


def text(words: str) -> str:
    """Plain words: no markup, no HTML, one line."""
    return re.sub(r"([\\`*_\[\]<>|~#$@&])", r"\\\1", " ".join(words.split()))


def code(words: str) -> str:
    """A code span, whose fence is longer than any inside."""
    words = " ".join(words.split()) or "the model"
    fence = "`" * (1 + max(map(len, re.findall("`+", words)), default=0))
    pad = " " if "`" in words else ""
    return f"{fence}{pad}{words}{pad}{fence}"


def place(source: Source) -> str:
    """file:line."""
    return code(f"{shorten(source.file)}:{source.line}")


def table(titles: list[str], rows: list[list[str]]) -> list[str]:
    """Cells are Markdown already, but for pipes: one would end a cell even in a code span."""
    safe = [[re.sub(r"(?<!\\)\|", r"\\|", cell) for cell in row] for row in rows]
    return [f"| {' | '.join(row)} |" for row in (titles, ["---"] * len(titles), *safe)]


def _connections(audit: Audit) -> Iterator[str]:
    found = audit.size if audit.graph.streams else "no residual connection"
    yield f"{'Yes' if audit.graph.streams else 'No'}: {found}, among {counted(audit.graph.operations, 'operation')}."


def _where(audit: Audit) -> Iterator[str]:
    if not audit.graph.streams:
        yield "Nowhere."
    for number, (stream, rows) in enumerate(audit.streams):
        if number:
            yield ""
        if len(audit.graph.streams) > 1:
            yield f"Stream from {code(stream.origin or 'the input')}:"
            yield ""
        cells = [
            [
                index_of(group),
                code(name_of(group)) + (f" ×{len(group)}" if len(group) > 1 else ""),
                place(group[0].residual.source),
                group[0].residual.kind,
                group[0].residual.placement,
            ]
            for group in fold(rows)
        ]
        yield from table(["#", "branch", "where the sum stands", "kind", "norm"], cells)


def _placements(audit: Audit) -> Iterator[str]:
    if not audit.graph.streams:
        yield "There is no stream to normalise."
    for stream in audit.graph.streams:
        order = Counter(residual.placement for residual in stream.residuals).most_common()
        said = ", ".join(f"**{placement}** ({counted(count, 'connection')})" for placement, count in order)
        final = f"final norm {code(stream.final_norm)}" if stream.final_norm else "no final norm"
        yield f"- from {code(stream.origin or 'the input')}: {said}; {final}"


def _reach(audit: Audit) -> Iterator[str]:
    flow = audit.seen.measured
    if flow is None:
        yield "Not known: nothing was run on real values."
        return
    if not flow.without_gradient:
        yield "Yes, every parameter that asks for one."
    else:
        lacking = flow.without_gradient
        yield f"No, not {counted(len(lacking), 'parameter')} of the model: {_some(lacking)}."
    cells = [
        [code(block), which, _share_of(block, flow.without_gradient), _share_of(block, flow.not_finite)]
        for _, rows in audit.streams
        for which, block in _first_middle_last(rows)
    ]
    if cells:
        yield ""
        yield from table(["block", "of its stream", "parameters without gradient", "gradients not finite"], cells)


def _first_middle_last(rows: list[Row]) -> list[tuple[str, str]]:
    blocks = _blocks(rows)
    if len(blocks) < 3:
        return list(zip(("first", "last"), blocks, strict=False))
    return [("first", blocks[0]), ("middle", blocks[len(blocks) // 2]), ("last", blocks[-1])]


def _blocks(rows: list[Row]) -> list[str]:
    """The repeated modules that the connections belong to, in order.

    Each is a path that ends in a number: the longest that holds two connections, as a block of attention and
    feed-forward does though each of them may be numbered again; or the longest of all, where blocks hold one each.
    """
    paths = [_numbered(row) for row in rows]
    held = Counter(path for each in paths for path in each)
    pairs = {next((path for path in each if held[path] > 1), each[0]): None for each in paths}
    return list(pairs) if len(pairs) > 1 else list(dict.fromkeys(each[0] for each in paths))


def _numbered(row: Row) -> list[str]:
    """The parts of the connection's path that end in a number, longest first; without any, its whole path."""
    for path in (row.residual.module, row.residual.branch):
        found = list(blocks_around(path))
        if found:
            return found[::-1]
    return [row.residual.module or row.residual.branch]


def _share_of(block: str, parameters: list[str]) -> str:
    inside = [name for name in parameters if not block or name == block or name.startswith(f"{block}.")]
    return f"{len(inside)}: {_some(inside)}" if inside else "none"


def _some(names: list[str]) -> str:
    rest = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(map(code, names[:SHOWN])) + rest


def _bounds(audit: Audit) -> Iterator[str]:
    flow = audit.seen.measured
    if flow is None:
        yield "Not known: nothing was run on real values."
        return
    wrong = list(_not_finite(flow))
    yield (
        "Yes:"
        if wrong
        else f"No: the loss ({text(flow.loss_name)}, {flow.loss:.4g}), every state and every gradient are finite."
    )
    if wrong:
        yield ""
        yield from wrong
    for _, rows in audit.streams:
        states = [row.forward.state_rms for row in rows if row.forward]
        gradients = [row.backward.arriving for row in rows if row.backward]
        said = [f"state RMS {min(states):.3g} to {max(states):.3g}"] if all(map(math.isfinite, states)) else []
        if gradients and all(map(math.isfinite, gradients)):
            said += [f"arriving gradient {min(gradients):.3g} to {max(gradients):.3g}"]
        if said:
            yield ""
            yield f"Over {counted(len(rows), 'connection')}: {', '.join(said)}."


def _not_finite(flow: Flow) -> Iterator[str]:
    if not math.isfinite(flow.loss):
        yield f"- the loss ({text(flow.loss_name)}) is {flow.loss}"
    if flow.not_finite:
        yield f"- {counted(len(flow.not_finite), 'gradient')}: {_some(flow.not_finite)}"
    first = next((m for m in flow.all_measured if not math.isfinite(m.forward.state_rms)), None)
    if first:
        name = code(first.residual.branch or first.residual.module)
        yield f"- the state from {name} on, at {place(first.residual.source)}"


def _mends(audit: Audit) -> Iterator[str]:
    if not audit.findings:
        yield "Nothing."
    for finding in audit.findings:
        yield _mend(finding)


def _mend(finding: Finding) -> str:
    where = f" at {place(finding.source)}" if finding.source else ""
    return (
        f"- **{finding.code} {finding.severity}**{where}: {text(finding.message)}. *To mend it: {text(finding.mend)}.*"
    )
