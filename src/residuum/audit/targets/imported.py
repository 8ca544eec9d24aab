"""Target `package.module:callable`: code that returns a model, or a model and its inputs."""

from __future__ import annotations

import importlib
from typing import Any

from torch import nn

from residuum.audit.targets.built import Built
from residuum.errors import InputError


def from_callable(target: str) -> Built:
    """Import and call it. Raises `InputError` if either raises, or it gives no module."""
    built = imported(target)
    model, inputs = built if isinstance(built, tuple) and len(built) == 2 else (built, None)
    if not isinstance(model, nn.Module):
        raise InputError(f"'{target}' returned {type(model).__name__}: return a torch.nn.Module, or (module, inputs)")
    return Built(model, None if inputs is None else as_arguments(inputs))


def as_arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Inputs as (args, kwargs): names go by name, a tuple in order, anything else alone."""
    if isinstance(inputs, dict) and all(isinstance(name, str) for name in inputs):
        return (), inputs
    return inputs if isinstance(inputs, tuple) else (inputs,), {}


def imported(target: str) -> Any:
    """What `package.module:name` names, called if it can be and is no module."""
    module_name, _, attribute = target.partition(":")
    if not module_name or not attribute:
        raise InputError(f"'{target}' is no package.module:callable: name both sides of the colon")
    try:
        build = getattr(importlib.import_module(module_name), attribute)
    except ModuleNotFoundError as error:
        raise InputError(f"'{target}': no module named {error.name}: run from where it can be imported") from error
    except AttributeError:
        raise InputError(f"'{target}': module {module_name} has no {attribute}") from None
    except (Exception, SystemExit) as error:
        raise InputError(f"'{target}': importing {module_name} raised {type(error).__name__}: {error}") from error
    try:
        return build() if callable(build) and not isinstance(build, nn.Module) else build
    except (Exception, SystemExit) as error:
        raise InputError(f"'{target}' raised {type(error).__name__}: {error}") from error
