"""Two audits compared: what changed in the structure, in the findings, and in the figures.

Connections are the same where their branch is, in the order in which they run. A source is compared by file name and
function: a line moves with every edit above it, and folders differ between machines.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from rich.console import Console

from residuum.audit.audit import counted
from residuum.audit.finding import SEVERITIES, Severity
from residuum.audit.markdown import code, table, text
from residuum.audit.recorded import Found, Recorded
from residuum.audit.terminal import WIDEST, plain

DIFF_SCHEMA = "residuum.diff/1"
# A figure has moved if it is more than this many times what it was, or less than that part of it.
FACTOR = 2.0


@dataclass(frozen=True)
class Change:
    """One thing of one connection that is another now."""

    connection: str
    what: str
    before: str | float | None
    after: str | float | None


@dataclass(frozen=True)
class Diff:
    """Audit `b` as seen from audit `a`. `moved` is None where one of them measured nothing."""

    a: str
    b: str
    added: list[str]
    removed: list[str]
    changed: list[Change]
    new: list[Found]
    gone: list[Found]
    moved: list[Change] | None

    def at_least(self, severity: Severity) -> list[Found]:
        """The new findings of this severity or a worse one."""
        return [f for f in self.new if SEVERITIES.index(f.severity) >= SEVERITIES.index(severity)]

    @property
    def headline(self) -> str:
        """What differs, in one sentence without its full stop."""
        parts = [
            f"{counted(len(found), name)} {how}"
            for found, name, how in (
                (self.new, "finding", "new"),
                (self.gone, "finding", "gone"),
                (self.added, "connection", "added"),
                (self.removed, "connection", "removed"),
                (self.changed, "detail", "changed"),
                (self.moved or [], "figure", f"moved by more than {FACTOR:g}×"),
            )
            if found
        ]
        return ", ".join(parts) or "no difference"

    def to_json(self) -> str:
        """Everything that differs, after the schema residuum.diff/1."""
        content = {"schema": DIFF_SCHEMA, "factor": FACTOR, **asdict(self)}
        return json.dumps(content, indent=2, allow_nan=False) + "\n"

    def to_markdown(self) -> str:
        """The same for a pull request."""
        lines = [f"## Residual audit of {code(self.b)} against {code(self.a)}", "", f"**{text(self.headline)}**"]
        for title, found in (("New findings", self.new), ("Findings gone", self.gone)):
            if found:
                lines += ["", f"### {title}", ""]
                lines += [f"- **{f.code} {f.severity}**: {text(f.message)}" for f in found]
        for title, names in (("Connections added", self.added), ("Connections removed", self.removed)):
            if names:
                lines += ["", f"### {title}", "", *(f"- {code(name)}" for name in names)]
        if self.changed:
            rows = [[code(c.connection), c.what, text(_say(c.before)), text(_say(c.after))] for c in self.changed]
            lines += ["", "### Connections changed", "", *table(["connection", "what", "before", "after"], rows)]
        if moved := self.moved_most():
            lines += ["", f"### Figures (moved: by more than {FACTOR:g}×)", "", *(f"- {text(each)}" for each in moved)]
        return "\n".join(lines) + "\n"

    def moved_most(self) -> list[str]:
        """A sentence for each kind of figure: at how many connections it moved, and where it moved most."""
        if self.moved is None:
            return ["figures not compared: one of the audits measured none"]
        kinds: dict[str, list[Change]] = {}
        for change in self.moved:
            kinds.setdefault(change.what, []).append(change)
        sentences = []
        for what, changes in kinds.items():
            most = max(changes, key=_factor)
            where = f" at {len(changes)} connections, most" if len(changes) > 1 else ""
            sentences.append(f"{what} moved{where} at {most.connection}: {_say(most.before)} → {_say(most.after)}")
        return sentences


def compare(a: Recorded, b: Recorded) -> Diff:
    """What is in `b` and not in `a`, and the other way round."""
    both = [(a.connections[key], b.connections[key]) for key in a.connections if key in b.connections]
    changed = [
        Change(old.name, what, getattr(old, what), getattr(new, what))
        for old, new in both
        for what in ("kind", "placement", "source")
        if getattr(old, what) != getattr(new, what)
    ]
    moved = None
    if a.measured and b.measured:
        figures = [
            (old.name, what, value, new.figures[what]) for old, new in both for what, value in old.figures.items()
        ]
        moved = [
            Change(*each)
            for each in [("the model", "loss", a.loss, b.loss), *figures]
            if _factor(Change(*each)) > FACTOR
        ]
    return Diff(
        a.name,
        b.name,
        [connection.name for key, connection in b.connections.items() if key not in a.connections],
        [connection.name for key, connection in a.connections.items() if key not in b.connections],
        changed,
        list(_only_in(b, a)),
        list(_only_in(a, b)),
        moved,
    )


def print_diff(diff: Diff, console: Console) -> None:
    """Findings first, then structure, then figures."""
    console.width = min(console.width, WIDEST)
    console.print(plain(f"{diff.a} → {diff.b}: ") + plain(diff.headline, "bold"))
    for sign, found in (("+", diff.new), ("−", diff.gone)):
        for each in found:
            console.print(plain(f"{sign} {each.code} {each.severity}: {each.message}"))
    for sign, names in (("+", diff.added), ("−", diff.removed)):
        for name in names:
            console.print(plain(f"{sign} connection {name}"))
    for change in diff.changed:
        console.print(plain(f"~ {change.connection}: {change.what} {_say(change.before)} → {_say(change.after)}"))
    for sentence in diff.moved_most():
        console.print(plain(f"~ {sentence}"))


def _only_in(one: Recorded, other: Recorded) -> Iterator[Found]:
    """Findings by rule, module (or each parameter) and source, each as often as the other audit lacks it."""
    left = Counter(key for finding in other.findings for key in _keys(finding))
    for finding in one.findings:
        left.subtract(_keys(finding))
        if any(left[key] < 0 for key in _keys(finding)):
            yield finding


def _keys(finding: Found) -> list[tuple[str, str, str]]:
    return [(finding.code, name, finding.source) for name in finding.names or (finding.module,)]


def _factor(change: Change) -> float:
    """How many times the larger figure is the smaller; infinite where one is zero, or is no finite number any more."""
    before, after = change.before, change.after
    if before == after:
        return 1.0
    if not isinstance(before, float) or not isinstance(after, float) or before * after <= 0:
        return float("inf")
    return max(before / after, after / before)


def _say(value: str | float | None) -> str:
    return value if isinstance(value, str) else "none" if value is None else f"{value:.3g}"
