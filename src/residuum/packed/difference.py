"""What packing changes in a model's scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from residuum.errors import InputError
from residuum.model import Transformer
from residuum.packed.decoder import PackedDecoder


class Difference(NamedTuple):
    """Packed scores less the model's own, over all tokens of the vocabulary and all places."""

    largest: float
    rms: float
    """Root of the mean square."""
    relative: float
    """The same over the root of the mean square of the model's own scores."""

    def __str__(self) -> str:
        return f"differ from the model's own by {self.relative:.2%} of their RMS, at most by {self.largest:.2g}"


@torch.inference_mode()
def difference(model: Transformer, decoder: PackedDecoder, tokens: Sequence[int]) -> Difference:
    """Have both read `tokens`, at most the context, and compare the scores after each; the decoder then forgets.

    Raises `InputError` where a score is not finite.
    """
    own = model(torch.tensor([list(tokens)], device=model.embedding.weight.device))[0].double().cpu().numpy()
    decoder.forget()
    packed = np.stack([decoder.read([token]) for token in tokens])
    decoder.forget()
    changed = packed - own
    if not np.isfinite(changed).all():
        raise InputError("the model's scores are not finite: its weights are damaged, restore them from a copy")
    rms = float(np.sqrt(np.mean(changed**2)))
    return Difference(float(np.abs(changed).max()), rms, rms / float(np.sqrt(np.mean(own**2))) if rms else 0.0)
