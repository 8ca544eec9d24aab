"""What every kind of target comes to: a model, inputs to try, and what to tell about them."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from torch import nn

from residuum.audit.finding import source_of
from residuum.audit.paths import is_installed
from residuum.audit.targets.inputs import describe, make_inputs
from residuum.errors import InputError
from residuum.stream import Source, TraceError

Result = TypeVar("Result")

# Names that `flow` and `trace` keep for themselves: an input of such a name goes by its place.
OURS = {"model", "loss", "self"}
# What a mend for a call of `residuum.audit` is for the command.
MENDS = {
    "residuum.trace gives the structure": "give --structure",
    "give loss=, or let a parameter require grad": (
        "let a parameter require grad and forward return what depends on it, or give --structure"
    ),
}


@dataclass
class Built:
    """A model with the inputs that came with it; None where they are to be made.

    `notes` are for the report, and so is what `about_inputs` says of those that came with it. `built_at` is the line of
    the callable that built it.
    """

    model: nn.Module
    inputs: tuple[tuple[Any, ...], dict[str, Any]] | None = None
    notes: list[str] = field(default_factory=list)
    about_inputs: str = ""
    built_at: Source | None = None

    @property
    def source(self) -> Source | None:
        """Where the model's class stands, or if somebody else wrote that, the code that builds it."""
        source = source_of(self.model)
        return source if source and not is_installed(source.file) else self.built_at

    def on(self, inputs: tuple[tuple[Any, ...], dict[str, Any]] | None) -> Built:
        """The same on other inputs, if there are any."""
        return self if inputs is None else replace(self, inputs=inputs, about_inputs="")

    def run(self, look: Callable[..., Result]) -> tuple[Result, list[str]]:
        """`look(model, *args, **kwargs)` with the first inputs that run, and the notes.

        Raises `TraceError`, the one that the likeliest inputs met, if none do.
        """
        if self.inputs is not None:
            args, kwargs = self.inputs
            return self._look(look, args, kwargs), [*self.notes, *filter(None, [self.about_inputs])]
        first: TraceError | None = None
        for inputs in make_inputs(self.model):
            try:
                return self._look(look, (), inputs), [*self.notes, f"inputs made: {describe(inputs)}"]
            except TraceError as error:
                made = f" (the inputs were made, {describe(inputs)}: give your own with --inputs)"
                first = first or TraceError(f"{error}{made if 'forward pass raised' in str(error) else ''}")
        raise first or InputError(f"no inputs can be made for {type(self.model).__name__}: give them with --inputs")

    def _look(self, look: Callable[..., Result], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Result:
        if not OURS.isdisjoint(kwargs):
            args, kwargs = self._in_order(args, kwargs)
        try:
            return look(self.model, *args, **kwargs)
        except TraceError as error:
            if re.search(r"not implemented for '(Half|BFloat16)'", str(error)):
                raise InputError(
                    f"{error}: this device lacks it in half precision: give the model in float32"
                ) from error
            for call, command in MENDS.items():
                if call in str(error):
                    raise TraceError(str(error).replace(call, command)) from error
            raise

    def _in_order(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        try:
            bound = inspect.signature(self.model.forward).bind(*args, **kwargs)
        except TypeError as error:
            raise InputError(f"the inputs do not fit {type(self.model).__name__}'s forward: {error}") from None
        bound.apply_defaults()
        if not OURS.isdisjoint(bound.kwargs):
            name = min(OURS & bound.kwargs.keys())
            raise InputError(f"the input '{name}' cannot be given by its name: give it by its place, from a callable")
        return bound.args, bound.kwargs
