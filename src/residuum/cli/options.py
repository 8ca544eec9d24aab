"""Parse a verb's options with tyro, and say what is wrong with them in one line."""

from __future__ import annotations

import contextlib
import io
import re
from typing import Any, TypeVar

import tyro

from residuum.errors import InputError

Options = TypeVar("Options")


def parse(
    kind: type[Options], args: list[str], verb: str, default: Options | None = None, text: str | None = None
) -> Options:
    """The options in `args`. Prints the help and exits with 0 if asked for it; raises `InputError` for a mistake."""
    extra: dict[str, Any] = {} if default is None else {"default": default}
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(kind, args=args, prog=f"residuum {verb}", description=text, **extra)
    except SystemExit as stop:
        if not stop.code:
            raise
        raise InputError(f"{_first_words(said.getvalue())}: see residuum {verb} --help") from None


def _first_words(box: str) -> str:
    """What a frame of tyro's says: its first part, and of the others only what was perhaps meant."""
    lines = [line.strip(" │|") for line in box.splitlines()]
    parts = [
        " ".join(part.split()) for part in re.split(r"^(?:[╭╰].*|[\W_]{3,})$", "\n".join(lines), flags=re.MULTILINE)
    ]
    parts = [part for part in parts if part]
    said = parts[0 if "╭" in box else 1]  # without a frame the title stands as a part of its own
    meant = next((re.search(r"--[\w.-]+", part) for part in parts if part.startswith("Perhaps you meant")), None)
    return said.rstrip(".") + (f", perhaps you meant {meant[0]}" if meant else "")
