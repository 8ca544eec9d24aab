"""The measurements of `flow`, taken on a forward and a backward pass that somebody else runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from residuum.stream.capture import Place, tensors_in
from residuum.stream.forward import Kept, watch_into
from residuum.stream.graph import ResidualGraph, graph_of
from residuum.stream.levels import LevelCapture
from residuum.stream.measured import Flow, Passes
from residuum.stream.node import Connection, Node
from residuum.stream.parameter import ParameterFlow, parameter_flow
from residuum.stream.split import Split, splits_of
from residuum.stream.weights import is_sharded, parameter_nodes


class Listener:
    """Hooks that measure the model's next forward pass with gradients, and the backward pass that follows it.

    Nothing is run twice and nothing is changed. What one pass cannot tell is left out: a connection whose branch is
    also read from outside takes a second, local pass (`split.py`), so its `backward` is None, and nobody looks for the
    maker of a NaN. `close` leaves the model as it was found.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._depth = 0
        self._running = False
        self._capture: LevelCapture | None = None
        self._kept: dict[Node, Kept] = {}
        self._names: dict[Node, str] = {}
        self._graph: ResidualGraph | None = None
        self.own_loss: Tensor | None = None
        self._splits: dict[Connection, Split] = {}
        self._parameters: dict[str, ParameterFlow] = {}
        self._listened: dict[str, Any] = {}
        self._hooks = [
            model.register_forward_pre_hook(_Hook(self._start), with_kwargs=True),
            model.register_forward_hook(_Hook(self._stop), always_call=True),
        ]

    @property
    def called(self) -> bool:
        """Whether the model ran forward with gradients."""
        return self._graph is not None

    def read(self, scale: float = 1.0, loss: float | None = None) -> Flow | None:
        """What was measured; None if no gradient came back. Gradients are divided by `scale`, the loss's own factor.

        `loss` is for the record; without it stands the model's own, or 0 where the model returned none: rules only ask
        whether it is finite, and what follows from one that is not they see in the gradients.
        """
        capture, graph = self._capture, self._graph
        heard = self._parameters or any(split.norms for split in self._splits.values())
        if capture is None or graph is None or not heard:
            return None
        if loss is None:
            loss = 0.0 if self.own_loss is None else float(self.own_loss)
        parameters = dict(self._model.named_parameters())
        heard_of = {n: p for n, p in parameters.items() if n in self._listened or not is_sharded(p)}
        flows = {n: self._parameter(n, p, scale) for n, p in heard_of.items()}
        passes = Passes(capture, graph, self._kept, self._splits, self._names)
        return passes.read(loss, "the training's loss", parameters, flows, scale)

    def roundings(self) -> frozenset[Place]:
        """`LevelCapture.roundings`, once the model has run."""
        assert self._capture is not None
        return self._capture.roundings()

    def close(self) -> None:
        """Remove every hook and let go of every tensor."""
        self._leave()
        for hook in (*self._hooks, *self._listened.values()):
            hook.remove()
        for split in self._splits.values():
            split.close()

    def _parameter(self, name: str, parameter: nn.Parameter, scale: float) -> ParameterFlow:
        heard = self._parameters.get(name)
        if heard is None or heard.gradient_rms is None:
            return parameter_flow(parameter, None)
        return dataclasses.replace(heard, gradient_rms=heard.gradient_rms / scale)

    def _start(self, _model: nn.Module, args: Any, kwargs: Any) -> None:
        self._depth += 1
        if self._depth > 1 or self._capture is not None or not torch.is_grad_enabled():
            return
        self._capture = LevelCapture(self._model, watch=watch_into(self._kept), edges=True)
        self._names = parameter_nodes(self._model, self._capture.nodes)
        self._capture.feed(tensors_in((args, kwargs)))
        names = {id(module): f"{name}." if name else "" for name, module in self._model.named_modules()}
        self._on_modules = register_module_forward_hook(
            lambda module, _args, _output: self._listen_to(module, names.get(id(module)))
        )
        self._capture.__enter__()
        self._running = True

    def _stop(self, _model: nn.Module, _args: Any, output: Any) -> None:
        self._depth -= 1
        capture = self._capture
        if self._depth or capture is None or not self._running:
            return
        self._leave()
        if output is None:  # the forward pass raised: another may follow
            self._capture = None
            self._kept.clear()
            return
        for name, module in self._model.named_modules():
            self._listen_to(module, f"{name}." if name else "")
        self._graph = graph_of(capture)
        self.own_loss = _own_loss(output)
        self._splits = splits_of(self._graph, capture.nodes)
        for node in capture.nodes:
            node.edge = None  # autograd's graph is not kept alive by what is measured on it

    def _leave(self) -> None:
        if self._capture is not None and self._running:
            self._running = False
            self._capture.__exit__(None, None, None)
            self._on_modules.remove()

    def _listen_to(self, module: nn.Module, prefix: str | None) -> None:
        """Hear each parameter's gradient where it arrives, before it is added to what `.grad` holds already.

        Parameters that FSDP has sharded take no part in the forward pass; what it puts in their place does, and is
        there only while their module runs.
        """
        for name, parameter in module._parameters.items() if prefix is not None else ():
            whole = f"{prefix}{name}"
            asked = parameter is not None and parameter.requires_grad and not is_sharded(parameter)
            if parameter is not None and asked and whole not in self._listened:
                self._listened[whole] = parameter.register_hook(self._hear(whole, parameter))

    def _hear(self, name: str, parameter: nn.Parameter) -> Any:
        def hook(gradient: Tensor) -> None:
            if name not in self._parameters:
                self._parameters[name] = parameter_flow(parameter, gradient)

        return hook


class _Hook:
    """A hook on the model that is deaf in a copy of it: a copied or saved model takes nothing measured along."""

    def __init__(self, function: Callable[..., None] | None = None) -> None:
        self._function = function

    def __call__(self, *args: Any) -> None:
        if self._function is not None:
            self._function(*args)

    def __reduce__(self) -> tuple[type[_Hook], tuple[()]]:
        return _Hook, ()


def _own_loss(output: Any) -> Tensor | None:
    """The number that the model returned as its loss, if it did."""
    value = output.get("loss") if isinstance(output, dict) else getattr(output, "loss", None)
    if value is None:
        value = next(tensors_in(output), None)
    return value.detach() if isinstance(value, Tensor) and value.ndim == 0 else None
