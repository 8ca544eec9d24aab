"""An audit as its JSON file has it: what a comparison reads, of this schema, from any machine."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from residuum.audit.audit import SCHEMA
from residuum.audit.finding import SEVERITIES, Severity
from residuum.errors import InputError

FIGURES = (
    ("forward", "state_rms"),
    ("forward", "write_rms"),
    ("backward", "arriving"),
    ("backward", "identity"),
    ("backward", "branch"),
)


@dataclass(frozen=True)
class Connection:
    """What a comparison looks at of one connection. A figure is None where it was not measured or is not finite."""

    name: str
    kind: str
    placement: str
    source: str
    figures: dict[str, float | None]


@dataclass(frozen=True)
class Found:
    """A finding as the file has it."""

    severity: Severity
    code: str
    module: str
    source: str
    message: str
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Recorded:
    """An audit as its file has it: connections by name and occurrence, findings whether known or new."""

    name: str
    connections: dict[tuple[str, int], Connection]
    findings: list[Found]
    loss: float | None
    measured: bool


def read_audit(path: Path) -> Recorded:
    """An audit that `--format json` wrote. Raises `InputError` if the file is another, or of a newer schema."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise InputError(f"{path} is no JSON: residuum audit TARGET --format json --out {path} writes one") from None
    name, _, number = str(content.get("schema") if isinstance(content, dict) else "").partition("/")
    if name != SCHEMA.partition("/")[0] or not number.isdecimal():
        raise InputError(f"{path} is no audit: residuum audit TARGET --format json --out FILE writes one")
    if f"{name}/{number}" != SCHEMA:
        raise InputError(f"{path} is of schema {name}/{number}, this residuum reads {SCHEMA}: update residuum")
    try:
        return _recorded(path, content)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        raise InputError(f"{path} is a damaged audit: write it again with --format json") from None


def _recorded(path: Path, content: dict[str, Any]) -> Recorded:
    seen: Counter[str] = Counter()
    connections = {}
    for residual in (residual for stream in content["streams"] for residual in stream["residuals"]):
        name = str(residual["branch"] or residual["module"] or "the model")
        figures = {
            f"{way} {figure}".replace("_", " "): _number(residual[way] and residual[way][figure])
            for way, figure in FIGURES
        }
        kind, placement = str(residual["kind"]), str(residual["placement"])
        connections[name, seen[name]] = Connection(name, kind, placement, _source(residual["source"]), figures)
        seen[name] += 1
    findings = [
        Found(
            f["severity"],
            str(f["code"]),
            str(f["module"]),
            _source(f["source"]),
            str(f["message"]),
            tuple(map(str, f.get("names", ()))),
        )
        for f in (*content["findings"], *(content.get("known") or ()))
    ]
    if any(finding.severity not in SEVERITIES for finding in findings):
        raise ValueError
    loss = content["loss"]
    return Recorded(str(path), connections, findings, _number(loss and loss["value"]), loss is not None)


def _number(value: Any) -> float | None:
    number = None if value is None else float(value)
    return number if number is None or math.isfinite(number) else None


def _source(source: dict[str, Any] | None) -> str:
    return f"{PurePath(source['file']).name}, {source['function']}" if source else ""
