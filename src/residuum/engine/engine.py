"""What an engine is. PyTorch is not loaded here, so that the scalar engine can be read and run without it."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Protocol

from residuum.errors import InputError

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

    from residuum.model import ModelConfig, Transformer

    Batch = tuple[Int[Tensor, "batch pos"], Int[Tensor, "batch pos"]]

ENGINES = {"autograd": "autograd:Autograd", "explicit": "explicit:Explicit", "scalar": "scalar.engine:Scalar"}
"""Where in this room each one's class stands."""


class Engine(Protocol):
    """A way to a loss and its gradients."""

    def check(self, config: ModelConfig) -> None:
        """Raises `InputError`, naming the field, for a configuration that this engine cannot run."""

    def loss_and_grads(self, model: Transformer, batch: Batch, scale: float = 1.0) -> Float[Tensor, ""]:
        """The loss of `batch` = (tokens, targets) as `Transformer.loss` defines it, in nats per token.

        `scale` times its gradient is added to every parameter's `.grad`; the loss comes back unscaled.
        """


def make_engine(name: str, keep: str = "everything", compiled: bool = False) -> Engine:
    """The engine called `name`. Raises `InputError` if there is none.

    `keep` is what the explicit engine keeps of the forward pass for its backward, `compiled` whether its pass becomes
    one graph; no other engine has these choices.
    """
    if name not in tuple(ENGINES):  # a file may give what cannot even be looked up
        raise InputError(f"engine = {name!r} is no engine: choose {', '.join(ENGINES)}")
    for field, given in (("run.keep", keep != "everything"), ("run.compile", compiled)):
        if given and name != "explicit":
            raise InputError(f"{field} is the explicit engine's: set engine to explicit, or leave {field} away")
    module, kind = ENGINES[name].split(":")
    engine = getattr(import_module(f"residuum.engine.{module}"), kind)  # PyTorch loads here
    return engine(keep, compiled=compiled) if name == "explicit" else engine()
