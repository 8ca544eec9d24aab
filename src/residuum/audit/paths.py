"""How a source file is called where a person reads it."""

from __future__ import annotations

from pathlib import Path


def shorten(file: str) -> str:
    """Below the working folder, or below site-packages, or else as it is."""
    path = Path(file)
    if path.is_relative_to(Path.cwd()) and "site-packages" not in path.parts:
        return str(path.relative_to(Path.cwd()))
    parts = path.parts
    if "site-packages" in parts:
        return str(Path(*parts[parts.index("site-packages") + 1 :]))
    return file
