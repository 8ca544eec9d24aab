"""What a rule says."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

from residuum.stream import Flow, Residual, Source

Severity = Literal["info", "warning", "error"]
SEVERITIES: tuple[Severity, ...] = ("info", "warning", "error")


@dataclass(frozen=True)
class Finding:
    """One verdict of one rule: what was found, where, and how to mend it."""

    code: str
    severity: Severity
    message: str
    mend: str
    module: str = ""
    source: Source | None = None


class Rule(Protocol):
    """A question asked of a measured model. `code` is RS1xx for structure, RS2xx for gradients, RS3xx for values."""

    code: str
    severity: Severity
    title: str

    def check(self, flow: Flow) -> Iterator[Finding]:
        """Every finding. Raises `Skip` where the rule has nothing to go by."""
        ...


class Skip(Exception):
    """The rule could not run; the message says why."""


def place(residual: Residual) -> str:
    """How a connection is called in a message."""
    return f"connection {residual.index} ({residual.branch or residual.module or 'the model'})"
