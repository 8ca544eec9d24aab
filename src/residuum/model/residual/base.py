"""What every residual connection is: a module that joins the stream x and one branch."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from torch import Tensor, nn

from residuum.errors import InputError
from residuum.model.config import ModelConfig

REGISTRY: dict[str, type[Residual]] = {}


class Residual(nn.Module):
    """y = connect(x, branch). A subclass holds its own norms and scales and is chosen by `name`.

    `forward(x, branch, *args)` calls `branch(input, *args)` once. `final_norm` says whether the stream still needs a
    norm after the last block. Shapes: x and y [batch, pos, d_model].
    """

    name: ClassVar[str]
    final_norm: ClassVar[bool]

    def __init__(self, config: ModelConfig, layer: int) -> None:  # noqa: ARG002 - for subclasses that need them
        super().__init__()

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        REGISTRY[cls.name] = cls

    def forward(self, x: Tensor, branch: Callable[..., Tensor], *args: object) -> Tensor:
        raise NotImplementedError


def residual_named(name: str) -> type[Residual]:
    """The residual connection called `name`. Raises `InputError` if there is none."""
    if name not in REGISTRY:
        raise InputError(f"model.residual = '{name}' is no residual connection: choose {', '.join(sorted(REGISTRY))}")
    return REGISTRY[name]
