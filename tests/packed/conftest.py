"""Ternary models that look trained, and their packed twins."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from residuum.model import ModelConfig, Transformer

Make = Callable[..., Transformer]

SHAPE: dict[str, Any] = {"vocab_size": 31, "context": 40, "d_model": 36, "n_layers": 2, "n_heads": 3}


@pytest.fixture
def make() -> Make:
    """A ternary model whose gains are not 1; every width is one that padding has to fill."""

    def model(seed: int = 0, **settings: Any) -> Transformer:
        torch.manual_seed(seed)
        one = Transformer(ModelConfig(**{**SHAPE, "linear": "ternary", "init_std": 0.2, **settings})).eval()
        with torch.no_grad():
            for parameter in one.parameters():
                if parameter.ndim == 1:
                    parameter.mul_(1 + 0.2 * torch.randn_like(parameter))
        return one

    return model


@pytest.fixture
def text() -> list[int]:
    """As many tokens as the context has room for."""
    return np.random.default_rng(0).integers(0, SHAPE["vocab_size"], SHAPE["context"]).tolist()


@pytest.fixture(scope="session")
def trained() -> Transformer:
    """A model that continues a, a + s, a + 2 s, … (modulo 31), and is sure of it."""
    torch.manual_seed(0)
    model = Transformer(ModelConfig(**{**SHAPE, "linear": "ternary", "norm": "rmsnorm", "positions": "rotary"}))
    optimizer = torch.optim.AdamW(model.parameters())
    for step in range(150):
        start, stride = torch.randint(31, (16, 1)), torch.randint(1, 3, (16, 1))
        tokens = (start + stride * torch.arange(21)) % 31
        optimizer.param_groups[0]["lr"] = 1e-2 * (1 - step / 150)
        optimizer.zero_grad()
        model.loss(tokens[:, :-1], tokens[:, 1:]).backward()
        optimizer.step()
    return model.eval()
