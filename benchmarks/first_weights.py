"""The stream and its gradient at every connection's first weights, 24 layers deep: the gallery's pictures.

usage: python benchmarks/first_weights.py
"""

from __future__ import annotations

from typing import Any

import torch

import harness
from residuum.model import ModelConfig, Transformer
from residuum.model.residual import REGISTRY
from residuum.study.training import look

SHAPE = {"vocab_size": 256, "context": 64, "d_model": 64, "n_layers": 24, "n_heads": 4}


def main() -> None:
    torch.manual_seed(0)
    tokens = torch.randint(SHAPE["vocab_size"], (2, 4, SHAPE["context"]))
    harness.save(
        "first_weights", {"shape": SHAPE, "connections": {name: seen(name, tokens) for name in sorted(REGISTRY)}}
    )


def seen(name: str, tokens: torch.Tensor) -> dict[str, Any]:
    torch.manual_seed(0)
    found = look(Transformer(ModelConfig(**SHAPE, residual=name)).eval(), (tokens[0], tokens[1]))
    return {key: [x and float(f"{x:.4g}") for x in found[key]] for key in ("state_variance", "state_gradient")}


if __name__ == "__main__":
    main()
