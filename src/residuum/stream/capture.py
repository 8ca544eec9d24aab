"""Run a model once and record each tensor function it calls as a node, whatever the model is made of."""

from __future__ import annotations

import dataclasses
import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import CheckpointFunction

from residuum.stream import ops
from residuum.stream.carry import carries, root_of
from residuum.stream.connection import Fork, find_fork
from residuum.stream.node import ACTIVATION, BUFFER, CONSTANT, WEIGHT, Connection, Node, Source
from residuum.stream.sums import addends_of

_STREAM = str(Path(__file__).parent)
_TORCH = str(Path(torch.__file__).parent)
_TORCH_LAYERS = str(Path(torch.__file__).parent / "nn" / "modules")

Place = tuple[str, CodeType, int]

# Called at a connection with the skip's and the write's value; what it returns is called with the sum and its node.
Measure = Callable[[Tensor, Node], None]
Watch = Callable[[Tensor, Tensor], Measure]


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
        self._thread = threading.get_ident()
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []
        for parameter in model.parameters():
            self._record("parameter", (), WEIGHT, parameter)
        for buffer in model.buffers():
            if buffer.ndim > 1 and buffer.dtype != torch.bool:
                self._record("buffer", (), BUFFER, buffer)
        self._last: _Last | None = None
        self._parts: dict[Any, Node] = {}
        self._part_key: Any = None

    def feed(self, values: Iterable[Tensor]) -> None:
        """Mark the model's inputs: what is computed from them is an activation."""
        for value in values:
            self._record("input", (), ACTIVATION, value)

    def tables(self, inputs: Iterable[Tensor]) -> list[tuple[Tensor, int]]:
        """The inputs that were looked up in a table, each with its number of rows: the tokens and their vocabulary."""
        fed = [node for node in self.nodes if node.op == "input"]
        values = dict(zip(fed, inputs, strict=True))
        found = []
        for lookup in self.nodes:
            tables = [node for node in lookup.inputs if node.role == WEIGHT and len(node.shape) == 2]
            if not lookup.reads_table or not tables:
                continue
            for node in lookup.inputs:
                while node.op in ops.VIEW and node.inputs:  # GPT-2 views its tokens first
                    node = node.inputs[0]
                if node in values:
                    found.append((values[node], tables[0].shape[0]))
        return found

    @property
    def place(self) -> Place:
        """Where a call stands: the module that is running, and in which code which instruction of it."""
        frame = _calling_frame()
        return self._module, frame.f_code, frame.f_lasti

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
        self._apply = torch.autograd.Function.__dict__["apply"]
        torch.autograd.Function.apply = classmethod(self._run_function)  # type: ignore[method-assign, assignment]
        self._call_script = torch.jit.ScriptFunction.__call__
        torch.jit.ScriptFunction.__call__ = _run_source(self._call_script)  # type: ignore[method-assign]
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        torch.autograd.Function.apply = self._apply  # type: ignore[method-assign]
        torch.jit.ScriptFunction.__call__ = self._call_script  # type: ignore[method-assign]
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
        op = name_of(func)
        if op in ops.ASIDE:
            return func(*args, **kwargs)
        found = self._look_at_sum(op, args, kwargs) if ops.may_add(op) else None
        if found is not None and ops.is_fused_add_norm(op):
            total = found.skip_value() + found.write_value()  # before the kernel overwrites them
            result = func(*args, **kwargs)
            self._record_fused(op, found, total, (args, kwargs) if result is None else result)
            return result
        measured = self._measure(found) if found is not None and self._watch is not None else None
        result = func(*args, **kwargs)
        if op in ops.DROPOUT and _could_drop(args, kwargs) and any(result is value for value in args):
            result = result.view_as(result)  # an evaluating dropout hands its input on: a name of its own shows it
        outputs = args[0] if op == "__setitem__" else result
        if isinstance(outputs, (Tensor, tuple, list)):
            self._record_call(op, args, kwargs, outputs, found, measured)
        return result

    def _record_call(
        self, op: str, args: Any, kwargs: Any, outputs: Any, found: _Found | None, measured: Measure | None
    ) -> None:
        operands = list(tensors_in((args, kwargs)))
        inputs = tuple(self._look_up(value) for value in (operands[:1] if op in ops.LIKE else operands))
        if op == "__getitem__":
            op, inputs = self._same_part(op, inputs, args)
        overwrites = ops.writes_in_place(op) or bool(kwargs.get("inplace")) or "out" in kwargs
        handed_in = set() if overwrites else {id(value) for value in operands}
        for value in tensors_in(outputs):
            if id(value) in handed_in:  # `x.contiguous()` of what is contiguous: no new value
                continue
            node = self._record(op, inputs, _role(op, inputs), value)
            if op == "__getitem__":
                self._parts[self._part_key] = node
            if op in ops.MULTIPLY:
                node.factor = next((float(x) for x in args if isinstance(x, (int, float))), None)
            elif isinstance(alpha := kwargs.get("alpha"), (int, float)) and alpha != 1:
                node.factor = float(alpha)
            if found is not None:
                node.connection = found.connection_at(node)
            if overwrites and value._base is not None:
                self._known[id(value._base)] = (weakref.ref(value._base), node)
            if measured is not None:
                measured(value, node)

    def _same_part(self, op: str, inputs: tuple[Node, ...], args: Any) -> tuple[str, tuple[Node, ...]]:
        """The same part of the same value, read once more, is the same: in `x[m] = x[m] + f(x[m])` all three."""
        key = (inputs[0], self._index_key(args[1]))
        earlier = self._parts.get(key)
        if earlier is not None:
            earlier.reread = True
            return "alias", (earlier,)
        self._part_key = key
        return op, inputs

    def _index_key(self, index: Any) -> Any:
        if isinstance(index, Tensor):
            return self.node_of(index)
        if isinstance(index, slice):
            return ("slice", index.start, index.stop, index.step)
        if isinstance(index, (tuple, list)):
            return tuple(self._index_key(each) for each in index)
        return repr(index)

    def _record_fused(self, op: str, found: _Found, total: Tensor, outputs: Any) -> None:
        """A kernel that adds and normalises: the sum is a node of its own, whether the kernel hands it out or not."""
        added = tuple(found.addends)
        node = Node(len(self.nodes), "add", added, ACTIVATION, total.shape, self._module)
        self.nodes.append(node)
        node.connection = found.connection_at(node)
        if self._watch is not None:
            self._measure(found)(total, node)
        for place, value in enumerate(v for v in tensors_in(outputs) if v.shape == total.shape):
            # Kernels hand out (norm, sum); with values to look at, the sum is told from the norm by them.
            is_sum = place == 1 if value.is_meta else torch.allclose(value.to(total.dtype), total, 1e-2, 1e-2)
            self._record("alias" if is_sum else op, (node,), ACTIVATION, value)

    def _run_function(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        """A custom autograd function, which `__torch_function__` is not told of.

        What it computes with PyTorch is seen as it happens; what a kernel of its own computes is one operation by the
        function's name. A checkpoint's function hides the gradient's way through it, and is called directly.
        """
        original = self._apply.__func__
        if threading.get_ident() != self._thread:
            return original(function, *args, **kwargs)
        if function is CheckpointFunction:
            return args[0](*args[2:])
        result = original(function, *args, **kwargs)
        unseen = [value for value in tensors_in(result) if self._is_news(value)]
        if unseen and any(self._look_up(value).role == ACTIVATION for value in tensors_in(args)):
            op = function.__name__
            found = self._look_at_sum(op, args, kwargs) if ops.may_add(op) else None
            if found is None:
                self._record_call(op, args, kwargs, unseen, None, None)
            else:
                with torch._C.DisableTorchFunction():  # our own sum is none of the model's
                    self._record_fused(op, found, found.skip_value() + found.write_value(), result)
        return result

    def _is_news(self, value: Tensor) -> bool:
        node = self.node_of(value)
        return node is None or node.role != ACTIVATION

    def _look_at_sum(self, op: str, args: Any, kwargs: Any) -> _Found | None:
        """The connection that a call is about to make, if it makes one."""
        added = addends_of(op, args, kwargs, self.node_of)
        if added is None:
            return None
        nodes = []
        for addend in added.addends:
            parts = tuple(self._look_up(part) for part in addend.parts)
            if addend.op:
                role = _role(addend.op, parts)
                nodes.append(Node(len(self.nodes), addend.op, parts, role, addend.shape, self._module))
            else:
                nodes.append(addend.node or parts[0])
        fork = find_fork(nodes, added.partial)
        if fork is None:
            return None
        self.nodes += [node for node, addend in zip(nodes, added.addends, strict=True) if addend.op]
        fused = any(added.addends[i].op for i in fork.writes_at)
        return _Found(fork, nodes, [addend.value for addend in added.addends], fused)

    def _measure(self, found: _Found) -> Measure:
        """Show the skip's and the write's value to the watch, all of the write where branches are added in turn."""
        assert self._watch is not None
        beside, last = found.fork.beside, self._last
        skip, write = found.skip_value(), found.write_value()
        if beside is not None and last is not None and last.connection is beside:
            doubled = len(found.fork.writes) == len(beside.writes)
            if last.write_version == _version(last.write):
                so_far = write if doubled else skip
                skip = last.skip if last.skip_version == _version(last.skip) else so_far - last.write
                write = last.write if doubled else last.write + write
            elif last.skip_version == _version(last.skip):
                so_far = write if doubled else skip + write
                skip, write = last.skip, so_far - last.skip
        shown = self._watch(skip, write)
        versions = _version(skip), _version(write)

        def measured(value: Tensor, node: Node) -> None:
            shown(value, node)
            assert node.connection is not None
            self._last = _Last(node.connection, skip, write, *versions)

        return measured

    def _look_up(self, value: Tensor) -> Node:
        node = self.node_of(value)
        if node is None:
            if value.grad_fn is not None:  # some function made it that is not seen from here
                self.hidden += 1
            node = self._record("outside", (), WEIGHT if isinstance(value, nn.Parameter) else CONSTANT, value)
        elif node.edge is None:
            node.edge = self._edge_of(value)  # what a custom autograd function returns has its edge only now
        return node

    @property
    def _module(self) -> str:
        return self._running[-1] if self._running else ""

    def _edge_of(self, value: Tensor) -> GradientEdge | None:
        wanted = self._edges and value.requires_grad and torch.is_grad_enabled()
        return get_gradient_edge(value) if wanted else None

    def _record(self, op: str, inputs: tuple[Node, ...], role: str, value: Tensor) -> Node:
        node = Node(len(self.nodes), op, inputs, role, value.shape, self._module)
        node.edge = self._edge_of(value)
        self.nodes.append(node)
        self._known[id(value)] = (weakref.ref(value), node)
        return node


class _Found:
    """A sum that is about to be made and will be a residual connection."""

    def __init__(self, fork: Fork, addends: list[Node], values: list[Callable[[], Tensor]], fused: bool) -> None:
        self.fork = fork
        self.addends = addends
        self._values = values
        self._fused = fused

    def skip_value(self) -> Tensor:
        return self._values[self.fork.skip_at]()

    def write_value(self) -> Tensor:
        first, *others = (self._values[i]() for i in self.fork.writes_at)
        return sum(others, first)

    def connection_at(self, node: Node) -> Connection:
        fork, beside = self.fork, self.fork.beside
        added = tuple(self.addends[i] for i in fork.writes_at)
        states = (beside.carries if beside else (fork.skip,)) + tuple(
            each for each in added if carries(each, fork.node)
        )
        fork.node.forks = True
        root = root_of(fork.node)
        return Connection(
            node, fork.skip, fork.writes, fork.node, calling_line(), states, root, fork.projected, self._fused, beside
        )


class _Last(NamedTuple):
    """The connection that was measured last, whose operands are kept until the next in case a write joins it."""

    connection: Connection
    skip: Tensor
    write: Tensor
    skip_version: int
    write_version: int


def _version(value: Tensor) -> int:
    """How often a tensor was overwritten."""
    return -1 if value.is_inference() else value._version


def name_of(func: Any) -> str:
    """What PyTorch calls a function, or the attribute that one reads."""
    name = getattr(func, "__name__", "")
    if name == "__get__":  # an attribute such as `weight.T`
        return getattr(getattr(func, "__self__", None), "__name__", name)
    return name.partition(".")[0]  # the overload of an operator: `add.Tensor`


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


def _could_drop(args: Any, kwargs: Any) -> bool:
    return bool(kwargs.get("p", args[1] if len(args) > 1 else 0.5))


def _run_source(call_script: Callable[..., Any]) -> Callable[..., Any]:
    """Call the Python function that a scripted one was made of, whose operations can be seen, where it is known."""

    def call(script: Any, *args: Any, **kwargs: Any) -> Any:
        source = getattr(script, "_torchdynamo_inline", None)
        return call_script(script, *args, **kwargs) if source is None else source(*args, **kwargs)

    return call


def _role(op: str, inputs: tuple[Node, ...]) -> str:
    if op in ops.SHAPE_ONLY:
        return CONSTANT
    roles = {node.role for node in inputs}
    if ACTIVATION in roles or op in ops.LOOKUP:
        return ACTIVATION
    return next((role for role in (WEIGHT, BUFFER) if role in roles), CONSTANT)


def calling_line() -> Source:
    """The user's line that called the function being recorded."""
    frame = _calling_frame()
    return Source(frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_qualname)


def _calling_frame() -> FrameType:
    """That of the user's call; what watches is passed over, and PyTorch's machinery.

    Its layers (`torch.nn.modules`) are not, for they too hold connections.
    """
    frame = sys._getframe(1)
    while frame.f_back is not None:
        file = frame.f_code.co_filename
        machinery = file.startswith((_STREAM, _TORCH)) and not file.startswith(_TORCH_LAYERS)
        if not machinery:
            break
        frame = frame.f_back
    return frame
