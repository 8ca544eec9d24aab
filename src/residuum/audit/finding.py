"""What a rule is given, and what it says."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import nn

from residuum.stream import Flow, ParameterFlow, Residual, ResidualGraph, Source

Severity = Literal["info", "warning", "error"]
SEVERITIES: tuple[Severity, ...] = ("info", "warning", "error")


@dataclass(frozen=True)
class Finding:
    """One verdict of one rule: what was found, where, and how to mend it; `names` where it is about several at once."""

    code: str
    severity: Severity
    message: str
    mend: str
    module: str = ""
    source: Source | None = None
    names: tuple[str, ...] = ()


class Skip(Exception):
    """The rule could not run; the message says why."""


@dataclass(frozen=True)
class Evidence:
    """All that a rule may look at: the graph, and what was measured on it unless only the structure was looked at.

    `model_source` is where the model's class stands, for findings that stand nowhere else.
    `warmup_steps` is how long the training's learning rate rises; None where nothing is known of the training.
    """

    graph: ResidualGraph
    measured: Flow | None = None
    model_source: Source | None = None
    warmup_steps: int | None = None

    @property
    def flow(self) -> Flow:
        """Raises `Skip` if nothing was measured."""
        if self.measured is None:
            raise Skip("only the structure was looked at, no value and no gradient")
        return self.measured

    @property
    def parameters(self) -> dict[str, ParameterFlow]:
        """Raises `Skip` if there are none to look at."""
        if not self.flow.parameters:
            raise Skip("there is no parameter to look at, or they are sharded")
        return self.flow.parameters


class Rule(ABC):
    """A question asked of a model.

    `code` is RS1xx for structure, RS2xx for gradients, RS3xx for values. The docstring says what is measured and where
    the threshold comes from, `mend` what to do, `example` shows it in code; together they are the rule's page in the
    docs.
    """

    code: ClassVar[str]
    severity: ClassVar[Severity]
    title: ClassVar[str]
    mend: ClassVar[str]
    example: ClassVar[str] = ""

    @abstractmethod
    def check(self, seen: Evidence) -> Iterator[Finding]:
        """Every finding. Raises `Skip` where the rule has nothing to go by."""

    def finding(
        self,
        message: str,
        residual: Residual | None = None,
        severity: Severity | None = None,
        mend: str = "",
        module: str = "",
        names: Sequence[str] = (),
    ) -> Finding:
        """A finding of this rule, at a connection, in a module or about the parameters `names`.

        Severity and mend are the rule's own unless given.
        """
        where, source = (residual.module, residual.source) if residual else (module, None)
        return Finding(
            self.code, severity or self.severity, message, mend or self.mend, where, source, names=tuple(names)
        )


def source_of(model: nn.Module) -> Source | None:
    """Where the model's class is written, None where that is in no file (a class made in a shell)."""
    return source_of_definition(type(model))


def source_of_definition(defined: Any) -> Source | None:
    """The same of any class or function."""
    try:
        return Source(inspect.getfile(defined), inspect.getsourcelines(defined)[1], defined.__qualname__)
    except (OSError, TypeError, AttributeError):
        return None


def place(residual: Residual) -> str:
    """How a connection is called in a message."""
    return f"connection {residual.index} ({residual.branch or residual.module or 'the model'})"
