"""What a gradient does at every residual connection: how much takes the identity path, how much the branch path.

At `y = x + f(x)` the gradient `g = dL/dy` that arrives goes back to x twice, `dL/dx = g + Jᵀg`: unchanged along the
skip, and through the branch's Jacobian J. Both parts are read off one ordinary backward pass: autograd sends each
contribution to x along an edge of its own and adds them up there, and hooks on those edges see the parts before they
are summed. Neither is derived from the other. Only a connection whose branch is also read from outside takes a second,
local pass (`split.py`).
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from residuum.stream.capture import tensors_in
from residuum.stream.errors import TraceError, in_one_line
from residuum.stream.forward import Kept, watch_into
from residuum.stream.graph import graph_of
from residuum.stream.inputs import run_asking
from residuum.stream.levels import LevelCapture
from residuum.stream.loss import Loss, loss_of
from residuum.stream.measurable import check_measurable
from residuum.stream.measured import Flow, Passes
from residuum.stream.node import Node
from residuum.stream.parameter import parameter_flow
from residuum.stream.split import Split, splits_of
from residuum.stream.trace import unwrapped
from residuum.stream.untouched import untouched
from residuum.stream.weights import parameter_nodes
from residuum.stream.where_nan import where_nan


def flow(model: nn.Module, *args: Any, loss: Loss | None = None, **kwargs: Any) -> Flow:
    """Run `model(*args, **kwargs)` forward and backward once and measure every residual connection.

    `loss` takes the model's output and returns a scalar; without it `default_loss` finds one. The model is left as it
    was found, `.grad` included. Raises `TraceError` if the model cannot run or its loss carries no gradient.
    """
    model = unwrapped(model)
    check_measurable(model, args, kwargs)
    kept: dict[Node, Kept] = {}
    parameters = dict(model.named_parameters())

    def new_capture() -> LevelCapture:
        kept.clear()
        return LevelCapture(model, watch=watch_into(kept), edges=True)

    with untouched(model), torch.inference_mode(False), torch.enable_grad():
        capture, inputs, leaves, output = run_asking(model, new_capture, args, kwargs)
        sharded = _is_fully_sharded(model)
        if not sharded:
            _check_unchanged(model, parameters)
        value, name = loss_of(output, loss, capture.tables(tensors_in(inputs)))
        graph = graph_of(capture)
        splits = splits_of(graph, capture.nodes)
        asked = {n: p for n, p in parameters.items() if p.requires_grad}
        try:
            gradients = _gradients(value, [*asked.values(), *leaves], splits.values(), again=not sharded)
        finally:
            for node in capture.nodes:
                node.edge = None  # autograd's graph is not kept alive by what was measured on it
    gradient_of = dict(zip(asked, gradients, strict=False))
    flows = {} if sharded else {n: parameter_flow(p, gradient_of.get(n)) for n, p in parameters.items()}
    passes = Passes(capture, graph, kept, splits, parameter_nodes(model, capture.nodes))
    read = passes.read(float(value.detach()), name, parameters, flows)
    if read.finite:
        return read
    maker = where_nan(model, *args, loss=loss, **kwargs)
    return dataclasses.replace(read, nan_maker=maker, changes=maker is None)


def _gradients(
    value: Tensor, wanted: Sequence[Tensor], splits: Iterable[Split], again: bool
) -> tuple[Tensor | None, ...]:
    """One backward pass, heard by the splits; `again` lets the shared ones take their local pass."""
    try:
        shared = any(split.shared for split in splits)
        gradients = torch.autograd.grad(value, wanted, allow_unused=True, retain_graph=shared)
        for split in splits:
            split.stop_listening()
        for split in splits if again else ():
            split.finish()
    except Exception as error:
        raise TraceError(f"the backward pass raised {in_one_line(error)}") from error
    finally:
        for split in splits:
            split.close()
    return gradients


def _is_fully_sharded(model: nn.Module) -> bool:
    """Parameters that are gathered for one pass and given back in it.

    They leave nothing for a local second pass, and their gradients go to the shards past `torch.autograd.grad`.
    """
    fsdp = sys.modules.get("torch.distributed.fsdp")
    return fsdp is not None and any(isinstance(module, fsdp.FSDPModule) for module in model.modules())


def _check_unchanged(model: nn.Module, before: dict[str, nn.Parameter]) -> None:
    after = dict(model.named_parameters())
    changed = sorted(n for n in {**before, **after} if before.get(n) is not after.get(n))
    if changed:
        some = ", ".join(changed[:4]) + (" and others" if len(changed) > 4 else "")
        raise TraceError(f"the model made or replaced parameters while it ran ({some}): run it once before, then audit")
