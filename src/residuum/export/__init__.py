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
"""What a run can be written as, and the module whose `export(folder, out[, option])` does it, with its own library."""


def export(folder: RunFolder, to: str, out: Path, kind: str | None = None, embedding: str | None = None) -> str:
    """Write the run's model as `to` at `out`, and say in a sentence what was written and what runs it.

    `kind` is how GGUF stores the maps, `embedding` how a packed file keeps embedding and head; None chooses. Raises
    `InputError`, before anything is written, where `out` is taken or the format cannot hold the model.
    """
    check_free(out, "--out")
    options = {"gguf": ("--type", kind), "safetensors": ("--embedding", embedding)}
    for owner, (name, value) in options.items():
        if value is not None and to != owner:
            raise InputError(f"{name} {value} goes with --to {owner}: leave it away")
    given = [value for _, value in options.values() if value is not None]
    written: str = import_module(FORMATS[to]).export(folder, out, *given)
    return written
