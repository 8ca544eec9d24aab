"""The first operation that made a NaN or an infinity out of finite numbers, forward or backward.

Not every infinity is a fault: a mask is often filled with −∞, which softmax then turns into an exact zero. And a NaN
that `torch.where` throws away harms no value (though perhaps a gradient). So nothing is blamed when it appears: each
tensor that is not finite remembers the operation that it goes back to, and only what the output or the loss holds in
the end is asked where it came from. Backward, the gradients of parameters and inputs are asked in the same way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node as GradNode

from residuum.stream.capture import Capture, calling_line, tensors_in
from residuum.stream.errors import TraceError, in_one_line
from residuum.stream.loss import Loss, loss_of
from residuum.stream.measurable import check_measurable
from residuum.stream.node import Node, Source
from residuum.stream.trace import run
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
    before anything ran.
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
    every result looked at: slow, and meant for when something is wrong. A model that has nothing to train runs forward
    only. The model is left as it was found. Raises `TraceError` if it cannot run for another reason.
    """
    check_measurable(model, args, kwargs)
    held = _held_before(model, args, kwargs)
    if held is not None:
        return held
    with untouched(model), torch.inference_mode(False), torch.enable_grad():
        watcher = _Watcher(model)
        try:
            output = run(model, watcher, args, kwargs)
            asks = loss is not None or any(t.requires_grad for t in tensors_in(output))
            with watcher:
                value = loss_of(output, loss, watcher.tables(tensors_in((args, kwargs))))[0] if asks else None
        except TraceError:
            if watcher.first_nan is None:
                raise
            return watcher.first_nan.maker  # such as a draw from probabilities that are none
        # An infinity that was meant may stand in the output, but there is none that a loss could mean.
        faults = [fault for fault in map(watcher.fault_of, tensors_in(output)) if fault and not fault.meant]
        if value is not None and (fault := watcher.fault_of(value)):
            faults.append(fault)
        if faults:
            return min(faults, key=lambda fault: fault.at).maker
        return None if value is None else _backward(model, value, watcher)


class _Fault(NamedTuple):
    """What is known of a tensor that is not finite: when and by what it first became so, and whether on purpose."""

    at: int
    maker: NanMaker
    meant: bool


class _Line(NamedTuple):
    """Where an operation was called."""

    op: str
    module: str
    source: Source


class _Watcher(Capture):
    """A capture that looks at every value, and knows the line behind each of autograd's nodes."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.first_nan: _Fault | None = None
        self.lines: dict[GradNode, _Line] = {}
        self._faults: dict[Node, _Fault] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        operands = [self.node_of(value) for value in tensors_in((args, kwargs or {}))]
        before = [self._faults[node] for node in operands if node in self._faults]
        made = len(self.nodes)
        result = super().__torch_function__(func, types, args, kwargs)
        line = None
        for value in tensors_in(args[0] if getattr(func, "__name__", "") == "__setitem__" else result):
            node = self.node_of(value)
            if node is None or node.index < made or not (value.is_floating_point() or value.is_complex()):
                continue
            line = line or _Line(node.op, node.module, calling_line())
            self._keep_line(value.grad_fn, line)
            self._judge(node, value.detach(), before, line)
        return result

    def fault_of(self, value: Tensor) -> _Fault | None:
        """What is known of a value, None if it is finite or no recorded operation made it."""
        node = self.node_of(value)
        return None if node is None else self._faults.get(node)

    def _judge(self, node: Node, value: Tensor, before: list[_Fault], line: _Line) -> None:
        found = _not_finite(value)
        if found is None or node.op in _UNSET:
            return
        faults = [fault for fault in before if not fault.meant]
        if faults:
            fault = min(faults, key=lambda fault: fault.at)
        elif found == "infinity" and (before or node.op in _MEANT):
            # From an infinity that was meant comes one that is meant as well: a mask moved, scaled, added on.
            fault = before[0] if before else _Fault(node.index, NanMaker(found, "forward", *line), True)
        else:
            fault = _Fault(node.index, NanMaker(found, "forward", *line), False)
        if found == "NaN" and self.first_nan is None:
            self.first_nan = fault
        self._faults[node] = fault

    def _keep_line(self, grad_node: GradNode | None, line: _Line) -> None:
        pending = [grad_node]
        while pending:
            grad_node = pending.pop()
            if grad_node is None or grad_node in self.lines or not grad_node.next_functions:
                continue
            self.lines[grad_node] = line
            pending += [edge[0] for edge in grad_node.next_functions]


def _backward(model: nn.Module, value: Tensor, watcher: _Watcher) -> NanMaker | None:
    found: list[NanMaker] = []
    handles = []

    def listen(grad_node: GradNode, line: _Line) -> None:
        def hook(grad_inputs: Any, grad_outputs: Any) -> None:
            if not found and all(_not_finite(g) is None for g in grad_outputs if g is not None):
                bad = [b for b in (_not_finite(g) for g in grad_inputs if g is not None) if b is not None]
                if bad:
                    found.append(NanMaker(bad[0], "backward", *line))

        handles.append(grad_node.register_hook(hook))

    for grad_node, line in watcher.lines.items():
        listen(grad_node, line)
    wanted = [p for p in model.parameters() if p.requires_grad]
    try:
        gradients = torch.autograd.grad(value, wanted, allow_unused=True) if wanted else ()
    except Exception as error:
        raise TraceError(f"the backward pass raised {in_one_line(error)}") from error
    finally:
        for handle in handles:
            handle.remove()
    wrong = any(g is not None and _not_finite(g) is not None for g in gradients)
    return found[0] if wrong and found else None


def _held_before(model: nn.Module, args: Any, kwargs: Any) -> NanMaker | None:
    for name, parameter in model.named_parameters():
        if (found := _not_finite(parameter)) is not None:
            return NanMaker(found, "parameter", name)
    for name, buffer in model.named_buffers():
        if _not_finite(buffer) == "NaN":  # −∞ in a buffer is a mask
            return NanMaker("NaN", "buffer", name)
    named = [*((str(i), value) for i, value in enumerate(args)), *kwargs.items()]
    for name, values in named:
        for value in tensors_in(values):
            if _not_finite(value) == "NaN":
                return NanMaker("NaN", "input", name)
    return None


def _not_finite(value: Tensor) -> Literal["NaN", "infinity"] | None:
    value = value.detach()
    if not (value.is_floating_point() or value.is_complex()) or torch.isfinite(value).all():
        return None
    return "NaN" if torch.isnan(value).any() else "infinity"
