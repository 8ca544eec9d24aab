"""Weights that pass through a rounding on their way to the activations: which levels are left of them?

And of the activations that they meet, where those are rounded too.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from residuum.stream import ops
from residuum.stream.block import block_in
from residuum.stream.capture import Capture, Place, name_of
from residuum.stream.errors import TraceError
from residuum.stream.node import ACTIVATION, WEIGHT, Node
from residuum.stream.spread import spread
from residuum.stream.weights import is_sharded

# Functions that leave a few values of many; a limit may then leave fewer.
TO_NEAREST = frozenset({"round", "round_"})
ROUND = TO_NEAREST | {"floor", "floor_", "ceil", "ceil_", "trunc", "trunc_", "fix", "sign", "sign_", "sgn"}

# A threshold leaves two.
COMPARE = frozenset({"gt", "ge", "lt", "le", "__gt__", "__ge__", "__lt__", "__le__", "greater", "less"})

# What autograd calls functions whose slope is 0 wherever they have one, and those that make one number of many, before
# "Backward" and a digit; functions of somebody's own, which may well be called Round, have no digit.
STOP = frozenset(
    {
        "Round", "Floor", "Ceil", "Trunc", "Sign", "Sgn",
        "Mean", "Sum", "Max", "Min", "Amax", "Amin", "Aminmax", "Median", "Kthvalue", "Norm", "LinalgVectorNorm",
        "Std", "Var", "StdMean", "VarMean",
    }
)  # fmt: skip

# The most numbers of a map that are looked at one by one: their share is known to 0.002.
SAMPLE = 65_536


class Levels(NamedTuple):
    """What is kept of a rounded weight until the run is over: numbers and a small sample, none read before the end."""

    one: Tensor  # whether all entries are one value
    ternary: Tensor  # whether −s, 0 and s are all their values
    minus: Tensor  # how many are below 0
    zero: Tensor  # how many are 0
    zero_lines: tuple[Tensor, ...]  # of a matrix, the share of rows and of columns that are all 0
    sample: Tensor  # the signs of some


class Read(NamedTuple):
    """What is kept of a rounded activation, of a sample: the shares that rounding made 0, and at the largest level."""

    lost: Tensor
    top: Tensor


class Rounded(NamedTuple):
    """A product one of whose operands is a weight that was rounded; `learns` as in `RoundedMap`.

    `read` are the levels of the activation that it meets, None if that was not rounded.
    """

    product: Node
    weight: Node
    levels: Node
    learns: bool
    read: Node | None


class LevelCapture(Capture):
    """A capture that also notes which values rounded weights have, and the products that they go into."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.levels: dict[Node, Levels] = {}
        self.reads: dict[Node, Read] = {}
        self.cuts: dict[Node, tuple[Node, str]] = {}
        self.rounded: list[Rounded] = []
        self._places: dict[Node, Place] = {}
        self._before: Tensor | None = None
        super().__init__(*args, **kwargs)

    def collapsed(self) -> list[Node]:
        """The rounded weights that hold one value only, in the order in which they were made."""
        rounded = [node for node in self.levels if node.op in ROUND | ops.CLAMP]
        return [node for node in rounded if bool(self.levels[node].one)]

    def roundings(self) -> frozenset[Place]:
        """Where the code rounds, to the nearest level, the weights of maps and what these read, and limits the levels.

        Raises `TraceError` where more is rounded than that, or otherwise, so that a pass without these places would
        not be one without rounding.
        """
        chains: set[Node] = set()
        for rounded in self.rounded:
            weights = set(self._chain(rounded.levels))
            if not weights:
                raise TraceError(f"signs or a threshold make the levels of {rounded.product.module or 'a map'}")
            chains |= weights | set(self._chain(rounded.read))
        places = frozenset(self._places[node] for node in chains)
        for node, place in self._places.items():
            strange = node.op in ROUND and node.role in (ACTIVATION, WEIGHT)
            if node not in chains and (strange or place in places):
                raise TraceError(
                    f"{node.module or 'the model'} rounds (`{node.op}` in {place[1].co_qualname}) what is not known to "
                    "be the levels of a map's weights, or of what one reads, to the nearest"
                )
        return places

    def _chain(self, levels: Node | None) -> Iterator[Node]:
        """A rounding to the nearest level and the limits that follow it; nothing where levels are made otherwise."""
        found = []
        while levels is not None and levels.op in ops.CLAMP:
            found.append(levels)
            levels = self._behind(levels.inputs[0])
        if levels is not None and levels.op in TO_NEAREST:
            yield from (*found, levels)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        rounds = name_of(func) in ROUND and args and isinstance(args[0], Tensor)
        node = self.node_of(args[0]) if rounds else None
        if node is not None and node.role == ACTIVATION and _has_numbers(args[0]):
            self._before = _sample(args[0].detach()) == 0
        try:
            return super().__torch_function__(func, types, args, kwargs)
        finally:
            self._before = None

    def _record(self, op: str, inputs: tuple[Node, ...], role: str, value: Tensor) -> Node:
        node = super()._record(op, inputs, role, value)
        if op in ROUND | ops.CLAMP:
            self._places[node] = self.place
        if role == WEIGHT and op in ops.VIEW | ops.PART and not is_sharded(value):
            self._note_cut(node, value)
        if role == WEIGHT and self._has_levels(node) and value.numel() > 1 and _has_numbers(value):
            self.levels[node] = _levels(value.detach())
        elif role == ACTIVATION and op in ROUND | ops.CLAMP and _has_numbers(value):
            self._note_read(node, value.detach())
        elif role == ACTIVATION and op in ops.MATMUL and self.levels:
            for weight in inputs:
                if weight.role == WEIGHT and len(weight.shape) > 1 and (levels := self._behind(weight)) is not None:
                    learns = not torch.is_grad_enabled() or _passes(weight)
                    self.rounded.append(Rounded(node, weight, levels, learns, self._read_by(node)))
        return node

    def _note_read(self, node: Node, value: Tensor) -> None:
        """Rounded activations; a limit that follows may lower the largest level."""
        if node.op in ROUND and self._before is not None:
            lost = ((_sample(value) == 0) & ~self._before).float().mean()
            self.reads[node] = Read(lost, _top(value))
        elif node.op in ops.CLAMP and self.reads and (rounded := self._behind(node.inputs[0])) is not None:
            self.reads[node] = Read(self.reads[rounded].lost, _top(value))

    def _read_by(self, product: Node) -> Node | None:
        """The levels of the activation that goes into a product."""
        found = (self._behind(each) for each in product.activations) if self.reads else iter(())
        return next((each for each in found if each is not None), None)

    def _note_cut(self, node: Node, value: Tensor) -> None:
        whole = value._base
        made = None if whole is None else self.node_of(whole)
        block = None if whole is None else block_in(value, whole)
        if made is not None and block is not None:
            self.cuts[node] = (made, block)

    def _has_levels(self, node: Node) -> bool:
        """What rounds has, and so has what limits, multiplies or adds nothing but what has."""
        if node.op in ROUND | COMPARE:
            return True
        whole = _whole(node)
        joins = (node.op in ops.MULTIPLY | ops.ADD and len(whole) > 1) or node.op in ops.CLAMP
        return joins and bool(self.levels) and all(self._behind(each) is not None for each in whole)

    def _behind(self, node: Node) -> Node | None:
        """The levels that a weight or an activation is, but for its scales and a straight-through estimator."""
        node = _unviewed(node)
        if node in self.levels or node in self.reads:
            return node
        if node.op in ops.MULTIPLY:
            whole = _whole(node)
            return self._behind(whole[0]) if len(whole) == 1 else None
        if node.op in ops.ADD:
            left = self._left(node)
            return self._behind(left) if left is not None and left is not node else None
        return None

    def _left(self, node: Node) -> Node | None:
        """The one addend that is left of w + (q − w), in whatever order; None where several are."""
        terms: dict[Node, int] = {}
        pending = [(node, 1)]
        while pending:
            each, sign = pending.pop()
            each = _unviewed(each)
            opens = each.op in ops.ADD and len(each.inputs) == 2 and each.connection is None
            if opens and each not in self.levels:
                one, other = each.inputs if each.op != "__rsub__" else each.inputs[::-1]
                pending += [(one, sign), (other, sign if each.op in ops.SUM else -sign)]
            else:
                each = next((term for term in terms if _equal(term, each)), each)
                terms[each] = terms.get(each, 0) + sign
        left = [each for each, count in terms.items() if count]
        return left[0] if len(left) == 1 and terms[left[0]] == 1 else None


