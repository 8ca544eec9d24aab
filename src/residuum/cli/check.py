"""residuum check PART|all [--format terminal|json]."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro
from rich.console import Console
from rich.table import Table
from rich.text import Text

from residuum.cli.options import parse
from residuum.engine.check import BOUNDS, Row, check, parts

SCHEMA = "residuum.check/1"

USAGE = """Measure every hand-derived backward: its gradients against finite differences and against autograd.

PART is one of: {parts}; or one way through a part, as the table names it; or package.module:Class, a residual
connection of your own. An error is relative to the gradient's norm. Exit status 1: one is above its bound.
"""

STYLE = {"ok": "", "skipped": "yellow", "too large": "bold red"}


@dataclass(frozen=True)
class Options:
    """Measure every hand-derived backward."""

    part: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="PART")]
    """What to measure, or all."""
    format: Literal["terminal", "json"] = "terminal"
    """How the errors are written."""


def main(args: list[str]) -> int:
    """Measure and report; 1 if an error is above its bound."""
    options = parse(Options, args, "check", text=USAGE.format(parts=", ".join(parts())))
    rows = list(check(options.part))
    if options.format == "json":
        print(json.dumps({"schema": SCHEMA, "rows": [row.to_dict() for row in rows]}, indent=2, allow_nan=False))
    else:
        _print(rows, Console(width=100, soft_wrap=True, highlight=False))
    return 0 if all(row.ok for row in rows) else 1


def _print(rows: Sequence[Row], console: Console) -> None:
    """One line for each way through a part, one column for each comparison."""
    columns = [compared for compared in BOUNDS if any(row.compared == compared for row in rows)]
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 1, 0, 0))
    table.add_column("part\n")
    table.add_column("\n")
    for compared in columns:
        table.add_column(f"{compared}\n≤ {BOUNDS[compared]:.0e}", justify="right")
    table.add_column("\n")
    lines: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        lines.setdefault((row.part, row.name), []).append(row)
    before = ""
    for (part, name), line in lines.items():
        errors = {row.compared: "skipped" if row.error is None else f"{row.error:.1g}" for row in line}
        said = "skipped" if line[0].skipped else "ok" if all(row.ok for row in line) else "too large"
        table.add_row(
            part if part != before else "", name, *(errors.get(c, "") for c in columns), Text(said, STYLE[said])
        )
        before = part
    console.print(table)
    for row in (line[0] for line in lines.values() if line[0].skipped):
        console.print(f"{row.name}: skipped, {row.skipped}", markup=False)
    for row in rows:
        if not row.ok:
            console.print(f"{row.name}: {row.compared}, {row.error:.2g} at {row.worst}", markup=False)
    measured, failed = sum(row.error is not None for row in rows), sum(not row.ok for row in rows)
    verdict = "" if not measured else f", {failed} above their bound" if failed else ", all within their bounds"
    console.print(f"\n{measured} comparisons{verdict}")
