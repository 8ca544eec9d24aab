"""AdamW, with decay on matrices only."""

from __future__ import annotations

import torch
from torch import nn

from residuum.train.recipe import OptimConfig


def make_optimizer(model: nn.Module, config: OptimConfig, device: torch.device) -> torch.optim.AdamW:
    """θ ← θ − lr (m̂ / (√v̂ + ε) + λ θ), with λ = 0 for vectors: pulling a gain to 0 silences it.

    Source: Loshchilov, Hutter 2017, https://arxiv.org/abs/1711.05101.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    betas = (config.beta1, config.beta2)
    return torch.optim.AdamW(groups, lr=config.lr, betas=betas, fused=device.type in ("cpu", "cuda"))
