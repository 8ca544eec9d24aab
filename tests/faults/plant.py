"""Ways to break a healthy model, each as a mistake in somebody's code or training would.

A planter takes the model and its inputs and changes the model; where that is not enough it returns another. It knows no
architecture: sums are counted as they run, modules are found by what ran in them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import residuum
from residuum.stream import Residual, ops
from residuum.stream.carry import carried
from residuum.stream.node import Node
from residuum.stream.normalisation import normalised_by

VICTIM = 3  # the connection that is broken where one is: inside the stack, with siblings before and behind

Inputs = dict[str, Any]
Join = Callable[[Tensor, Tensor], Tensor]
Planter = Callable[[nn.Module, Inputs], nn.Module | None]


# What connections do: skip and write, joined in another way.


def join_one(join: Join) -> Planter:
    """Replace `skip + write` at one connection."""
    return lambda model, inputs: _rejoin(model, inputs, join, lambda i: i == VICTIM)


def join_all(join: Join) -> Planter:
    """Replace it at every connection of every stream."""
    return lambda model, inputs: _rejoin(model, inputs, join, lambda _: True, every_stream=True)


def join_from(join: Join) -> Planter:
    """Replace it from one connection on, to the end of the longest stream."""
    return lambda model, inputs: _rejoin(model, inputs, join, lambda i: i >= VICTIM)


def removed(_skip: Tensor, write: Tensor) -> Tensor:
    return write


def detached(skip: Tensor, write: Tensor) -> Tensor:
    return skip.detach() + write


def times(factor: float) -> Join:
    return lambda skip, write: skip * factor + write


def flipped(skip: Tensor, write: Tensor) -> Tensor:
    return skip.flip(-1) + write


def bent_after(skip: Tensor, write: Tensor) -> Tensor:
    return F.relu(skip + write)


def detached_after(skip: Tensor, write: Tensor) -> Tensor:
    return (skip + write).detach()


def without_grad(skip: Tensor, write: Tensor) -> Tensor:
    with torch.no_grad():
        skip = skip * 1
    return skip + write


def learned_zero(skip: Tensor, write: Tensor) -> Tensor:
    return skip * torch.zeros(skip.shape[-1]) + write


def dropped(skip: Tensor, write: Tensor) -> Tensor:
    return F.dropout(skip, 0.1) + write


def dropped_in_eval(skip: Tensor, write: Tensor) -> Tensor:
    return F.dropout(skip, 0.1, training=False) + write


def dropped_together(skip: Tensor, write: Tensor) -> Tensor:
    return F.dropout(skip + write, 0.1)


def stochastic_depth(skip: Tensor, write: Tensor) -> Tensor:
    keep = torch.rand(skip.shape[0], *[1] * (skip.ndim - 1)) < 0.9
    return skip * keep / 0.9 + write


def normed_after(skip: Tensor, write: Tensor) -> Tensor:
    return F.layer_norm(skip + write, skip.shape[-1:])


def write_detached(skip: Tensor, write: Tensor) -> Tensor:
    return skip + write.detach()


def write_times(factor: float) -> Join:
    return lambda skip, write: skip + write * factor


def as_large_as_the_skip(skip: Tensor, write: Tensor) -> Tensor:
    """A write three times the skip at every connection: what no scale at the start does."""
    return skip + write * (3 * float(skip.detach().square().mean().sqrt() / write.detach().square().mean().sqrt()))


def nan_in_backward(skip: Tensor, write: Tensor) -> Tensor:
    """√ of an exact zero: forward 0, backward 0 · ∞."""
    return skip + (write + torch.sqrt((write - write.detach()).abs()))


def overflow_in_half(skip: Tensor, write: Tensor) -> Tensor:
    """Larger than 65,504 in float16."""
    return skip + ((1 + write.half().abs()) * 300 * 300).to(write.dtype)


def one_direction(skip: Tensor, write: Tensor) -> Tensor:
    """A write that says the same at every position, far louder than the state."""
    over = tuple(range(skip.ndim - 1))
    return skip + (write + 1e3 * (1 + skip.mean(over, keepdim=True) + write.mean(over, keepdim=True)).expand_as(write))


def one_channel(skip: Tensor, write: Tensor) -> Tensor:
    """A write that is 1,000 times louder in the first channel."""
    loud = torch.ones(write.shape[1 if write.ndim == 4 else -1])
    loud[0] = 1e3
    return skip + write * (loud.view(-1, 1, 1) if write.ndim == 4 else loud)


# What modules hold.


def dead(model: nn.Module, inputs: Inputs) -> None:
    """The last matrix of one branch has decayed to almost nothing."""
    _rescale_victim(model, inputs, 1e-6)


def redundant(model: nn.Module, inputs: Inputs) -> None:
    """One branch writes little beside the others, though more than a dead one."""
    _rescale_victim(model, inputs, 0.01)


def dominating(model: nn.Module, inputs: Inputs) -> None:
    """The last matrix of one branch has grown a thousandfold."""
    _rescale_victim(model, inputs, 1e3)


def _rescale_victim(model: nn.Module, inputs: Inputs, factor: float) -> None:
    """Let every branch write half as much as its skip carries, as trained ones do, and one `factor` times that."""
    flow = residuum.stream.flow(model, **inputs)
    for m in max(flow.measured, key=len):
        to_half = 0.5 * m.forward.skip_rms / m.forward.write_rms
        _scale(_writers(model, m.residual), to_half * (factor if m.residual.index == VICTIM else 1))


def exploding_init(model: nn.Module, inputs: Inputs) -> None:
    """No norm, and matrices that each make what they read three times larger."""
    residuals = _longest(model, inputs)
    no_norms(model, inputs)
    for block in {_block(residual) for residual in residuals}:
        for parameter in model.get_submodule(block).parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=3 / parameter[0].numel() ** 0.5)


def all_but_one_zero(model: nn.Module, inputs: Inputs) -> None:
    """An initialisation that makes every block the identity, forgotten at one."""
    for residual in _longest(model, inputs):
        if residual.index != VICTIM:
            _scale(_writers(model, residual), 0)


def nan_weights(model: nn.Module, inputs: Inputs) -> None:
    _scale(_writers(model, _longest(model, inputs)[VICTIM]), float("nan"))


def infinite_weights(model: nn.Module, inputs: Inputs) -> None:
    _scale(_writers(model, _longest(model, inputs)[VICTIM]), float("-inf"))


def frozen_block(model: nn.Module, inputs: Inputs) -> None:
    model.get_submodule(_block(_longest(model, inputs)[VICTIM])).requires_grad_(False)


def never_used(model: nn.Module, _inputs: Inputs) -> None:
    model.forgotten = nn.Linear(3, 3)


def tiny_gradient(model: nn.Module, inputs: Inputs) -> None:
    """One weight reaches its function through a scale that leaves it no gradient to speak of."""
    module = _writers(model, _longest(model, inputs)[VICTIM])[-1]
    name, weight = next((n, p) for n, p in module.named_parameters() if p.ndim > 1)
    owner = module.get_submodule(name.rpartition(".")[0])
    nn.utils.parametrize.register_parametrization(owner, name.rpartition(".")[2], _Scaled(1e-12), unsafe=True)
    del weight


def collapsed_ternary(model: nn.Module, inputs: Inputs) -> None:
    """A ternary layer whose scale has outgrown its weights: every one rounds to 0."""
    _ternarise(model, inputs, scale=100.0)


def ternary_without_estimator(model: nn.Module, inputs: Inputs) -> None:
    """A ternary layer that forgot that rounding has slope 0."""
    _ternarise(model, inputs, estimator=False)


def ternary_with_an_outlier(model: nn.Module, inputs: Inputs) -> None:
    """One weight has outgrown the others, and the scale with it."""
    with torch.no_grad():
        weight = _ternarise(model, inputs)
        weight.view(-1)[0] = 10 * weight.abs().sum()


def ternary_with_small_rows(model: nn.Module, inputs: Inputs) -> None:
    """A third of a ternary layer's outputs decayed to far less than the others."""
    with torch.no_grad():
        weight = _ternarise(model, inputs)
        weight[: len(weight) // 3].mul_(0.01)


def _ternarise(model: nn.Module, inputs: Inputs, scale: float | None = None, estimator: bool = True) -> nn.Parameter:
    """Make every branch's last map ternary; that of one otherwise, whose weight comes back."""
    for residual in _longest(model, inputs):
        module = _writers(model, residual)[-1]
        name = next(n for n, p in module.named_parameters() if p.ndim > 1)
        owner, weight = module.get_submodule(name.rpartition(".")[0]), module.get_parameter(name)
        broken = residual.index == VICTIM
        rounding = _Ternary(scale, estimator) if broken else _Ternary(None, True)
        nn.utils.parametrize.register_parametrization(owner, name.rpartition(".")[2], rounding, unsafe=True)
        if broken:
            victim = weight
    return victim


def negligible_adapter(model: nn.Module, inputs: Inputs) -> None:
    """A low-rank adapter beside one linear layer, its second matrix as good as zero long after the start."""
    block = model.get_submodule(_block(_longest(model, inputs)[VICTIM]))
    name, layer = next((n, m) for n, m in block.named_modules() if isinstance(m, nn.Linear))
    if name:
        block.set_submodule(name, _Adapted(layer))
    else:
        raise AssertionError("the block is its own linear layer")


class _Scaled(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.factor + (weight * (1 - self.factor)).detach()


class _Ternary(nn.Module):
    """round(w / mean|w|) in −1, 0, 1, with the straight-through gradient."""

    def __init__(self, scale: float | None, estimator: bool) -> None:
        super().__init__()
        self.scale, self.estimator = scale, estimator

    def forward(self, weight: Tensor) -> Tensor:
        scale = weight.abs().mean() if self.scale is None else self.scale
        ternary = (weight / scale).round().clamp(-1, 1) * weight.abs().mean()
        return weight + (ternary - weight).detach() if self.estimator else ternary


class _Adapted(nn.Module):
    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.a = nn.Linear(base.in_features, 2, bias=False)
        self.b = nn.Linear(2, base.out_features, bias=False)
        nn.init.constant_(self.b.weight, 1e-9)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.b(self.a(x))


# Norms and width.


class _NoNorm(nn.Identity):
    weight = torch.ones(1)  # some models look at their norm's weight for its type


def no_norms(model: nn.Module, inputs: Inputs) -> None:
    """Every norm forgotten."""
    for path in {n.module for n in residuum.trace(model, **inputs).nodes if normalised_by(n) is not None}:
        model.set_submodule(path, _NoNorm())


def norm_removed(model: nn.Module, inputs: Inputs) -> None:
    """One branch's norm forgotten: the first one that its connection's part of the model holds."""
    model.set_submodule(_norm_of(_longest(model, inputs)[VICTIM]), _NoNorm())


def norm_moved_behind(model: nn.Module, inputs: Inputs) -> None:
    """One connection of a pre-norm stack written as post-norm."""
    join_one(normed_after)(model, inputs)
    norm_removed(model, inputs)


def norm_moved_before(model: nn.Module, inputs: Inputs) -> None:
    """One connection of a post-norm stack written as pre-norm: what follows its sum is not normalised."""
    residuals = _longest(model, inputs)
    later = residuals[VICTIM + 1].connection.fork
    while normalised_by(later) is None:
        later = carried(later)[0]
    model.set_submodule(later.module, _NoNorm())


def stream_normed(model: nn.Module, inputs: Inputs) -> None:
    """x = norm(x); x = x + f(x): skip and branch of one block read the normalised state."""
    block = model.get_submodule(_block(_longest(model, inputs)[VICTIM]))

    def before(_module: nn.Module, args: Any, kwargs: Any) -> Any:
        if args:
            return (F.layer_norm(args[0], args[0].shape[-1:]), *args[1:]), kwargs
        name = "hidden_states"
        return args, {**kwargs, name: F.layer_norm(kwargs[name], kwargs[name].shape[-1:])}

    block.register_forward_pre_hook(before, with_kwargs=True)


def no_final_norm(model: nn.Module, inputs: Inputs) -> None:
    path = residuum.trace(model, **inputs).streams[-1].final_norm
    assert path, "this architecture has no final norm to remove"
    model.set_submodule(path, _NoNorm())


def norm_behind_readout(model: nn.Module, inputs: Inputs) -> None:
    """The final norm applied to the scores."""
    no_final_norm(model, inputs)
    forward = model.forward

    @functools.wraps(forward)
    def normed(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        scores = output if isinstance(output, Tensor) else output.logits
        return F.layer_norm(scores, scores.shape[-1:])

    model.forward = normed


def none_at_all(_model: nn.Module, _inputs: Inputs) -> None:
    """Nothing is changed: the model as it is built is the mistake."""


def widened(model: nn.Module, _inputs: Inputs) -> nn.Module:
    """One linear map to twice the width, and more blocks behind it."""
    return _Widened(model)


class _Widened(nn.Module):
    def __init__(self, low: nn.Module) -> None:
        super().__init__()
        self.low, self.cut = low, nn.Linear(12, 24)
        layer = nn.TransformerEncoderLayer(24, 4, 32, batch_first=True, norm_first=True)
        self.high = nn.TransformerEncoder(layer, 2, nn.LayerNorm(24), enable_nested_tensor=False)

    def forward(self, **inputs: Tensor) -> Tensor:
        states = getattr(self.low, "states", getattr(self.low, "base_model", self.low))(**inputs)
        return self.high(self.cut(states if isinstance(states, Tensor) else states[0]))


# How they find what they break.


class _Rejoin(TorchFunctionMode):
    """Counts the sums of a forward pass as they run and joins some of them in another way."""

    def __init__(self, joins: dict[int, tuple[int, Join]]) -> None:
        super().__init__()
        self.joins = joins
        self.sums = -1

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        operands = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        if func.__name__ in ops.SUM and len(operands) == 2:
            self.sums += 1
            if self.sums in self.joins:
                skip, join = self.joins[self.sums]
                return join(operands[skip], operands[1 - skip])
        return func(*args, **kwargs)


def _rejoin(
    model: nn.Module, inputs: Inputs, join: Join, wanted: Callable[[int], bool], every_stream: bool = False
) -> None:
    graph = residuum.trace(model, **inputs)
    sums = [node for node in graph.nodes if node.op in ops.SUM and len(node.inputs) == 2]
    streams = graph.streams if every_stream else [max(graph.streams, key=lambda stream: len(stream.residuals))]
    joins = {
        sums.index(r.connection.sum): (r.connection.sum.inputs.index(r.connection.skip), join)
        for stream in streams
        for r in stream.residuals
        if wanted(r.index)
    }
    forward = model.forward

    @functools.wraps(forward)
    def rejoined(*args: Any, **kwargs: Any) -> Any:
        with _Rejoin(joins):
            return forward(*args, **kwargs)

    model.forward = rejoined


def _longest(model: nn.Module, inputs: Inputs) -> list[Residual]:
    return max((stream.residuals for stream in residuum.trace(model, **inputs).streams), key=len)


def _block(residual: Residual) -> str:
    """The innermost numbered module around the branch."""
    parts = (residual.branch or residual.module).split(".")
    last = max(i for i, part in enumerate(parts) if part.isdigit())
    return ".".join(parts[: last + 1])


def _writers(model: nn.Module, residual: Residual) -> list[nn.Module]:
    """The modules with weights from the branch's last matrix to its write: a norm behind it, and that matrix."""
    modules = [model.get_submodule(node.module) for node in _way_to_last_matrix(residual.connection.writes[0])]
    # PyTorch's attention is one function of several matrices: the last of its parts that hold any.
    return [[part for part in module.modules() if part._parameters][-1] for module in modules]


def _way_to_last_matrix(node: Node) -> Iterator[Node]:
    while not node.transforms:
        if normalised_by(node) is not None:
            yield node
        node = node.activations[0]
    yield node


def _scale(modules: list[nn.Module], factor: float) -> None:
    with torch.no_grad():
        for module in modules:
            for parameter in module.parameters():
                parameter.mul_(factor) if factor == factor else parameter.fill_(factor)


def _norm_of(residual: Residual) -> str:
    """The norm that the branch reads through, ends in, or whose result the next connection reads."""
    pending, seen, found = [residual.connection.writes[0]], set(), []
    while pending:
        node = pending.pop()
        if node in seen or node.index <= residual.connection.fork.index:
            continue
        seen.add(node)
        if normalised_by(node) is not None:
            found.append(node)
        pending += node.activations
    return min(found, key=lambda node: node.index).module
