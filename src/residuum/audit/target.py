"""What `residuum audit TARGET` may name: a run folder, or `package.module:callable`."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from residuum.audit.audit import Audit, judge
from residuum.audit.finding import Evidence, source_of
from residuum.audit.run import audit_run
from residuum.errors import InputError
from residuum.stream import flow
from residuum.train.run_folder import RunFolder

TOKENS, PIXELS = (2, 8), (2, 64, 64)


def audit_target(target: str, select: Sequence[str] = (), ignore: Sequence[str] = ()) -> Audit:
    """Audit what `target` names. Raises `InputError` if it names nothing that can be audited."""
    if ":" in target and not Path(target).exists():
        here = str(Path.cwd())
        sys.path.insert(0, here)  # as `python -m` does, so that a project's own modules are found
        try:
            model, args, kwargs = _build(target)
            measured = flow(model, *args, **kwargs)
            return judge(Evidence(measured.graph, measured, model_source=source_of(model)), target, select, ignore)
        finally:
            if here in sys.path:  # the target's own code may have changed it
                sys.path.remove(here)
    if Path(target).exists():
        return audit_run(RunFolder.open(target), select, ignore)
    raise InputError(f"'{target}' is neither a run folder nor package.module:callable")


def _build(target: str) -> tuple[nn.Module, tuple[Any, ...], dict[str, Any]]:
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
        built = build() if callable(build) and not isinstance(build, nn.Module) else build
    except (Exception, SystemExit) as error:
        raise InputError(f"'{target}' raised {type(error).__name__}: {error}") from error
    model, inputs = built if isinstance(built, tuple) and len(built) == 2 else (built, None)
    if not isinstance(model, nn.Module):
        raise InputError(f"'{target}' returned {type(model).__name__}: return a torch.nn.Module, or (module, inputs)")
    if inputs is None:
        return model, (), make_inputs(model)
    if isinstance(inputs, dict) and all(isinstance(name, str) for name in inputs):
        return model, (), inputs
    return model, inputs if isinstance(inputs, tuple) else (inputs,), {}


def make_inputs(model: nn.Module) -> dict[str, Any]:
    """Inputs for a model that came without: random tokens if it has an embedding, pixels if a convolution comes first.

    Always the same ones. Raises `InputError` for other models: theirs must be given.
    """
    generator = torch.Generator().manual_seed(0)
    names = [name for name in inspect.signature(model.forward).parameters if name not in ("args", "kwargs")]
    if not names:
        raise InputError(f"{type(model).__name__} names no input: return (module, inputs) from the callable")
    for layer in model.modules():
        if isinstance(layer, nn.Embedding) and layer.num_embeddings:
            tokens = torch.randint(layer.num_embeddings, TOKENS, generator=generator)
            return {name: tokens for name in names if name == names[0] or name == "decoder_input_ids"}
        if isinstance(layer, nn.Conv2d):
            return {names[0]: _pixels(layer.in_channels, generator)}
    raise InputError(f"no inputs can be made for {type(model).__name__}: return (module, inputs) from the callable")


def _pixels(channels: int, generator: torch.Generator) -> Tensor:
    batch, height, width = PIXELS
    return torch.randn(batch, channels, height, width, generator=generator)
