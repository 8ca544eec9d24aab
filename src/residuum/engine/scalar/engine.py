"""The scalar engine behind the protocol of the others: the one file here that knows PyTorch."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from residuum.engine.scalar.collector import collector_paused
from residuum.engine.scalar.gpt import ACTIVATIONS, GPT, Parameters, Shape
from residuum.engine.scalar.value import Value
from residuum.errors import InputError
from residuum.model import ModelConfig, Transformer

if TYPE_CHECKING:
    from residuum.engine.engine import Batch

ANY = ("vocab_size", "context", "d_model", "n_layers", "n_heads", "n_kv_heads", "d_ff", "norm_eps")
"""Fields of `ModelConfig` that may hold whatever they can hold."""
NO_MATTER = (
    "init_std", "branch_init", "rotary_base", "residual_scale", "residual_drop", "residual_streams",
    "experts_per_token", "balance", "sub_norm",
)  # fmt: skip
"""Fields that change nothing here: weights are read from the model, what they are about is refused."""
ONLY: dict[str, tuple[Any, ...]] = {
    "activation": tuple(ACTIVATIONS),
    "linear": ("float",),
    "n_experts": (1,),
    "norm": ("rmsnorm",),
    "positions": ("learned",),
    "embedding_norm": (False,),
    "residual": ("pre", "post", "none"),
    "causal": (True,),
    "head": ("tied", "untied"),
    "bias": (False,),
    "dropout": (0.0,),
}
"""Fields, and all that they may hold."""


class Scalar:
    """The same model in plain Python: slow, exact (its numbers are float64), and readable down to every product."""

    def check(self, config: ModelConfig) -> None:
        """A field that stands in none of the lists above is new here, and may only be at its default."""
        for field in dataclasses.fields(config):
            value, allowed = getattr(config, field.name), ONLY.get(field.name, (field.default,))
            if field.name not in ANY + NO_MATTER and value not in allowed:
                shown = f"'{value}'" if isinstance(value, str) else _as_toml(value)
                raise InputError(
                    f"engine = 'scalar' has no model.{field.name} = {shown}: "
                    f"set model.{field.name} to {' or '.join(map(_as_toml, allowed))}"
                )

    @collector_paused()
    def loss_and_grads(self, model: Transformer, batch: Batch, scale: float = 1.0) -> Float[Tensor, ""]:
        """The loss of (tokens, targets); `scale` times its gradient is added to every parameter's `.grad`."""
        self.check(model.config)
        shape = Shape(**{field.name: getattr(model.config, field.name) for field in dataclasses.fields(Shape)})
        tensors = dict(model.named_parameters())
        parameters: Parameters = {name: _as_values(tensor.tolist()) for name, tensor in tensors.items()}
        tokens, targets = batch
        loss = GPT(shape, parameters).loss(tokens.tolist(), targets.tolist())
        loss.backward(scale)
        for name, tensor in tensors.items():
            if tensor.requires_grad:
                grad = tensor.new_tensor(_grads(parameters[name]))
                tensor.grad = grad if tensor.grad is None else tensor.grad.add_(grad)
        weight = model.embedding.weight
        return weight.new_tensor(loss.data, dtype=torch.promote_types(weight.dtype, torch.float32))


def _as_values(numbers: Any) -> Any:
    return [_as_values(inner) for inner in numbers] if isinstance(numbers, list) else Value(numbers)


def _grads(values: Any) -> Any:
    return [_grads(inner) for inner in values] if isinstance(values, list) else values.grad


def _as_toml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
