"""The audit in the terminal, at most 100 columns wide, and complete without colour."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from residuum.audit.audit import Audit
from residuum.audit.paths import shorten
from residuum.stream import Measured

# Below this many columns what the page and the JSON say of each connection is cut to what the terminal can show.
NARROW = 76

STYLE = {"error": "bold red", "warning": "yellow", "info": "dim"}


def print_audit(audit: Audit, console: Console) -> None:
    """Verdict first, then findings with their mends, then a table of every connection."""
    streams, count = len(audit.graph.streams), sum(1 for _ in audit.graph.residuals)
    size = f"{count} residual connection{'s' * (count != 1)} in {streams} stream{'s' * (streams != 1)}"
    rules = f", {audit.could_not_run}" if audit.skipped else ""
    console.print(Text(f"{audit.target}: ") + Text(audit.verdict, "bold") + Text(f"{rules}, {size}"))
    console.print(Text(f"loss: {audit.flow.loss_name}, {audit.flow.loss:.4g}\n"))
    for finding in audit.findings:
        where = f"{shorten(finding.source.file)}:{finding.source.line}: " if finding.source else ""
        console.print(
            Text(f"{finding.code} {finding.severity}: ", STYLE[finding.severity]) + Text(where + finding.message)
        )
        console.print(Text(f"  {finding.mend}", "dim"))
    for code, reason in audit.skipped.items():
        console.print(Text(f"{code} skipped, because {reason}", "dim"))
    for stream, measured in zip(audit.graph.streams, audit.flow.measured, strict=True):
        norm = f", final norm {stream.final_norm}" if stream.final_norm else ""
        console.print(Text("\nstream from ") + Text(stream.origin or "the input", "bold") + Text(norm))
        console.print(_table(measured, narrow=console.width < NARROW))
    files = sorted({shorten(r.source.file) for r in audit.graph.residuals})
    if files:
        console.print(Text("\nsource: " + ", ".join(files), "dim"))
        console.print(
            Text("state: RMS; write: its share of skip and write; grad: norm that arrives, then both paths", "dim")
        )


def _table(measured: list[Measured], narrow: bool) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 1, 0, 0))
    words = ("#", "branch") if narrow else ("#", "branch", "source", "kind", "norm")
    numbers = ("write", "identity", "branch") if narrow else ("state", "write", "grad", "identity", "branch")
    for title in words:
        table.add_column(title, justify="right" if title == "#" else "left", no_wrap=title != "branch", overflow="fold")
    for title in numbers:
        table.add_column(title, justify="right", no_wrap=True)
    for m in measured:
        r, b = m.residual, m.backward
        said = [str(r.index), r.branch or r.module, f"{Path(r.source.file).name}:{r.source.line}", r.kind, r.placement]
        paths = [f"{b.identity:.2g}", f"{b.branch:.2g}"] if b else ["none", "none"]
        values = [f"{m.forward.state_rms:.2g}", f"{m.forward.write_share:.0%}", f"{b.arriving:.2g}" if b else "none"]
        table.add_row(*said[: len(words)], *(values[1:2] if narrow else values), *paths)
    return table
