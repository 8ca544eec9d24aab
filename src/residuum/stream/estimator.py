"""The gradient that roundings let pass, against the gradient without them: the straight-through estimator, judged."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from residuum.stream import ops
from residuum.stream.block import part_of
from residuum.stream.capture import Capture, Place, name_of
from residuum.stream.errors import TraceError
from residuum.stream.levels import TO_NEAREST
from residuum.stream.rounded import RoundedMap
from residuum.stream.untouched import untouched


def estimator_cosines(
    model: nn.Module, loss: Callable[[], Tensor], maps: Sequence[RoundedMap], roundings: Iterable[Place]
) -> list[float | None]:
    """Of each map the cosine between dL/dW as its rounding passes it on and dL/dW with nothing rounded.

    `loss` runs the model and returns a scalar; it is called twice, from the same random state, and differentiated. The
    second time all `roundings` (`LevelCapture.roundings`) hand on what they are given. The model is left as it was
    found, `.grad` included, and no hook of a parameter's is called. 1 where rounding leaves the gradient's direction as
    it is; None where either gradient is zero or absent, or which block of a parameter the map has cannot be told.
    Raises `TraceError` where the loss is no scalar with a gradient.
    """
    names = {name for each in maps for name in each.parameters}
    wanted = {name: p for name, p in model.named_parameters() if name in names and p.requires_grad}
    if not wanted:
        return [None] * len(maps)
    rounded = _gradients(model, loss, wanted, nullcontext())
    true = _gradients(model, loss, wanted, _Unrounded(model, roundings))
    return [_cosine(each, rounded, true) for each in maps]


class _Unrounded(Capture):
    """While open, what is rounded or limited in some places of the user's code stays what it is."""

    def __init__(self, model: nn.Module, places: Iterable[Place]) -> None:
        super().__init__(model)
        self._places = frozenset(places)
        self._anywhere = frozenset(("", *there) for _, *there in self._places)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        op = name_of(func)
        # What a checkpoint runs once more, no module runs.
        if op in TO_NEAREST | ops.CLAMP and self.place in (self._places if self._running else self._anywhere):
            value, out = args[0] if args else kwargs["input"], (kwargs or {}).get("out")
            if out is not None:
                return out.copy_(value)
            return value if op.endswith("_") else value.clone()  # or what is written into it is written into W
        return super().__torch_function__(func, types, args, kwargs)


def _gradients(
    model: nn.Module, loss: Callable[[], Tensor], wanted: dict[str, nn.Parameter], mode: AbstractContextManager[Any]
) -> dict[str, Tensor | None]:
    # Edges in the place of tensors, or PyTorch would ask the mode about the backward pass and run that outside it:
    # a checkpoint runs forward there once more.
    edges = [get_gradient_edge(parameter) for parameter in wanted.values()]
    with untouched(model), _deaf(wanted.values()), torch.enable_grad(), mode:
        value = loss()
        if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
            raise TraceError(
                f"rerun's loss returned {type(value).__name__}: return a tensor of one number to go back from"
            )
        gradients = torch.autograd.grad(get_gradient_edge(value), edges, allow_unused=True)
    return dict(zip(wanted, gradients, strict=True))


@contextmanager
def _deaf(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Call none of their hooks, which may well add what they hear to a gradient of their own."""
    kept = [(hooks, dict(hooks)) for p in parameters if (hooks := p._backward_hooks)]
    for hooks, _ in kept:
        hooks.clear()
    try:
        yield
    finally:
        for hooks, before in kept:
            hooks.update(before)


def _cosine(each: RoundedMap, *gradients: dict[str, Tensor | None]) -> float | None:
    one, other = (_gradient(each, found) for found in gradients)
    if one is None or other is None:
        return None
    norms = float(one.norm() * other.norm())
    return float(one @ other) / norms if norms else None


def _gradient(each: RoundedMap, found: dict[str, Tensor | None]) -> Tensor | None:
    parts = [found.get(name) for name in each.parameters]
    if each.block is None or any(part is None for part in parts):
        return None
    return torch.cat([part_of(part, each.block).detach().double().flatten() for part in parts if part is not None])
