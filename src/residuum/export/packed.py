"""A ternary run as one file of packed weights."""

from __future__ import annotations

from pathlib import Path

from residuum.packed.file import bits_per_weight, save
from residuum.packed.weights import check, pack
from residuum.train import RunFolder


def export(folder: RunFolder, out: Path) -> str:
    """Write the run as the file `out`, and say what reads it. Raises `InputError` for a shape that cannot be packed."""
    check(folder.recipe.model)  # before weights are read
    save(out, pack(folder.model()), folder.tokenizer.to_json(), folder.recipe.data.answer)
    return (
        f"wrote {out}: {bits_per_weight(out):.2f} bits a ternary weight; residuum generate {out} --prompt TEXT reads it"
    )
