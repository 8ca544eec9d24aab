"""The audit in the terminal, at most 100 columns wide, and complete without colour."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from residuum.audit.audit import Audit
from residuum.audit.paths import shorten

STYLE = {"error": "bold red", "warning": "yellow", "info": "dim"}


def print_audit(audit: Audit, console: Console) -> None:
    """Verdict first, then findings with their mends, then a table of every connection."""
    streams, count = len(audit.graph.streams), sum(1 for _ in audit.graph.residuals)
    size = f"{count} residual connection{'s' * (count != 1)} in {streams} stream{'s' * (streams != 1)}"
    console.print(Text(f"{audit.target}: ") + Text(audit.verdict, "bold") + Text(f", {size}"))
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
        table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 1, 0, 0))
        for title in ("#", "branch", "source", "kind", "norm"):
            table.add_column(
                title, justify="right" if title == "#" else "left", no_wrap=title != "branch", overflow="fold"
            )
        for title in ("state", "write", "grad", "identity", "branch"):
            table.add_column(title, justify="right", no_wrap=True)
        for m in measured:
            r, b = m.residual, m.backward
            gradient = [f"{b.arriving:.2g}", f"{b.identity:.2g}", f"{b.branch:.2g}"] if b else ["none", "", ""]
            table.add_row(
                str(r.index), r.branch or r.module, f"{Path(r.source.file).name}:{r.source.line}", r.kind, r.placement,
                f"{m.forward.state_rms:.2g}", f"{m.forward.write_share:.0%}", *gradient,
            )  # fmt: skip
        console.print(table)
    files = sorted({shorten(r.source.file) for r in audit.graph.residuals})
    if files:
        console.print(Text("\nsource: " + ", ".join(files), "dim"))
        console.print(
            Text("state: RMS; write: its share of skip and write; grad: norm that arrives, then both paths", "dim")
        )
