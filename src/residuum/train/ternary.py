"""What ternary maps do while they train: levels, how many flip, whether the gradient is true, what rounding loses."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial

import torch
from jaxtyping import Int
from torch import Tensor, nn

from residuum.engine import Engine
from residuum.model import ModelConfig, Transformer
from residuum.model.linear import BitLinear
from residuum.model.quantise import LEVELS, eight_bits, ternary, unrounded
from residuum.train.batches import Batch

FLIPS_OVER = 100
"""Steps between two looks at which weights have another level."""


def bit_maps(model: nn.Module) -> dict[str, BitLinear]:
    """The ternary maps of a model, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, BitLinear)}


def sizes(config: ModelConfig) -> dict[str, int]:
    """How many weights each ternary map of such a model has."""
    with torch.device("meta"):
        return {name: module.weight.numel() for name, module in bit_maps(Transformer(config)).items()}


def levels(module: BitLinear) -> Tensor:
    """−1, 0 or 1 for every weight, in eight bits."""
    with torch.no_grad():
        return ternary(module.weight)[0].to(torch.int8)


def shares(model: nn.Module) -> dict[str, list[float]]:
    """Of each ternary map the share of −1, of 0 and of 1 among its weights."""
    return {
        name: [(level == value).float().mean().item() for value in (-1, 0, 1)]
        for name, level in ((name, levels(module)) for name, module in bit_maps(model).items())
    }


class Flips:
    """Of each ternary map the share of weights whose level is not what it was `FLIPS_OVER` steps before."""

    def __init__(self, model: nn.Module) -> None:
        self.maps = bit_maps(model)
        self.before: dict[str, Tensor] = {}

    def at(self, step: int) -> dict[str, float] | None:
        """To be called at every step, `step` being those done. None where there is nothing to say.

        A run that goes on from a checkpoint between two looks has no earlier one: it says nothing at the next.
        """
        if not self.maps or step % FLIPS_OVER:
            return None
        now = {name: levels(module) for name, module in self.maps.items()}
        before, self.before = self.before, now
        return {name: (now[name] != before[name]).float().mean().item() for name in now} if before else None


def estimator_cosine(engine: Engine, model: Transformer, batch: Batch) -> dict[str, float]:
    """Of each ternary map the cosine between dL/dW by straight-through estimation and dL/dW without any rounding.

    Both at the same weights and the same batch; 1 where rounding leaves the gradient's direction as it is. The model's
    gradients are left as they were found.
    """
    maps = bit_maps(model)
    found: list[list[Tensor]] = []
    kept = {parameter: parameter.grad for parameter in model.parameters()}
    try:
        for rounding in (nullcontext(), unrounded()):
            for parameter in kept:
                parameter.grad = None
            with torch.random.fork_rng(), rounding:
                torch.manual_seed(0)  # dropout draws the same twice
                engine.loss_and_grads(model, batch)
            found.append([_gradient(module) for module in maps.values()])
    finally:
        for parameter, gradient in kept.items():
            parameter.grad = gradient
    return {
        name: torch.nn.functional.cosine_similarity(ours.flatten(), true.flatten(), 0).item()
        for name, ours, true in zip(maps, *found, strict=True)
    }


@torch.no_grad()
def activation_levels(model: Transformer, tokens: Int[Tensor, "batch pos"]) -> dict[str, list[float]]:
    """Of each ternary map the share of what it reads that eight bits round to 0, and the share at the largest level.

    What is 0 anyway, behind a relu say, is not counted as rounded. Nothing is ever cut off: the largest level is the
    largest entry of a row itself, so that every row has one. An expert that read nothing is left out.
    """
    found: dict[str, list[float]] = {}

    def look(module: BitLinear, args: tuple[Tensor], name: str) -> None:
        (x,) = args
        if x.numel():
            levels, _ = eight_bits(x if module.norm is None else module.norm(x))
            lost, top = (levels == 0) & (x != 0), levels.abs() == LEVELS
            found[name] = [each.float().mean().item() for each in (lost, top)]

    handles = [module.register_forward_pre_hook(partial(look, name=name)) for name, module in bit_maps(model).items()]
    was_training = model.training
    try:
        model.eval()(tokens)
    finally:
        model.train(was_training)
        for handle in handles:
            handle.remove()
    return found


def _gradient(module: BitLinear) -> Tensor:
    gradient = module.weight.grad
    return torch.zeros_like(module.weight) if gradient is None else gradient
