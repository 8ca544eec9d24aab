"""Run a model once and record each tensor function it calls as a node, whatever the model is made of."""

from __future__ import annotations

import dataclasses
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode

from residuum.stream import ops
from residuum.stream.connection import find_fork
from residuum.stream.node import ACTIVATION, CONSTANT, WEIGHT, Connection, Node, Source

_TORCH = str(Path(torch.__file__).parent)
_TORCH_LAYERS = str(Path(torch.__file__).parent / "nn" / "modules")

# Called at a connection with the skip's and the write's value; what it returns is called with the sum and its node.
Watch = Callable[[Tensor, Tensor], Callable[[Tensor, Node], None]]


class Capture(TorchFunctionMode):
    """Record every tensor function called inside a `with` block, and find the residual connections as they happen.

    `watch` is how values are measured while they are there: capture itself keeps no tensor alive. `hidden` counts the
    tensors that came from functions out of sight, such as compiled ones.
    """

    def __init__(self, model: nn.Module, watch: Watch | None = None, edges: bool = False) -> None:
        super().__init__()
        self.nodes: list[Node] = []
        self.hidden = 0
        self._watch = watch
        self._edges = edges
        self._known: dict[int, tuple[weakref.ref[Tensor], Node]] = {}
        self._names = {id(module): name for name, module in model.named_modules()}
        self._running: list[str] = []
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []
        for parameter in model.parameters():
            self._record("parameter", (), WEIGHT, parameter)

    def feed(self, values: Iterable[Tensor]) -> None:
        """Mark the model's inputs: what is computed from them is an activation."""
        for value in values:
            self._record("input", (), ACTIVATION, value)

    def tables(self, inputs: Iterable[Tensor]) -> list[tuple[Tensor, int]]:
        """The inputs that were looked up in a table, each with its number of rows: the tokens and their vocabulary."""
        fed = [node for node in self.nodes if node.op == "input"]
        return [
            (value, table.shape[0])
            for value, node in zip(inputs, fed, strict=True)
            for lookup in self.nodes
            if lookup.op in ops.LOOKUP and node in lookup.inputs
            for table in lookup.inputs
            if table.role == WEIGHT and len(table.shape) == 2
        ]

    def node_of(self, value: Tensor) -> Node | None:
        """The node that made `value` what it is now, or None if no recorded function did."""
        reference, node = self._known.get(id(value), (None, None))
        return node if reference is not None and reference() is value else None

    def __enter__(self) -> Capture:
        # Global hooks see every module without touching one; modules of other models are not in `_names`.
        self._hooks = [
            register_module_forward_pre_hook(self._enter_module),
            register_module_forward_hook(self._leave_module, always_call=True),
        ]
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for hook in self._hooks:
            hook.remove()

    def _enter_module(self, module: nn.Module, _args: Any) -> None:
        if id(module) in self._names:
            self._running.append(self._names[id(module)])

    def _leave_module(self, module: nn.Module, _args: Any, _output: Any) -> None:
        if id(module) in self._names and self._running:
            self._running.pop()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        op = getattr(func, "__name__", "").partition(".")[0]  # an exported program calls `add.Tensor`
        if op == "__get__":  # an attribute such as `weight.T`
            op = getattr(getattr(func, "__self__", None), "__name__", op)
        found = self._look_at_sum(args, kwargs) if op in ops.SUM or op in ops.LERP else None
        measured = self._watch(*found.values) if found is not None and self._watch is not None else None
        result = func(*args, **kwargs)
        outputs = args[0] if op == "__setitem__" else result
        if not isinstance(outputs, (Tensor, tuple, list)):
            return result
        operands = list(tensors_in((args, kwargs)))
        inputs = tuple(self._look_up(value) for value in operands)
        overwrites = ops.writes_in_place(op) or bool(kwargs.get("inplace")) or "out" in kwargs
        handed_in = set() if overwrites else {id(value) for value in operands}
        for value in tensors_in(outputs):
            if id(value) in handed_in:  # `x.contiguous()` of what is contiguous: no new value
                continue
            node = self._record(op, inputs, _role(op, inputs), value)
            if found is not None:
                node.connection = Connection(node, *found.operands, _calling_line(), found.projected)
            if overwrites and value._base is not None:
                self._known[id(value._base)] = (weakref.ref(value._base), node)
            if measured is not None:
                measured(value, node)
        return result

    def _look_at_sum(self, args: Any, kwargs: Any) -> _Found | None:
        first = args[0] if args else kwargs.get("input")
        second = args[1] if len(args) > 1 else kwargs.get("other", kwargs.get("end"))
        if not (isinstance(first, Tensor) and isinstance(second, Tensor)):
            return None
        a = self._look_up(first)
        split = find_fork(a, self._look_up(second))
        if split is None:
            return None
        skip, write, fork, projected = split
        return _Found((skip, write, fork), projected, (first, second) if skip is a else (second, first))

    def _look_up(self, value: Tensor) -> Node:
        node = self.node_of(value)
        if node is None:
            if value.grad_fn is not None:  # some function made it that is not seen from here
                self.hidden += 1
            node = self._record("outside", (), WEIGHT if isinstance(value, nn.Parameter) else CONSTANT, value)
        elif node.edge is None:
            node.edge = self._edge_of(value)  # what a custom autograd function returns has its edge only now
        return node

    def _edge_of(self, value: Tensor) -> GradientEdge | None:
        wanted = self._edges and value.requires_grad and torch.is_grad_enabled()
        return get_gradient_edge(value) if wanted else None

    def _record(self, op: str, inputs: tuple[Node, ...], role: str, value: Tensor) -> Node:
        node = Node(len(self.nodes), op, inputs, role, value.shape, self._running[-1] if self._running else "")
        node.edge = self._edge_of(value)
        self.nodes.append(node)
        self._known[id(value)] = (weakref.ref(value), node)
        return node


class _Found(NamedTuple):
    """A sum that is about to be made and will be a residual connection."""

    operands: tuple[Node, Node, Node]
    projected: bool
    values: tuple[Tensor, Tensor]


def tensors_in(values: Any) -> Iterator[Tensor]:
    """Every tensor in nested tuples, lists, mappings and dataclasses (a model's output is often one), in order."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, (tuple, list)):
        for value in values:
            yield from tensors_in(value)
    elif isinstance(values, Mapping):
        for value in values.values():
            yield from tensors_in(value)
    elif dataclasses.is_dataclass(values) and not isinstance(values, type):
        for field in dataclasses.fields(values):
            yield from tensors_in(getattr(values, field.name))


def _role(op: str, inputs: tuple[Node, ...]) -> str:
    if op in ops.SHAPE_ONLY:
        return CONSTANT
    roles = {node.role for node in inputs}
    if ACTIVATION in roles or op in ops.LOOKUP:
        return ACTIVATION
    return WEIGHT if WEIGHT in roles else CONSTANT


def _calling_line() -> Source:
    """The user's line that called the function being recorded.

    PyTorch's machinery is passed over; its layers (`torch.nn.modules`) are not, for they too hold connections.
    """
    frame = sys._getframe(1)
    while frame.f_back is not None:
        file = frame.f_code.co_filename
        machinery = file == __file__ or (file.startswith(_TORCH) and not file.startswith(_TORCH_LAYERS))
        if not machinery:
            break
        frame = frame.f_back
    return Source(frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_qualname)
