"""[tool.residuum] in the nearest pyproject.toml: what an audit takes where the command line says nothing.

[tool.residuum]
ignore = ["RS301"]
baseline = "residuum.json"

[tool.residuum.target."my_package.model:build"]  # for this target alone, instead of the above
fail-on = "warning"
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from residuum.errors import InputError

FailOn = Literal["info", "warning", "error", "never"]
KEYS = ("select", "ignore", "fail-on", "baseline")


@dataclass(frozen=True)
class Settings:
    """What the file says, or what holds without it."""

    select: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    fail_on: FailOn = "error"
    baseline: Path | None = None


def find_settings(target: str = "") -> Settings:
    """The settings for `target` from the nearest pyproject.toml upwards from the working folder.

    Raises `InputError` naming the key and the file where one is unknown or its value is of another kind.
    """
    here = Path.cwd()
    file = next((f for folder in (here, *here.parents) if (f := folder / "pyproject.toml").is_file()), None)
    if file is None:
        return Settings()
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{file} cannot be read: {error}") from None
    tool = _table(content.get("tool", {}), "tool", file)
    table = _table(tool.get("residuum", {}), "tool.residuum", file)
    targets = _table(table.pop("target", {}), "tool.residuum.target", file)
    _check(table, "tool.residuum", file)
    for name, each in targets.items():
        _check(_table(each, f"tool.residuum.target.{name!r}", file), f"tool.residuum.target.{name!r}", file)
    merged = {**table, **targets.get(target, {})}
    return Settings(
        tuple(merged.get("select", ())),
        tuple(merged.get("ignore", ())),
        merged.get("fail-on", "error"),
        file.parent / merged["baseline"] if "baseline" in merged else None,
    )


def _table(value: Any, name: str, file: Path) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"{file}: {name} is {value!r}: give a table")
    return value


def _check(table: dict[str, Any], name: str, file: Path) -> None:
    for key, value in table.items():
        if key not in KEYS:
            raise InputError(f"{file}: {name}.{key} is unknown: choose {', '.join(KEYS)}")
        if key in ("select", "ignore"):
            right, wanted = isinstance(value, list) and all(isinstance(v, str) for v in value), "a list of codes"
        elif key == "fail-on":
            right, wanted = value in get_args(FailOn), f"one of {', '.join(get_args(FailOn))}"
        else:
            right, wanted = isinstance(value, str) and value != "", "the path of a file"
        if not right:
            raise InputError(f"{file}: {name}.{key} is {value!r}: give {wanted}")
