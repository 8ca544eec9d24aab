"""How a source file is called: short where a person reads it, the same on every machine where a program compares."""

from __future__ import annotations

from pathlib import Path

INSTALLED = ("site-packages", "dist-packages")


def is_installed(file: str) -> bool:
    """Whether it belongs to a package that somebody else installed."""
    return any(name in Path(file).parts for name in INSTALLED)


def shorten(file: str) -> str:
    """Below site-packages, or below the working folder, or else as it is."""
    return _below(Path.cwd(), file) or file


def portable(file: str) -> str:
    """Below site-packages, or below the project's root, or else the bare name."""
    return _below(project_root(), file) or Path(file).name


def project_root() -> Path:
    """The nearest folder upwards from the working folder that holds a pyproject.toml or a .git, or else the latter."""
    here = Path.cwd()
    marked = (
        folder for folder in (here, *here.parents) if (folder / "pyproject.toml").exists() or (folder / ".git").exists()
    )
    return next(marked, here)


def _below(root: Path, file: str) -> str:
    path = Path(file)
    for name in INSTALLED:
        if name in path.parts:
            return Path(*path.parts[path.parts.index(name) + 1 :]).as_posix()
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else ""