def _levels(value: Tensor) -> Levels:
    if value.dtype == torch.bool:
        value = value.to(torch.int8)
    least, largest = value.aminmax()
    zero, size = value == 0, value.abs()
    ternary = (zero | (size == torch.maximum(largest, -least))).all()
    lines = tuple((size.amax(dim) == 0).float().mean() for dim in (1, 0)) if value.ndim == 2 else ()
    sample = _sample(value).sign().to(torch.int8)
    return Levels(least == largest, ternary, (value < 0).sum(), zero.sum(), lines, sample)


def _top(value: Tensor) -> Tensor:
    """The share at the largest level; of eight bits' levels, −128 to 127, both ends are that."""
    least, largest = (end.float() for end in value.aminmax())
    sample = _sample(value).float()
    ends = (sample.abs() == torch.maximum(largest, -least)) | ((sample == largest) & (largest + least == -1))
    return ends.float().mean() + 0 * largest  # NaN where there is one


def _sample(value: Tensor) -> Tensor:
    return value.flatten().index_select(0, _spread(value.numel(), value.device))  # a quarter of what `[...]` takes


@lru_cache(maxsize=16)
def _spread(count: int, device: torch.device) -> Tensor:
    return spread(count, SAMPLE, device)


def _has_numbers(value: Tensor) -> bool:
    """Whether there are any, one after another, that can be compared."""
    odd = value.is_meta or is_sharded(value) or value.is_complex() or value.is_nested
    return not odd and value.layout == torch.strided and value.numel() > 0


