"""The first operation that made a NaN or an infinity out of finite numbers, forward or backward.

Not every infinity is a fault: a mask is often filled with −∞, which softmax then turns into an exact zero. And a NaN
that `torch.where` throws away harms no value (though perhaps a gradient). So nothing is blamed when it appears: each
tensor that is not finite remembers the operation that it goes back to, and only what the output or the loss holds in
the end is asked where it came from. What a parameter, a buffer or an input held before is remembered in the same way.
Backward, a gradient that is not finite hands on, from each of autograd's nodes to the next, the operation that made it,
and the gradients of the parameters, then those of the inputs, are asked.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node as GradNode
from torch.autograd.graph import get_gradient_edge

from residuum.stream.capture import Capture, calling_line, tensors_in
from residuum.stream.errors import TraceError, in_one_line
from residuum.stream.inputs import run_asking
from residuum.stream.loss import Loss, loss_of
from residuum.stream.measurable import check_measurable
from residuum.stream.node import Node, Source
from residuum.stream.untouched import untouched

# Functions that put a number where it was asked for: an infinity of theirs is meant.
_MEANT = frozenset(
    {
        "full", "full_like", "new_full", "fill", "fill_", "masked_fill", "masked_fill_", "where", "tensor",
        "new_tensor", "as_tensor", "__setitem__", "index_fill", "index_fill_", "pad",
    }
)  # fmt: skip

# Functions whose result holds whatever the memory held before.
_UNSET = frozenset({"empty", "empty_like", "new_empty", "empty_strided"})


@dataclass(frozen=True)
class NanMaker:
    """Where the first NaN or infinity came from.

    `found` is *NaN* or *infinity*. `where` is *forward* or *backward*, and `name` the operation that made it, in
    `module`, called at `source`; or `where` is *input*, *parameter* or *buffer*, and `name` is the one that held it
    before anything ran. Backward, it may also be a hook on a gradient or a sum of gradients; an operation whose call
    was out of sight has autograd's name, and neither module nor source.
    """

    found: Literal["NaN", "infinity"]
    where: Literal["forward", "backward", "input", "parameter", "buffer"]
    name: str
    module: str = ""
    source: Source | None = None

    @property
    def told(self) -> str:
        """In words, without file and line."""
        if self.where in ("forward", "backward"):
            return f"{self.name} made {self.found} in the {self.where} pass of {self.module or 'the model'}"
        return f"{self.where} {self.name} holds {self.found} already"

    def __str__(self) -> str:
        return f"{self.told}, {self.source}" if self.source else self.told


def where_nan(model: nn.Module, *args: Any, loss: Loss | None = None, **kwargs: Any) -> NanMaker | None:
    """The first operation that made a NaN or infinity from finite inputs, or None if output and gradients are finite.

    Runs `model(*args, **kwargs)` forward and, if that is finite, backward from `loss` (as `residuum.flow` does), with
    every result looked at: slow, and meant for when something is wrong. What is not finite but reaches neither output
    nor gradients is no answer. Where the output carries no gradient, the model runs forward only. The model is left as
    it was found. Raises `TraceError` if it cannot run for another reason.
    """
    check_measurable(model, args, kwargs)
    watchers: list[_Watcher] = []

    def new_watcher() -> _Watcher:
        watchers.append(_Watcher(model, args, kwargs))
        return watchers[-1]

    with untouched(model), torch.inference_mode(False), torch.enable_grad():
        try:
            watcher, inputs, leaves, output = run_asking(model, new_watcher, args, kwargs)
            asks = loss is not None or any(t.requires_grad for t in tensors_in(output))
            with watcher:
                value = loss_of(output, loss, watcher.tables(tensors_in(inputs)))[0] if asks else None
        except TraceError:
            first_nan = watchers[-1].first_nan
            if first_nan is None:
                raise
            return first_nan.maker  # such as a draw from probabilities that are none
        # An infinity that was meant may stand in the output, but there is none that a loss could mean.
        faults = [fault for fault in map(watcher.fault_of, tensors_in(output)) if fault and not fault.meant]
        if value is not None and (fault := watcher.fault_of(value)):
            faults.append(fault)
        if faults:
            return min(faults).maker
        return None if value is None else _backward(model, leaves, value, watcher.lines)


class _Fault(NamedTuple):
    """What is known of a tensor that is not finite: when and by what it first became so, and whether on purpose."""

    at: int
    maker: NanMaker
    meant: bool


class _Line(NamedTuple):
    """Where an operation was called."""

    op: str
    module: str
    source: Source | None


class _Watcher(Capture):
    """A capture that looks at every value, and knows the line behind each of autograd's nodes."""

    def __init__(self, model: nn.Module, args: Any, kwargs: Any) -> None:
        super().__init__(model)
        self.first_nan: _Fault | None = None
        self.lines: dict[GradNode, _Line] = {}
        self._faults: dict[Node, _Fault] = {}
        named = [*((str(i), value) for i, value in enumerate(args)), *kwargs.items()]
        self._input_names = [name for name, values in named for _ in tensors_in(values)]
        for name, parameter in model.named_parameters():
            self._hold("parameter", name, parameter)
        for name, buffer in model.named_buffers():
            self._hold("buffer", name, buffer)

    def feed(self, values: Iterable[Tensor]) -> None:
        values = list(values)
        super().feed(values)
        for name, value in zip(self._input_names, values, strict=True):
            self._hold("input", name, value)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        operands = list(tensors_in((args, kwargs or {})))
        nodes = [self.node_of(value) for value in operands]
        before = [self._faults[node] for node in nodes if node in self._faults]
        reads = _grad_nodes(operands)
        made = len(self.nodes)
        result = super().__torch_function__(func, types, args, kwargs)
        line = None
        for value in tensors_in(args[0] if getattr(func, "__name__", "") == "__setitem__" else result):
            node = self.node_of(value)
            if node is None or node.index < made or not (value.is_floating_point() or value.is_complex()):
                continue
            line = line or _Line(node.op, node.module, calling_line())
            self._keep_line(value.grad_fn, line, reads)
            self._judge(node, value.detach(), before, line)
        return result

    def _run_function(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        """A custom autograd function, whose backward is its own whatever is recorded of its forward pass."""
        reads = _grad_nodes(tensors_in(args))
        result = super()._run_function(function, *args, **kwargs)
        line = _Line(function.__name__, self._module, calling_line())
        for value in tensors_in(result):
            self._keep_line(value.grad_fn, line, reads)
        return result

    def fault_of(self, value: Tensor) -> _Fault | None:
        """What is known of a value, None if it is finite or no recorded operation made it."""
        node = self.node_of(value)
        return None if node is None else self._faults.get(node)

    def _hold(self, where: Literal["input", "parameter", "buffer"], name: str, value: Tensor) -> None:
        found = _not_finite(value)
        if found is not None:
            trains = where == "parameter" and value.requires_grad
            mask = found == "infinity" and not trains and value.is_floating_point() and bool((value != math.inf).all())
            node = self._look_up(value)
            self._faults[node] = _Fault(node.index, NanMaker(found, where, name), mask)

    def _judge(self, node: Node, value: Tensor, before: list[_Fault], line: _Line) -> None:
        found = _not_finite(value)
        if found is None or node.op in _UNSET:
            return
        faults = [fault for fault in before if not fault.meant]
        if faults:
            fault = min(faults)
        elif found == "infinity" and (before or node.op in _MEANT):
            # From an infinity that was meant comes one that is meant as well: a mask moved, scaled, added on.
            fault = before[0] if before else _Fault(node.index, NanMaker(found, "forward", *line), True)
        else:
            fault = _Fault(node.index, NanMaker(found, "forward", *line), False)
        if found == "NaN" and self.first_nan is None:
            self.first_nan = fault
        self._faults[node] = fault

    def _keep_line(self, grad_node: GradNode | None, line: _Line, reads: set[GradNode | None]) -> None:
        """Of all that autograd put between an operation's result and what the operation `reads`."""
        pending = [grad_node]
        while pending:
            grad_node = pending.pop()
            if grad_node is None or grad_node in reads or grad_node in self.lines or not grad_node.next_functions:
                continue
            self.lines[grad_node] = line
            pending += [edge[0] for edge in grad_node.next_functions]


def _grad_nodes(values: Iterable[Tensor]) -> set[GradNode | None]:
    """What autograd continues from at these values.

    A view whose base was overwritten raises where it is asked, and may be read without a gradient only.
    """
    found = set()
    for value in values:
        with suppress(RuntimeError):
            found.add(value.grad_fn)
    return found


# Where a gradient arrives: autograd's node, and which of its outputs' gradients it is.
_Port = tuple[GradNode, int]


class _Blame:
    """Hooks on autograd's nodes that carry each fault on from the operation that made it to where its gradient goes."""

    def __init__(self, root: GradNode, lines: dict[GradNode, _Line]) -> None:
        self._lines = lines
        self._made = 0
        self._faults: dict[_Port, _Fault] = {}
        self._sums: dict[_Port, Tensor] = {}  # what autograd adds up, before any hook on the tensor changes it
        self._handles: list[Any] = []
        known, pending = {root}, [root]
        while pending:
            grad_node = pending.pop()
            self._handles.append(grad_node.register_hook(partial(self._pass_on, grad_node)))
            behind = {edge[0] for edge in grad_node.next_functions if edge[0] is not None} - known
            known |= behind
            pending += behind

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()

    def fault_of(self, gradient: Tensor | None, port: _Port, name: str = "") -> _Fault | None:
        """What made a gradient that arrived, None if it is finite; `name` is that of the tensor it belongs to."""
        total = self._sums.pop(port, None)
        found = None if gradient is None else _not_finite(gradient)
        if found is None:
            return None
        if port not in self._faults:  # what was sent here was finite
            line = self._line(port[0])
            added = total is not None and _not_finite(total) is not None
            of = f"{'the sum of the gradients' if added else 'a hook on the gradient'} of {name or line.op}"
            self._faults[port] = self._make(found, line._replace(op=of))
        return self._faults[port]

    def _pass_on(self, grad_node: GradNode, sent: Any, arrived: Any) -> None:
        before = [fault for i, g in enumerate(arrived) if (fault := self.fault_of(g, (grad_node, i))) is not None]
        for (behind, i), gradient in zip(grad_node.next_functions, sent, strict=True):
            if gradient is None or behind is None:
                continue
            port = behind, i
            found = _not_finite(gradient)
            if found is not None:
                if not before:
                    before = [self._make(found, self._line(grad_node))]
                self._faults[port] = min(*before, self._faults.get(port, before[0]))
            total = self._sums.get(port)
            self._sums[port] = gradient if total is None else total + gradient

    def _line(self, grad_node: GradNode) -> _Line:
        return self._lines.get(grad_node) or _Line(grad_node.name(), "", None)

    def _make(self, found: Literal["NaN", "infinity"], line: _Line) -> _Fault:
        self._made += 1
        return _Fault(self._made, NanMaker(found, "backward", *line), False)


def _backward(model: nn.Module, leaves: list[Tensor], value: Tensor, lines: dict[GradNode, _Line]) -> NanMaker | None:
    parameters = [(f"parameter {name}", p) for name, p in model.named_parameters() if p.requires_grad]
    wanted = [*parameters, *(("an input", leaf) for leaf in leaves)]
    if not wanted or value.grad_fn is None:
        return None
    blame = _Blame(value.grad_fn, lines)
    try:
        gradients = torch.autograd.grad(value, [tensor for _, tensor in wanted], allow_unused=True)
    except Exception as error:
        raise TraceError(f"the backward pass raised {in_one_line(error)}") from error
    finally:
        blame.close()
    edges = [get_gradient_edge(tensor) for _, tensor in wanted]
    asked = zip(gradients, edges, wanted, strict=True)
    faults = [blame.fault_of(g, (edge.node, edge.output_nr), name) for g, edge, (name, _) in asked]
    found = [f for f in faults[: len(parameters)] if f is not None] or [f for f in faults if f is not None]
    return min(found).maker if found else None


def _not_finite(value: Tensor) -> Literal["NaN", "infinity"] | None:
    value = value.detach()
    if value.is_sparse:
        value = value.coalesce().values()
    if not (value.is_floating_point() or value.is_complex()) or torch.isfinite(value).all():
        return None
    return "NaN" if torch.isnan(value).any() else "infinity"
