"""Inputs that a person gives: tensors or their shapes in a file, or a callable that returns them. Never a pickle."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from residuum.audit.targets.imported import as_arguments, imported
from residuum.errors import InputError

DTYPES = {str(dtype)[6:]: dtype for dtype in vars(torch).values() if isinstance(dtype, torch.dtype)}
KEYS = ("shape", "dtype", "low", "high")


def given_inputs(source: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What `--inputs` names, as (args, kwargs).

    A .safetensors file holds tensors by name. A .json or .toml file holds, by name, nested lists of numbers, a number,
    or {shape, dtype, low, high}: whole numbers from low up to, not including, high, or normal floats; always the same.
    Raises `InputError` naming file and input.
    """
    path = Path(source)
    if ":" in source and not path.exists():
        return as_arguments(imported(source)[0])
    readers = {".safetensors": _tensors, ".json": _described, ".toml": _described}
    if path.suffix not in readers:
        raise InputError(f"--inputs {source}: give a .safetensors, .json or .toml file, or package.module:callable")
    if not path.is_file():
        raise InputError(f"--inputs {source}: no such file")
    inputs = readers[path.suffix](path)
    if not inputs:
        raise InputError(f"--inputs {source} holds no input: name each argument of forward with its tensor or shape")
    return (), inputs


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise InputError(f"--inputs {path} is damaged: {error}: write it anew") from error


def _described(path: Path) -> dict[str, Any]:
    text = path.read_bytes()
    try:
        content = json.loads(text) if path.suffix == ".json" else tomllib.loads(text.decode())
    except (ValueError, RecursionError) as error:  # both parsers' errors are ValueErrors
        raise InputError(f"--inputs {path}: {error}: mend the file") from error
    if not isinstance(content, dict):
        raise InputError(f"--inputs {path}: hold one table of names, each with its tensor or shape")
    generator = torch.Generator().manual_seed(0)
    return {name: _value(value, f"--inputs {path}: '{name}'", generator) for name, value in content.items()}


def _value(value: Any, where: str, generator: torch.Generator) -> Any:
    if isinstance(value, dict):
        try:
            return _random(value, where, generator)
        except (RuntimeError, ValueError, TypeError) as error:  # what PyTorch cannot make: too large, of no such type
            raise InputError(f"{where} cannot be made: {' '.join(str(error).split()):.200}: give another") from error
    if isinstance(value, list):
        try:
            return torch.tensor(value)
        except (ValueError, TypeError, RuntimeError, RecursionError) as error:
            raise InputError(
                f"{where} is no tensor: {error}: give nested lists of numbers, all of one length"
            ) from error
    return value


def _random(content: dict[str, Any], where: str, generator: torch.Generator) -> Tensor:
    unknown = [key for key in content if key not in KEYS]
    if unknown:
        raise InputError(f"{where} has the key '{unknown[0]}': it may hold {', '.join(KEYS)}")
    shape, low, high = content.get("shape"), content.get("low", 0), content.get("high", 2)
    if not isinstance(shape, list) or not all(type(size) is int and size > 0 for size in shape):
        raise InputError(f"{where}: shape is {shape!r}: give a list of whole numbers above 0, such as [2, 8]")
    named = content.get("dtype", "int64" if "high" in content else "float32")
    dtype = DTYPES.get(named) if isinstance(named, str) else None
    if dtype is None:
        raise InputError(f"{where}: dtype is {content['dtype']!r}: give one of PyTorch's, such as float32 or int64")
    if dtype.is_floating_point:
        return torch.randn(shape, generator=generator).to(dtype)
    if type(low) is not int or type(high) is not int or low >= high:
        raise InputError(f"{where}: low is {low!r} and high is {high!r}: give whole numbers, low below high")
    return torch.randint(low, high, shape, generator=generator).to(dtype)