def _equal(one: Node, other: Node) -> bool:
    """The same node, or the same product computed twice."""
    one, other = _unviewed(one), _unviewed(other)
    if one is other:
        return True
    alike = (one.op, one.factor, len(one.inputs)) == (other.op, other.factor, len(other.inputs))
    return alike and one.op in ops.MULTIPLY and all(map(_equal, one.inputs, other.inputs))


def _whole(node: Node) -> list[Node]:
    """The operands of a node's own size: all but scales and shifts."""
    return [each for each in node.inputs if each.shape.numel() == node.shape.numel()]


def _unviewed(node: Node) -> Node:
    while node.op in ops.VIEW and node.inputs:
        node = node.inputs[0]
    return node


def _passes(weight: Node) -> bool:
    """Whether a gradient comes from a rounded weight to a parameter entry by entry, past the rounding.

    What comes through its scale alone, one number for all, teaches no entry.
    """
    if weight.edge is None:
        return False
    size = weight.shape.numel()
    pending, seen = [weight.edge.node], set()
    while pending:
        grad_node = pending.pop()
        name, _, digit = grad_node.name().partition("Backward")
        if grad_node in seen or (digit and name in STOP):
            continue
        seen.add(grad_node)
        variable = getattr(grad_node, "variable", None)
        if name in ("Cat", "Stack") or (variable is not None and variable.numel() >= size):
            return True
        pending += [each for each, _ in grad_node.next_functions if each is not None]
    return False
