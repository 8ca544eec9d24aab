"""The calls that add: what their addends are, as nodes and as values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from residuum.stream import ops
from residuum.stream.node import Node


@dataclass(frozen=True, slots=True)
class Addend:
    """One addend of a call: a tensor, or a product that exists only inside the call, made by `op` from `parts`.

    `node` is given where the tensor is a view made here, of something recorded before.
    """

    value: Callable[[], Tensor]
    parts: tuple[Tensor, ...]
    shape: torch.Size
    op: str = ""
    node: Node | None = None


@dataclass(frozen=True, slots=True)
class Sum:
    """A call that adds. `partial`: the second addend goes to some rows of the first only."""

    addends: tuple[Addend, ...]
    partial: bool = False


def addends_of(op: str, args: Any, kwargs: Any, node_of: Callable[[Tensor], Node | None]) -> Sum | None:
    """What the call adds, or None if it adds no tensors."""
    first = args[0] if args else kwargs.get("input")
    if not isinstance(first, Tensor):
        return None
    if op in ops.SUM or op in ops.LERP:
        second = args[1] if len(args) > 1 else kwargs.get("other", kwargs.get("end"))
        if not isinstance(second, Tensor):
            return None
        if op in ops.LERP:
            weight = args[2] if len(args) > 2 else kwargs["weight"]
            return Sum((_tensor(first, lambda: 1 - weight), _tensor(second, lambda: weight)))
        return Sum((_tensor(first), _tensor(second, _times(kwargs.get("alpha")))))
    if op in ops.FUSED_SUM:
        parts = tuple(value for value in (*args[1:], *kwargs.values()) if isinstance(value, Tensor))[:2]
        factor = kwargs.get("value", kwargs.get("alpha"))
        return Sum((_tensor(first), _product(ops.FUSED_SUM[op], parts, _times(factor)))) if len(parts) == 2 else None
    if op in ops.PARTIAL_SUM:
        position, name = ops.PARTIAL_SUM[op]
        second = args[position] if len(args) > position else kwargs.get(name)
        adds = not op.startswith("index_put") or (args[3] if len(args) > 3 else kwargs.get("accumulate", False))
        return Sum((_tensor(first), _tensor(second)), partial=True) if adds and isinstance(second, Tensor) else None
    if op in ops.REDUCE:
        return _stacked(op, first, args, kwargs, node_of)
    if ops.is_fused_add_norm(op):
        alike = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        alike = [value for value in alike if value.shape == first.shape][:2]
        return Sum(tuple(_tensor(value) for value in alike)) if len(alike) == 2 else None
    return None


Factor = Callable[[], Any] | None


def _times(factor: Any) -> Factor:
    return None if factor in (None, 1) else lambda: factor


def _tensor(value: Tensor, factor: Factor = None) -> Addend:
    return Addend(lambda: value if factor is None else value * factor(), (value,), value.shape)


def _product(op: str, parts: tuple[Tensor, ...], factor: Factor) -> Addend:
    a, b = parts
    shape = (
        torch.broadcast_shapes(a.shape, b.shape) if op != "matmul" else (*a.shape[:-1], *b.shape[-1:] * (b.ndim > 1))
    )

    def value() -> Tensor:
        product = a @ b if op == "matmul" else a * b if op == "mul" else a / b
        return product if factor is None else product * factor()

    return Addend(value, parts, torch.Size(shape), op)


def _stacked(op: str, value: Tensor, args: Any, kwargs: Any, node_of: Callable[[Tensor], Node | None]) -> Sum | None:
    """`torch.stack(values, dim).sum(dim)`: the values are the addends."""
    node = node_of(value)
    if node is None or node.op != "stack":
        return None
    dim = args[1] if len(args) > 1 else kwargs.get("dim", kwargs.get("axis"))
    if isinstance(dim, (tuple, list)) and len(dim) == 1:
        dim = dim[0]
    if not isinstance(dim, int) or value.shape[dim] != len(node.inputs):
        return None
    if tuple(node.inputs[0].shape) != (*value.shape[:dim], *value.shape[dim % value.ndim + 1 :]):
        return None
    share = 1 / len(node.inputs) if op == "mean" else 1
    values = (partial(_part, value, dim, i, share) for i in range(len(node.inputs)))
    return Sum(tuple(Addend(part, (), each.shape, node=each) for part, each in zip(values, node.inputs, strict=True)))


def _part(value: Tensor, dim: int, index: int, share: float) -> Tensor:
    return value.select(dim, index) if share == 1 else value.select(dim, index) * share
