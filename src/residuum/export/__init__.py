"""Runs as the files of other runtimes, and back."""

from importlib import import_module
from pathlib import Path

from residuum.errors import InputError
from residuum.files import check_free
from residuum.train import RunFolder

FORMATS = {
    "hf": "residuum.export.huggingface",
    "gguf": "residuum.export.gguf",
    "safetensors": "residuum.export.packed",
}
"""What a run can be written as, and the module whose `export(folder, out)` does it: each loads its own library."""


def export(folder: RunFolder, to: str, out: Path, kind: str | None = None) -> str:
    """Write the run's model as `to` at `out`, and say in a sentence what was written and what runs it.

    `kind` is how GGUF stores the maps; None chooses. Raises `InputError`, before anything is written, where `out` is
    taken or the format cannot hold the model.
    """
    check_free(out, "--out")
    if kind is not None and to != "gguf":
        raise InputError(f"--type {kind} goes with --to gguf: leave it away")
    written: str = import_module(FORMATS[to]).export(folder, out, *([] if kind is None else [kind]))
    return written
