"""Who made a loss or a gradient that is not finite: the passes of the step are run once more, and looked at."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from pathlib import Path

import torch.nn.functional as F
from torch.nn.utils import get_total_norm

from residuum.engine import Engine
from residuum.model import Transformer
from residuum.stream import TraceError, where_nan
from residuum.train.batches import Batch


def culprit(
    model: Transformer,
    engine: Engine,
    batches: Iterable[Batch],
    step: int,
    scale: float,
    autocast: Callable[[], AbstractContextManager[object]],
) -> str:
    """The first of the `batches` of `step` (both counted from 1) that is not sound, and what made it so, in words.

    The random generators must stand where they did before the first pass. The model's gradients are made anew.
    """
    model.zero_grad(set_to_none=True)
    device = model.embedding.weight.device
    for number, (x, y) in enumerate(batches, 1):
        batch = x.to(device), y.to(device)
        with autocast():
            maker = _maker(model, batch, scale)  # leaves chance as it is, for the engine to draw the same
        with autocast():
            loss = engine.loss_and_grads(model, batch, scale)
        if not (loss.isfinite() and all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)):
            return f"batch {number} of step {step}: {maker}"
    if not get_total_norm(p.grad for p in model.parameters() if p.grad is not None).isfinite():
        return "every gradient is finite, but their norm overflows"
    return "run once more, the same step is finite: the device does not repeat itself"


def _maker(model: Transformer, batch: Batch, scale: float) -> str:
    """What made the first NaN or infinity of a pass by autograd."""
    x, y = batch
    try:
        maker = where_nan(
            model, x, loss=lambda scores: F.cross_entropy(scores.flatten(0, 1).float(), y.flatten()) * scale
        )
    except (TraceError, RuntimeError) as error:  # a look at every value may take more memory than there is
        return f"its maker cannot be looked up ({' '.join(str(error).split())[:120]})"
    if maker is None:
        return "no operation of autograd's pass over it is seen to make one: the engine did, or the sum of gradients"
    if maker.source is None or maker.where not in ("forward", "backward"):
        return maker.told
    part = maker.module or ("the loss" if maker.source.file == __file__ else "the model")
    line = f"{Path(maker.source.file).name}:{maker.source.line}"
    return f"{maker.found} from {part}, in the {maker.where}: {maker.name} at {line}"
