"""Audit a model: measure it, ask every rule, come to a verdict."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from typing import Any

from torch import nn

from residuum.audit.finding import SEVERITIES, Evidence, Finding, Severity, Skip, source_of
from residuum.audit.rows import Row, span
from residuum.audit.rules import RULES
from residuum.audit.selection import chosen_rules
from residuum.stream import Backward, Flow, Forward, Loss, ResidualGraph, RoundedMap, Stream, flow

SCHEMA = "residuum.audit/1"


# How every report says that nothing was run on real values.
STRUCTURE_ONLY = "structure only: no value and no gradient was measured"


@dataclass(frozen=True)
class Audit:
    """What was measured, what the rules found in it, and which of them could not run (code to reason).

    `known` are the findings that a baseline lists, None if there is no baseline; `left_out` are the rules that were not
    asked because of a selection; `notes` say what a reader must know of how the audit was made.
    """

    target: str
    seen: Evidence
    findings: list[Finding]
    skipped: dict[str, str]
    known: list[Finding] | None = None
    left_out: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def graph(self) -> ResidualGraph:
        return self.seen.graph

    @property
    def flow(self) -> Flow:
        """What was measured. Raises `Skip` if only the structure was looked at."""
        return self.seen.flow

    @property
    def streams(self) -> list[tuple[Stream, list[Row]]]:
        """Every stream with its connections and what was measured at each."""
        if self.seen.measured is None:
            return [(stream, [Row(residual) for residual in stream.residuals]) for stream in self.graph.streams]
        measured = [[Row(m.residual, m) for m in stream] for stream in self.flow.measured]
        return list(zip(self.graph.streams, measured, strict=True))

    @property
    def verdict(self) -> str:
        """healthy, or the worst severity found: warnings or errors. What is known already does not count."""
        worst = max((SEVERITIES.index(f.severity) for f in self.findings), default=0)
        return ("healthy", "warnings", "errors")[worst]

    @property
    def headline(self) -> str:
        """The verdict as a sentence without its full stop."""
        if self.verdict == "healthy":
            anything = "anything new" if self.known else "anything"
            return f"Healthy: no rule found {anything} to mend" + (
                f", but {self.could_not_run}" if self.skipped else ""
            )
        told = [f for f in self.findings if f.severity == "info"]
        also = f", and {len(told)} to know of" if told else ""
        return f"{counted(len(self.at_least('warning')), 'finding')} to look at{also}"

    @property
    def size(self) -> str:
        """How many connections and streams, in words."""
        residuals, streams = sum(1 for _ in self.graph.residuals), len(self.graph.streams)
        return f"{counted(residuals, 'residual connection')} in {counted(streams, 'stream')}"

    @property
    def ternary(self) -> str:
        """How many ternary maps were measured and the share of their weights that is 0, in words; empty if none was.

        Binary are those of which no weight is 0.
        """
        found = [each.shares[1] for each in (self.seen.measured.ternary if self.seen.measured else ()) if each.shares]
        zeros = [share for share in found if share]
        said = [f"{counted(len(zeros), 'ternary map')}, {span(zeros, '.0%')} of the weights 0"] if zeros else []
        binary = len(found) - len(zeros)
        return "; ".join(said + ([f"{counted(binary, 'binary map')} (no weight is 0)"] if binary else []))

    @property
    def could_not_run(self) -> str:
        """How many rules could not run, in words; empty if all did."""
        return f"{counted(len(self.skipped), 'rule')} could not run" if self.skipped else ""

    @property
    def remarks(self) -> list[str]:
        """Sentences that belong to every report: how it was made, what it leaves out, which rules could not run."""
        together: dict[str, list[str]] = {}
        for code, reason in self.skipped.items():
            together.setdefault(reason, []).append(code)
        return [
            *self.notes,
            *(
                [f"{counted(len(self.known), 'known finding')} of the baseline: {_codes(self.known)}"]
                if self.known
                else []
            ),
            *([f"not asked, as selected: {', '.join(self.left_out)}"] if self.left_out else []),
            *(f"{', '.join(codes)} skipped, because {reason}" for reason, codes in together.items()),
        ]

    def at_least(self, severity: Severity) -> list[Finding]:
        """The findings of this severity or a worse one."""
        least = SEVERITIES.index(severity)
        return [f for f in self.findings if SEVERITIES.index(f.severity) >= least]

    def to_dict(self) -> dict[str, Any]:
        """The audit as plain values, after the schema residuum.audit/1.

        A number that is not finite is None; so are loss, parameters, ternary, forward and backward where nothing was
        measured.
        """
        flow = self.seen.measured
        slopes = flow.slopes if flow else [None] * len(self.streams)
        streams = [
            {
                "origin": stream.origin,
                "final_norm": stream.final_norm,
                "read_out": stream.read_out,
                "log_slope": slope and asdict(slope),
                "residuals": [_row(row) for row in rows],
            }
            for (stream, rows), slope in zip(self.streams, slopes, strict=True)
        ]
        parameters = flow and {
            "without_gradient": flow.without_gradient,
            "not_finite": flow.not_finite,
            "tiny": [name for name, p in flow.parameters.items() if p.verdict == "tiny"],
            "frozen": [name for name, p in flow.parameters.items() if p.verdict == "frozen"],
        }
        content = {
            "schema": SCHEMA,
            "made_with": {"residuum": version("residuum"), "torch": version("torch")},
            "target": self.target,
            "notes": self.notes,
            "loss": flow and {"name": flow.loss_name, "value": flow.loss},
            "operations": self.graph.operations,
            "streams": streams,
            "parameters": parameters,
            "ternary": flow and [_ternary(each) for each in flow.ternary],
            "nan_maker": flow and flow.nan_maker and asdict(flow.nan_maker),
            "findings": [_finding(f) for f in self.findings],
            "known": None if self.known is None else [_finding(f) for f in self.known],
            "skipped": self.skipped,
            "left_out": self.left_out,
            "verdict": self.verdict,
        }
        return _finite(content)

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n"

    def to_markdown(self) -> str:
        """What a reviewer asks, answered in order, for a pull request."""
        from residuum.audit.markdown import (
            render_markdown,
        )  # the reports know this file; each loads when it is asked for

        return render_markdown(self)

    def to_sarif(self) -> str:
        """A SARIF 2.1.0 log, from which code hosts annotate lines."""
        from residuum.audit.sarif import render_sarif

        return render_sarif(self)

    def to_html(self) -> str:
        """One self-contained page: charts, findings and a table, with nothing fetched from anywhere."""
        from residuum.audit.html import render_page  # the charting library loads only for a page

        return render_page(self)


def audit(model: nn.Module, *args: Any, loss: Loss | None = None, **kwargs: Any) -> Audit:
    """Run `model(*args, **kwargs)` forward and backward once and judge its residual connections.

    `loss` takes the model's output and returns a scalar; without it the model's own loss, next-token cross-entropy or a
    fixed random projection of the output is used, and named. The model is left as it was found. Raises `TraceError`
    where the model cannot be run.
    """
    measured = flow(model, *args, loss=loss, **kwargs)
    return judge(Evidence(measured.graph, measured, model_source=source_of(model)), type(model).__name__)


def judge(
    seen: Evidence, target: str, select: Sequence[str] = (), ignore: Sequence[str] = (), notes: Sequence[str] = ()
) -> Audit:
    """Ask every rule, or those that `select` and `ignore` leave: codes (RS301) or their beginnings (RS3).

    Raises `InputError` for a code that no rule has.
    """
    findings: list[Finding] = []
    skipped = {}
    rules = chosen_rules(select, ignore)
    for rule in rules:
        try:
            findings += rule.check(seen)
        except Skip as reason:
            skipped[rule.code] = str(reason)
    findings.sort(key=lambda finding: -SEVERITIES.index(finding.severity))
    left_out = [rule.code for rule in RULES if rule not in rules]
    return Audit(target, seen, findings, skipped, left_out=left_out, notes=list(notes))


def counted(count: int, name: str) -> str:
    """1 finding, 2 findings."""
    return f"{count} {name}{'s' * (count != 1)}"


def _codes(findings: list[Finding]) -> str:
    return ", ".join(sorted({finding.code for finding in findings}))


def _finding(finding: Finding) -> dict[str, Any]:
    return {**asdict(finding), "source": finding.source and asdict(finding.source)}


def _row(row: Row) -> dict[str, Any]:
    residual = row.residual
    return {
        "index": residual.index,
        "module": residual.module,
        "branch": residual.branch,
        "branches": list(residual.branches),
        "n_parameters": residual.n_parameters,
        "source": asdict(residual.source),
        "kind": residual.kind,
        "placement": residual.placement,
        "shape": list(residual.shape),
        "inner": [{"branch": r.branch, "kind": r.kind, "source": asdict(r.source)} for r in residual.inner],
        "forward": _forward(row.forward) if row.forward else None,
        "backward": _backward(row.backward) if row.backward else None,
    }


def _ternary(rounded: RoundedMap) -> dict[str, Any]:
    minus, zero, plus = rounded.shares or (None, None, None)
    return {
        "module": rounded.module,
        "name": rounded.name,
        "parameters": list(rounded.parameters),
        "minus": minus,
        "zero": zero,
        "plus": plus,
        "dead_outputs": rounded.dead_outputs,
        "learns": rounded.learns,
    }


def _forward(forward: Forward) -> dict[str, float]:
    return {**asdict(forward), "write_share": forward.write_share}


def _backward(backward: Backward) -> dict[str, float]:
    return {**asdict(backward), "identity_share": backward.identity_share}


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    return [_finite(inner) for inner in value] if isinstance(value, list) else value
