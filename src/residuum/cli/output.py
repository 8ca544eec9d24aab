"""Where a verb's answer goes: to the terminal, or whole into a file."""

from __future__ import annotations

import os
from pathlib import Path

from residuum.errors import InputError
from residuum.files import write_whole


def check_writable(file: Path | None) -> None:
    """Raises `InputError` before long work rather than after it."""
    if file is None:
        return
    if file.exists() and not file.is_file():
        raise InputError(f"cannot write {file}: it is no regular file: choose another place")
    check_folder(file.parent)


def check_folder(folder: Path) -> None:
    """Raises `InputError` if nothing can be written into `folder`, which need not be there yet."""
    whole = folder.resolve()
    there = next(each for each in (whole, *whole.parents) if each.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        why = "nobody may write there" if there.is_dir() else "it is no folder"
        raise InputError(f"cannot write into {there}: {why}: choose another place")


def put(content: str, out: Path | None) -> None:
    """Print it; or write it to `out` and print that name."""
    if out is None:
        print(content, end="")
    else:
        write_whole(out, content)
        print(out)
