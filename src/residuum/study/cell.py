"""A cell: one experiment with its settings, the smallest piece of a study that is run, stored and never run again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

from residuum.errors import InputError

Function = TypeVar("Function", bound=Callable[..., dict[str, Any]])


def experiment(version: int, resumes: bool = False) -> Callable[[Function], Function]:
    """Mark a function, settings to figures, both as JSON holds them, as an experiment.

    A new `version` is a new experiment: raise it when the same settings would give other figures, and cells of the
    old one are run again. One that `resumes` is called with a second argument, a folder that is the cell's own until
    it is finished: what a killed process left there is found by the next.
    """

    def mark(function: Function) -> Function:
        function.version, function.resumes = version, resumes  # type: ignore[attr-defined]
        return function

    return mark


@dataclass(frozen=True)
class Cell:
    """One experiment, named "package.module:function", with its settings.

    The figures depend on experiment and settings alone (chance comes from a seed among them), so that cells can be run
    in any order, anywhere. `cost` is an estimate in any unit, for the time left and for even shards; `label` says in a
    few words which cell of its study it is.
    Raises `TypeError` or `ValueError` for settings that JSON does not hold.
    """

    experiment: str
    settings: dict[str, Any]
    cost: float = field(default=1.0, compare=False)
    label: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        # What the experiment is given is what the store will hold: lists for tuples, and no NaN.
        object.__setattr__(self, "settings", json.loads(canonical(self.settings)))

    @property
    def name(self) -> str:
        """The function's own name."""
        return self.experiment.partition(":")[2]

    @property
    def version(self) -> int:
        return self._function.version

    @cached_property
    def key(self) -> str:
        """Sixteen hexadecimal digits that depend on experiment, version and settings."""
        return hashlib.sha256(canonical([self.experiment, self.version, self.settings]).encode()).hexdigest()[:16]

    def run(self, folder: Path) -> dict[str, Any]:
        """The figures. `folder` is for an experiment that resumes; it need not exist."""
        settings = json.loads(canonical(self.settings))  # a copy: the experiment may change its own
        figures = self._function(settings, folder) if self._function.resumes else self._function(settings)
        try:
            return json.loads(canonical(figures))
        except (TypeError, ValueError) as error:
            raise TypeError(f"{self.experiment} gave figures that JSON does not hold: {error}") from error

    @cached_property
    def _function(self) -> Any:
        module, _, name = self.experiment.partition(":")
        try:
            function = getattr(import_module(module), name)
        except (ImportError, AttributeError, ValueError) as error:
            raise InputError(f"no experiment '{self.experiment}' ({error}): give package.module:function") from error
        if not hasattr(function, "version"):
            raise InputError(f"'{self.experiment}' is no experiment: mark it with @experiment(version=1)")
        return function


def canonical(content: Any) -> str:
    """The one JSON text of a content: keys sorted, no space, no NaN."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
