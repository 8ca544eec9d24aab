"""The explicit pass as one compiled graph, forward and backward together."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx

from residuum.errors import InputError
from residuum.model import Transformer

if TYPE_CHECKING:
    from residuum.engine.engine import Batch

Pass = Callable[[Transformer, "Batch"], Tensor]

# A call from C++ costs less than one from Python, and there are some fifty. Without fallback_random, dropout would draw
# other numbers than it does everywhere else.
OPTIONS: dict[str, Any] = {"cpp_wrapper": True, "fallback_random": True}


class CompiledPass:
    """`run`, which returns a loss and leaves gradients in `.grad`, compiled for one model and one shape of batch.

    A hand-derived backward is tensor operations like any other, so forward and backward are one graph to the compiler,
    and a step is one call. It pays where a model is so small that calling its operations takes longer than they do.
    """

    def __init__(self, run: Pass, model: Transformer, batch: Batch) -> None:
        batch = _contiguous(batch)
        self.parameters = list(model.parameters())
        self.modules = list(model.modules())
        self.slots = [(module._parameters, name) for module in self.modules for name in module._parameters]
        self.granted = self._settings()
        names = [f"model.{name}" for name, _ in model.named_parameters()]

        def pure(tokens: Tensor, targets: Tensor, *weights: Tensor) -> list[Tensor | None]:
            fresh = [w.detach().requires_grad_(p.requires_grad) for w, p in zip(weights, self.parameters, strict=True)]
            stand_ins = dict(zip(names, fresh, strict=True))
            loss = functional_call(_Running(run, model), stand_ins, ((tokens, targets),))
            return [loss, *(weight.grad for weight in fresh)]

        with torch.random.fork_rng():  # recording a pass runs it, and what it drops must be drawn again
            graph = make_fx(pure)(*batch, *(p.detach() for p in self.parameters))
        self.graph = torch.compile(graph, fullgraph=True, dynamic=False, options=OPTIONS)

    def still_holds(self) -> bool:
        """Whether all that the graph took for granted is as it was: parameters, what is frozen, what is dropped."""
        return self._settings() == self.granted

    def _settings(self) -> list[Any]:
        parameters = [home.get(name) for home, name in self.slots]
        return [
            *((id(p), p.requires_grad, p.dtype, p.device) for p in parameters if p is not None),
            *((module.training, module.__dict__.get("p")) for module in self.modules),
        ]

    def __call__(self, batch: Batch) -> Tensor:
        """The loss; its gradients are added to `.grad`. Raises `InputError` where there is nothing to compile with."""
        with torch.autocast(batch[0].device.type, enabled=False):  # the graph says already what type each product has
            try:
                loss, *grads = self.graph(*_contiguous(batch), *self.parameters)
            except torch._inductor.exc.InductorError as error:
                reason = str(error).strip().splitlines()[0]
                raise InputError(
                    f"run.compile: PyTorch's compiler gave up ({reason}): install a C++ compiler, or leave it away"
                ) from error
        for parameter, grad in zip(self.parameters, grads, strict=True):
            if grad is not None:
                parameter.grad = grad if parameter.grad is None else parameter.grad.add_(grad)
        return loss


def _contiguous(batch: Batch) -> Batch:
    """A graph is recorded for one layout in memory."""
    return batch[0].contiguous(), batch[1].contiguous()


class _Running(nn.Module):
    """The model, with the pass as what it does when called: PyTorch can swap the parameters of a call."""

    def __init__(self, run: Pass, model: Transformer) -> None:
        super().__init__()
        self.run, self.model = run, model

    def forward(self, batch: Batch) -> Tensor:
        return self.run(self.model, batch)
