"""A ternary run as one file of packed weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from residuum.errors import InputError
from residuum.model import Transformer, generate
from residuum.packed import Packed, PackedDecoder, difference, pack, save
from residuum.packed.weights import Embedding, check
from residuum.train import RunFolder

READ = 64
"""Tokens over which the file's scores are compared with the run's."""


def export(folder: RunFolder, out: Path, embedding: Embedding = "int8") -> str:
    """Write the run as the file `out`, and say what reads it, and how its scores differ from the run's.

    `embedding` is how embedding and head are kept. Raises `InputError`, before anything is written, for a shape that
    cannot be packed or scores that are not finite.
    """
    check(folder.recipe.model)  # before weights are read
    model = folder.model()
    packed = pack(model, embedding)
    differ = _differ(model, packed, folder.tokenizer.separator)
    save(out, packed, folder.tokenizer.to_json(), folder.recipe.data.answer)
    return (
        f"wrote {out}: {packed.bits_per_weight():.2f} bits a ternary weight, embedding and head as {embedding}; its "
        f"scores {differ}; residuum generate {out} --prompt TEXT reads it"
    )


def _differ(model: Transformer, packed: Packed, separator: int) -> str:
    """The difference on a document that the run writes itself: what it was trained on need not be at hand."""
    try:
        decoder = PackedDecoder(packed)
    except InputError as error:
        return f"were not compared with the run's, because {error}"
    n = min(READ, decoder.context)
    text = [separator, *generate(model, [separator], n - 1, rng=np.random.default_rng(0))]
    return f"{difference(model, decoder, text)}, over {n} tokens that the run wrote"
