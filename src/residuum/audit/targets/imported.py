"""Target `package.module:callable`: code that returns a model, or a model and its inputs."""

from __future__ import annotations

import importlib
import traceback
from typing import Any

from torch import nn

from residuum.audit.finding import source_of_definition
from residuum.audit.paths import is_installed, shorten
from residuum.audit.targets.built import Built
from residuum.errors import InputError
from residuum.stream import Source


def from_callable(target: str) -> Built:
    """Import and call it. Raises `InputError` if either raises, or it gives no module."""
    built, built_at = imported(target)
    model, inputs = built if isinstance(built, tuple) and len(built) == 2 else (built, None)
    if not isinstance(model, nn.Module):
        raise InputError(f"'{target}' returned {type(model).__name__}: return a torch.nn.Module, or (module, inputs)")
    return Built(model, None if inputs is None else as_arguments(inputs), built_at=built_at)


def as_arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Inputs as (args, kwargs): names go by name, a tuple in order, anything else alone."""
    if isinstance(inputs, dict) and all(isinstance(name, str) for name in inputs):
        return (), inputs
    return inputs if isinstance(inputs, tuple) else (inputs,), {}


def imported(target: str) -> tuple[Any, Source | None]:
    """What `package.module:name` names, called if it can be and is no module; and where that is written."""
    module_name, _, attribute = target.partition(":")
    if not module_name or not attribute:
        raise InputError(f"'{target}' is no package.module:callable: name both sides of the colon")
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(f"{error.name}."):
            raise InputError(f"'{target}': no module named {error.name}: run from where it can be imported") from error
        raise InputError(f"'{target}': importing {module_name} raised {_told(error)}") from error
    if not hasattr(module, attribute):
        raise InputError(f"'{target}': module {module_name} has no {attribute}")
    build = getattr(module, attribute)
    try:
        built = build() if callable(build) and not isinstance(build, nn.Module) else build
    except (Exception, SystemExit) as error:
        raise InputError(f"'{target}' raised {_told(error)}") from error
    return built, source_of_definition(build)


def _told(error: BaseException) -> str:
    """What was raised, and at which line: of the project's own code, if any of it is on the way there."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith("<frozen")]
    frames = [f for f in frames if f.filename not in (__file__, importlib.__file__)]
    own = [f for f in frames if not is_installed(f.filename)] or frames
    where = f" (at {shorten(own[-1].filename)}:{own[-1].lineno})" if own else ""
    return f"{type(error).__name__}: {error}{where}"
