"""Audit a model: measure it, ask every rule, come to a verdict."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from typing import Any

from torch import nn

from residuum.audit.finding import SEVERITIES, Evidence, Finding, Severity, Skip
from residuum.audit.rules import RULES
from residuum.stream import Backward, Flow, Forward, Loss, Measured, ResidualGraph, flow

SCHEMA = "residuum.audit/1"


@dataclass(frozen=True)
class Audit:
    """What was measured, what the rules found in it, and which of them could not run (code to reason).

    `notes` say what a reader must know of how the audit was made.
    """

    target: str
    seen: Evidence
    findings: list[Finding]
    skipped: dict[str, str]
    notes: list[str] = field(default_factory=list)

    @property
    def graph(self) -> ResidualGraph:
        return self.seen.graph

    @property
    def flow(self) -> Flow:
        """What was measured. Raises `Skip` if only the structure was looked at."""
        return self.seen.flow

    @property
    def verdict(self) -> str:
        """healthy, or the worst severity found: warnings or errors."""
        worst = max((SEVERITIES.index(f.severity) for f in self.findings), default=0)
        return ("healthy", "warnings", "errors")[worst]

    @property
    def could_not_run(self) -> str:
        """How many rules could not run, in words; empty if all did."""
        count = len(self.skipped)
        return f"{count} rule{'s' * (count != 1)} could not run" if count else ""

    def at_least(self, severity: Severity) -> list[Finding]:
        """The findings of this severity or a worse one."""
        least = SEVERITIES.index(severity)
        return [f for f in self.findings if SEVERITIES.index(f.severity) >= least]

    def to_dict(self) -> dict[str, Any]:
        """The audit as plain values, after the schema residuum.audit/1. A number that is not finite is None."""
        streams = [
            {"origin": stream.origin, "final_norm": stream.final_norm, "residuals": [_as_dict(m) for m in measured]}
            for stream, measured in zip(self.graph.streams, self.flow.measured, strict=True)
        ]
        content = {
            "schema": SCHEMA,
            "made_with": {"residuum": version("residuum"), "torch": version("torch")},
            "target": self.target,
            "notes": self.notes,
            "loss": {"name": self.flow.loss_name, "value": self.flow.loss},
            "operations": self.graph.operations,
            "streams": streams,
            "parameters": {"without_gradient": self.flow.without_gradient, "not_finite": self.flow.not_finite},
            "findings": [{**asdict(f), "source": f.source and asdict(f.source)} for f in self.findings],
            "skipped": self.skipped,
            "verdict": self.verdict,
        }
        return _finite(content)

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n"

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
    return judge(Evidence(measured.graph, measured), type(model).__name__)


def judge(seen: Evidence, target: str, notes: Sequence[str] = ()) -> Audit:
    """Ask every rule."""
    findings: list[Finding] = []
    skipped = {}
    for rule in RULES:
        try:
            findings += rule.check(seen)
        except Skip as reason:
            skipped[rule.code] = str(reason)
    findings.sort(key=lambda finding: -SEVERITIES.index(finding.severity))
    return Audit(target, seen, findings, skipped, notes=list(notes))


def _as_dict(measured: Measured) -> dict[str, Any]:
    residual = measured.residual
    return {
        "index": residual.index,
        "module": residual.module,
        "branch": residual.branch,
        "source": asdict(residual.source),
        "kind": residual.kind,
        "placement": residual.placement,
        "shape": list(residual.shape),
        "forward": _forward(measured.forward),
        "backward": _backward(measured.backward) if measured.backward else None,
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
