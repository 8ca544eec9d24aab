"""The audit in the terminal, at most 100 columns wide, and complete without colour."""

from __future__ import annotations

from pathlib import Path

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from residuum.audit.audit import STRUCTURE_ONLY, Audit
from residuum.audit.paths import shorten
from residuum.audit.rows import Row, fold, index_of, name_of, span

# The name of a branch may be broken over several lines, but none shorter than this: where that leaves too little room,
# what the page and the JSON say of each connection is cut to what the terminal can show.
LEAST_NAME = 16

WIDEST = 100

STYLE = {"error": "bold red", "warning": "yellow", "info": "dim"}


def print_audit(audit: Audit, console: Console) -> None:
    """Verdict first, then findings with their mends, then a table of every connection."""
    console.width = min(console.width, WIDEST)
    rules = f", {audit.could_not_run}" if audit.skipped else ""
    console.print(plain(f"{audit.target}: ") + Text(audit.verdict, "bold") + Text(f"{rules}, {audit.size}"))
    measured = audit.seen.measured
    console.print(plain(f"loss: {measured.loss_name}, {measured.loss:.4g}" if measured else STRUCTURE_ONLY))
    if audit.ternary:
        console.print(plain(audit.ternary))
    if audit.findings or audit.remarks:
        console.print()
    for finding in audit.findings:
        where = f"{shorten(finding.source.file)}:{finding.source.line}: " if finding.source else ""
        console.print(
            Text(f"{finding.code} {finding.severity}: ", STYLE[finding.severity]) + plain(where + finding.message)
        )
        console.print(plain(f"  {finding.mend}", "dim"))
    for remark in audit.remarks:
        console.print(plain(remark, STYLE["warning"] if remark.startswith("warning: ") else "dim"))
    for stream, rows in audit.streams:
        norm = f", final norm {stream.final_norm}" if stream.final_norm else ""
        console.print(Text("\nstream from ") + plain(stream.origin or "the input", "bold") + plain(norm))
        groups = fold(rows)
        full = _table(groups, measured is not None, narrow=False)
        fits = _least_width(full) <= console.width
        console.print(full if fits else _table(groups, measured is not None, narrow=True))
    files = sorted({shorten(r.source.file) for r in audit.graph.residuals})
    if files:
        console.print(Text("\n") + plain("source: " + ", ".join(files), "dim"))
        if measured:
            console.print(
                Text("state: RMS; write: its share of skip and write; grad: norm that arrives, then both paths", "dim")
            )


def plain(words: str, style: str = "") -> Text:
    """Words of any origin: nothing in them is markup, and what a terminal would obey is shown as �."""
    return Text("".join(letter if letter.isprintable() else "�" for letter in words), style)


def _table(groups: list[list[Row]], measured: bool, narrow: bool) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 1, 0, 0))
    words = ("#", "branch") if narrow else ("#", "branch", "source", "kind", "norm")
    numbers = ("write", "identity", "branch") if narrow else ("state", "write", "grad", "identity", "branch")
    for title in words:
        table.add_column(title, justify="right" if title == "#" else "left", no_wrap=title != "branch", overflow="fold")
    for title in numbers if measured else ():
        table.add_column(title, justify="right", no_wrap=True)
    for group in groups:
        r = group[0].residual
        name = name_of(group) + (f" ×{len(group)}" if len(group) > 1 else "")
        said = [index_of(group), name, f"{Path(r.source.file).name}:{r.source.line}", r.kind, r.placement]
        table.add_row(*map(plain, said[: len(words)]), *(_figures(group, narrow) if measured else []))
    return table


def _least_width(table: Table) -> int:
    widths = [
        max(cell_len(line) for cell in column.cells for line in str(cell).split("\n")) for column in table.columns
    ]
    return sum(widths) - widths[1] + min(widths[1], LEAST_NAME) + len(widths) - 1


def _figures(group: list[Row], narrow: bool) -> list[str]:
    """Of a folded group the least and the largest, one above the other: side by side they would not fit."""
    forwards = [row.forward for row in group if row.forward]
    backwards = [row.backward for row in group if row.backward]
    state = span([f.state_rms for f in forwards], ".2g", "\n…")
    write = span([f.write_share for f in forwards], ".0%", "\n…")
    grad, identity, branch = (
        span([getattr(b, part) for b in backwards], ".2g", "\n…") if backwards else "none"
        for part in ("arriving", "identity", "branch")
    )
    return [write, identity, branch] if narrow else [state, write, grad, identity, branch]
