"""Where a monitor's lines go: a file of JSON lines, TensorBoard, Weights & Biases, or a function."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from residuum.errors import InputError
from residuum.files import cannot_write

Line = dict[str, Any]

# What is drawn over the steps: each a number of one connection, or of one ternary map.
QUANTITIES = ("state_rms", "write_rms", "write_share", "arriving", "identity_share")
LEVELS = ("minus", "zero", "plus", "flips", "lost", "top", "cosine")


def destination(to: Any) -> Callable[[Line], None]:
    """A function that takes one line.

    `to` is a path, or whatever has TensorBoard's `add_scalar(tag, value, step)` or W&B's `log(values, step=)`, or takes
    a dictionary. Neither library is imported. Raises `InputError` for anything else and for a file that cannot be
    written.
    """
    if isinstance(to, (str, os.PathLike)):
        return JsonLines(Path(to))
    if hasattr(to, "add_scalar"):
        return partial(_to_tensorboard, to)
    if hasattr(to, "log"):
        return lambda line: to.log(dict(scalars(line)), step=line["step"])
    if callable(to):
        return to
    raise InputError(f"to is {to!r:.60}: give a path, a SummaryWriter, a W&B run, or a function of one dictionary")


def _to_tensorboard(writer: Any, line: Line) -> None:
    for tag, value in scalars(line):
        writer.add_scalar(tag, value, line["step"])


class JsonLines:
    """A file that grows by one whole line at a time.

    Each line is one write, flushed at once, so that a killed process leaves whole lines and at most one torn one, which
    the next process cuts off before it goes on.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._mended = False
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.open("ab").close()
        except OSError as error:
            raise cannot_write(path, error) from error

    def __call__(self, line: Line) -> None:
        if not self._mended:
            self._cut_torn_line()
            self._mended = True
        with self._path.open("ab", buffering=0) as file:
            file.write((json.dumps(line, allow_nan=False) + "\n").encode())

    def _cut_torn_line(self) -> None:
        with self._path.open("rb") as file:
            if file.seek(0, os.SEEK_END) == 0:
                return
            file.seek(-1, os.SEEK_END)
            if file.read() == b"\n":
                return
        os.truncate(self._path, self._path.read_bytes().rfind(b"\n") + 1)


def read_lines(path: str | Path) -> list[Line]:
    """The lines that a monitor wrote; one that was torn by a kill at the end is left out."""
    whole, _, _ = Path(path).read_bytes().rpartition(b"\n")
    return [json.loads(line) for line in whole.splitlines()]


def scalars(line: Line) -> Iterator[tuple[str, float]]:
    """One line as tags and numbers; what was not measured, or not finite, is left out."""
    for name, value in line.items():
        if isinstance(value, (int, float)) and name != "step":
            yield f"residuum/{name}", value
    for c in line["connections"]:
        for quantity in QUANTITIES:
            if c[quantity] is not None:
                yield f"residuum/{quantity}/{c['stream']}.{c['index']:03}.{c['branch'] or c['module']}", c[quantity]
    for t in line.get("ternary", ()):
        for quantity in LEVELS:
            if t[quantity] is not None:
                yield f"residuum/ternary_{quantity}/{t['name']}", t[quantity]
    for code in sorted({finding["code"] for finding in line["findings"]}):
        yield f"residuum/findings/{code}", sum(finding["code"] == code for finding in line["findings"])
