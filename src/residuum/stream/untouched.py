"""Leave a user's model, and chance, exactly as they were found."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Put back, on the way out, the buffers (BatchNorm's statistics, say) and the random generators' states."""
    before = [
        (module, name, buffer, buffer.detach().clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None and not buffer.is_meta
    ]
    devices = sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})
    try:
        with same_chance(devices):
            yield
    finally:
        with torch.no_grad():
            for module, name, buffer, value in before:
                module._buffers[name] = buffer
                if not torch.equal(buffer, value):  # BatchNorm's kernel changes them without telling their version
                    buffer.copy_(value)


@contextmanager
def same_chance(devices: Iterable[int] = ()) -> Iterator[None]:
    """Put back, on the way out, the random states of PyTorch (on the CPU and `devices`), Python and NumPy."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=list(devices)):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
