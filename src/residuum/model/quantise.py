"""Numbers as a few levels: weights as −1, 0, 1 and activations as eight bits, each with the size of one level."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from residuum.model.precision import at_least_float32

LEVELS = 127
"""An activation's largest level."""

LEAST = 1e-5
"""What a size is taken for where all numbers are smaller."""

_UNROUNDED: list[bool] = []


def ternary(weight: Float[Tensor, "d_out d_in"]) -> tuple[Float[Tensor, "d_out d_in"], Float[Tensor, ""]]:
    """W ≈ levels · step, step = mean|W| of the whole matrix, levels = round(W / step) cut off at −1 and 1.

    To the gradient, levels are W / step (`straight_through`). Source: Ma et al. 2024, https://arxiv.org/abs/2402.17764.
    """
    with torch.no_grad():
        wide = at_least_float32(weight)
        step = wide.abs().mean().clamp_(min=LEAST)
        levels = (wide * (1 / step)).round_().clamp_(-1, 1)  # as others compute it: a half may round either way
    return straight_through(weight, levels, step)


def eight_bits(x: Float[Tensor, "*rows d_in"]) -> tuple[Float[Tensor, "*rows d_in"], Float[Tensor, "*rows 1"]]:
    """x ≈ levels · step, step = max|x| / 127 of each row, levels = round(x / step), from −127 to 127.

    To the gradient, levels are x / step (`straight_through`). Levels are whole numbers in a floating-point type: a
    product of them with `ternary`'s is exact in float32 up to rows of 2²⁴ / 127. Source: as `ternary`.
    """
    with torch.no_grad():
        wide = at_least_float32(x)
        largest = torch.maximum(wide.amax(-1, keepdim=True), wide.amin(-1, keepdim=True).neg_())  # half of abs's cost
        per_unit = LEVELS / largest.clamp_(min=LEAST)
        levels = (wide * per_unit).round_()
    return straight_through(x, levels, largest.div_(LEVELS))


def straight_through(x: Tensor, levels: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
    """`levels`, which are x / step rounded, with the gradient of x / step at a constant step; and `step`.

    Rounding has slope 0, and a weight that only ever felt 0 would not learn: the gradient passes it as if it were not
    there. Source: Bengio, Léonard, Courville 2013, https://arxiv.org/abs/1308.3432.
    """
    if _UNROUNDED:
        return x / step, step
    if not torch.is_grad_enabled():
        return levels, step
    return _StraightThrough.apply(x, levels, step), step


@contextmanager
def unrounded() -> Iterator[None]:
    """While open nothing is rounded: a ternary map computes with its weights as they are."""
    _UNROUNDED.append(True)
    try:
        yield
    finally:
        _UNROUNDED.pop()


class _StraightThrough(torch.autograd.Function):
    """The same without a second walk over all numbers."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, levels: Tensor, step: Tensor) -> Tensor:
        ctx.save_for_backward(step)
        ctx.kind = x.dtype
        return levels.view_as(levels)  # autograd would take `levels` itself for an input handed through

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dlevels: Tensor) -> tuple[Tensor, None, None]:
        (step,) = ctx.saved_tensors
        return (dlevels / step).to(ctx.kind), None, None
