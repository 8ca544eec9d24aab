"""Check a dataclass of settings by its own annotations, whether it came from a file, a flag or Python."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from typing import Any, Literal

from residuum.errors import InputError


def check_fields(settings: Any, section: str) -> None:
    """Raises `InputError` naming `section.field` where a value is of another type, is not finite, or is no choice."""
    hints = typing.get_type_hints(type(settings))
    for field in dataclasses.fields(settings):
        name, value, hint = f"{section}.{field.name}", getattr(settings, field.name), hints[field.name]
        if typing.get_origin(hint) is Literal:
            if value not in typing.get_args(hint):
                raise InputError(f"{name} is {value!r}: choose {', '.join(map(str, typing.get_args(hint)))}")
            continue
        allowed = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        if type(value) not in allowed and not (float in allowed and type(value) is int):
            wanted = " or ".join(kind.__name__ for kind in allowed if kind is not types.NoneType)
            raise InputError(f"{name} is {value!r}: give {'an' if wanted[0] in 'aeiou' else 'a'} {wanted}")
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"{name} is {value}: give a finite number")


def check_range(settings: Any, section: str, least: float, most: float, names: tuple[str, ...]) -> None:
    """Raises `InputError` naming the field whose value is below `least` or above `most`; None is let pass."""
    for name in names:
        value = getattr(settings, name)
        if value is not None and not least <= value <= most:
            bound = f"at least {least}" if value < least else f"at most {most:,}"
            raise InputError(f"{section}.{name} is {value}: give {bound}")
