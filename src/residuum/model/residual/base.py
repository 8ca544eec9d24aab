"""What every residual connection is: a module that joins the stream x and one branch."""

from __future__ import annotations

from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor, nn

from residuum.errors import InputError
from residuum.model.config import ModelConfig
from residuum.model.gradient import Saved

Stream = Float[Tensor, "batch pos d_model"]


class Parts(NamedTuple):
    """The two parts of the gradient at a residual connection. Shapes: [batch, pos, d_model]."""

    identity: Tensor
    branch: Tensor


@runtime_checkable
class Receiver(Protocol):
    """What both parts of each connection's gradient are handed to: a list, say."""

    def append(self, parts: Parts, /) -> None: ...


@runtime_checkable
class Branch(Protocol):
    """What a residual connection joins to the stream. The first thing that `explicit_forward` keeps is its input."""

    def __call__(self, x: Tensor, *args: Any) -> Tensor: ...

    def explicit_forward(self, x: Tensor, *args: Any) -> tuple[Tensor, Saved]: ...

    def explicit_backward(self, dy: Tensor, saved: Saved) -> Tensor: ...


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

    def forward(self, x: Tensor, branch: Branch, *args: Any) -> Tensor:
        raise NotImplementedError

    def explicit_forward(self, x: Tensor, branch: Branch, *args: Any) -> tuple[Tensor, Saved]:
        """y, and what `explicit_backward` needs: the branch itself is part of it."""
        raise NotImplementedError

    def explicit_backward(self, dy: Tensor, saved: Saved, parts: Receiver | None = None) -> Tensor:
        """dx, the sum of what comes back on the identity path and on the branch path; `parts` receives both."""
        raise NotImplementedError


def residual_named(name: str) -> type[Residual]:
    """The residual connection called `name`. Raises `InputError` if there is none."""
    if name not in REGISTRY:
        raise InputError(f"model.residual = '{name}' is no residual connection: choose {', '.join(sorted(REGISTRY))}")
    return REGISTRY[name]


def joined(identity: Tensor, branch: Tensor, parts: Receiver | None) -> Tensor:
    """Where the gradient's two paths meet again: dx = identity part + branch part."""
    if parts is not None:
        parts.append(Parts(identity, branch))
    return identity + branch
