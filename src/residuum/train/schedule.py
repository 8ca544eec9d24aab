"""The learning rate at every step."""

from __future__ import annotations

import math

from residuum.train.recipe import OptimConfig


def learning_rate(step: int, steps: int, config: OptimConfig) -> float:
    """Rise linearly to `lr` over `warmup` steps, then decay to `min_lr` at the last of `steps`; step counts from 0."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    if config.decay == "constant":
        return config.lr
    done = (step - config.warmup) / max(steps - 1 - config.warmup, 1)
    left = 0.5 * (1 + math.cos(math.pi * done)) if config.decay == "cosine" else 1 - done
    return config.min_lr + (config.lr - config.min_lr) * left
