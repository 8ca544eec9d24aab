"""A ternary run as one file of packed weights."""

from __future__ import annotations

from pathlib import Path

from residuum.packed.file import save
from residuum.packed.weights import check, pack
from residuum.train import RunFolder


def export(folder: RunFolder, out: Path) -> str:
    """Write the run as the file `out`, and say what reads it. Raises `InputError` for a shape that cannot be packed."""
    check(folder.recipe.model)  # before weights are read
    save(out, pack(folder.model()), folder.tokenizer.to_json())
    return (
        f"wrote {out}, with two bits a ternary weight, the shape and the tokenizer: residuum.packed.file.load reads it"
    )
