"""The first operation that made a NaN: planted ones are found at their line, and meant infinities are no fault."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import residuum

NEVER = -math.inf


class Around(nn.Module):
    """A linear map and, behind it, what a test puts there."""

    def __init__(self, then: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.map = nn.Linear(4, 4)
        self.then = Then(then)

    def forward(self, x: Tensor) -> Tensor:
        return self.then(self.map(x))


class Then(nn.Module):
    def __init__(self, then: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = then

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


X = torch.linspace(-1, 1, 12).view(3, 4)


def in_place(y: Tensor) -> Tensor:
    y = y * 1
    y[1].sub_(100).log_()
    return y


def draw(y: Tensor) -> Tensor:
    return torch.multinomial((y - 100).log().softmax(-1), 1) * y


PLANTED = [
    # what follows the linear map; what was found, in which pass, by which operation
    (lambda y: (y - 100).log(), "NaN", "forward", "log"),
    (lambda y: (y - 100).log().relu() + y.exp(), "NaN", "forward", "log"),
    (lambda y: (y * 1000).abs().exp(), "infinity", "forward", "exp"),
    (lambda y: (y * 1000).abs().exp() - (y * 1000).abs().exp(), "infinity", "forward", "exp"),
    (lambda y: y / (y * 0), "infinity", "forward", "div"),
    (lambda y: y.half().add(9) * 60000, "infinity", "forward", "mul"),
    (lambda y: y.masked_fill(y < 100, NEVER).softmax(-1), "NaN", "forward", "softmax"),
    (lambda y: torch.full((4,), NEVER) * (y * 0), "NaN", "forward", "mul"),
    (lambda y: y * math.nan, "NaN", "forward", "mul"),
    (in_place, "NaN", "forward", "log_"),
    (draw, "NaN", "forward", "log"),
    (lambda y: y * 0 + (y * 0).sqrt(), "infinity", "backward", "sqrt"),
    (lambda y: torch.where(y > 100, (y * 0).sqrt(), y), "NaN", "backward", "sqrt"),
    (lambda y: torch.where(y > 100, y, (y * 0).pow(0.5) * 0 + y), "NaN", "backward", "pow"),
]


@pytest.mark.parametrize(("then", "found", "where", "op"), PLANTED)
def test_planted(then: Callable[[Tensor], Tensor], found: str, where: str, op: str) -> None:
    maker = residuum.where_nan(Around(then), X)
    assert maker is not None
    assert (maker.found, maker.where, maker.name.strip("_"), maker.module) == (found, where, op.strip("_"), "then")
    code = then.__code__
    assert maker.source.file == code.co_filename == str(Path(__file__))
    assert maker.source.line in {line for *_, line in code.co_lines()}
    assert str(maker).endswith(f"{maker.source.file}:{maker.source.line}")


MEANT = [
    lambda y: y,
    lambda y: y.masked_fill(y > 0, NEVER).softmax(-1),
    lambda y: (y + torch.full((4, 4), NEVER).triu(1)[:3]).softmax(-1),
    lambda y: nn.functional.scaled_dot_product_attention(y[None], y[None], y[None], is_causal=True),
    lambda y: torch.where((y - 100) > 0, (y - 100).log(), y),  # thrown away, and its gradient is 0 / −100
    lambda y: torch.empty(3, 4).copy_(y) + y,
    lambda y: y.clamp(min=NEVER).max(-1).values,
    lambda y: torch.logsumexp(y.masked_fill(y > 0, NEVER), -1),
    lambda y: y.detach() * 2,  # nothing to train: forward only
]


@pytest.mark.parametrize("then", MEANT)
def test_meant(then: Callable[[Tensor], Tensor]) -> None:
    assert residuum.where_nan(Around(then), X) is None


def test_in_the_loss() -> None:
    maker = residuum.where_nan(Around(lambda y: y), X, loss=lambda y: (y * 0).sum() / 0)
    assert (maker.found, maker.where, maker.source.file) == ("NaN", "forward", str(Path(__file__)))
    masked = Around(lambda y: y.masked_fill(y < 100, NEVER))  # meant in the output, but no loss can mean it
    assert residuum.where_nan(masked, X, loss=lambda y: y.sum()).found == "infinity"


def test_what_held_it_before_is_named() -> None:
    model = Around(lambda y: y)
    broken = X.clone()
    broken[1, 2] = math.nan
    assert str(residuum.where_nan(model, broken)) == "input 0 holds NaN already"
    assert residuum.where_nan(model, x=broken).name == "x"
    broken[1, 2] = math.inf
    assert str(residuum.where_nan(model, broken)) == "input 0 holds infinity already"
    model.register_buffer("scale", torch.tensor([1.0, 1.0, math.nan, 1.0]))
    model.then.function = lambda y: y * model.scale
    assert str(residuum.where_nan(model, X)) == "buffer scale holds NaN already"
    model.scale[2] = math.inf
    assert str(residuum.where_nan(model, X)) == "buffer scale holds infinity already"
    with torch.no_grad():
        model.map.bias[1] = -math.inf  # no mask: it trains
    assert str(residuum.where_nan(model, X)) == "parameter map.bias holds infinity already"


def test_what_held_it_before_and_does_no_harm_is_no_answer() -> None:
    broken = X.clone()
    broken[1, 2] = math.nan
    cleaning = nn.Sequential(Then(torch.nan_to_num), nn.Linear(4, 4))
    assert residuum.where_nan(cleaning, broken) is None
    model = Around(lambda y: (y.mm(y.mT) + model.mask).softmax(-1) @ y)
    model.mask = nn.Parameter(torch.full((3, 3), NEVER).triu(1), requires_grad=False)
    model.unused = nn.Parameter(torch.full((3,), math.nan))
    assert residuum.where_nan(model, X) is None
    norm = nn.BatchNorm1d(4)
    norm.running_var.fill_(math.nan)
    assert residuum.where_nan(norm, X) is None
    assert str(residuum.where_nan(norm.eval(), X)) == "buffer running_var holds NaN already"


class Two(nn.Module):
    """Each branch makes an infinity in the backward pass; the relu drops the second one's."""

    def __init__(self, real: bool) -> None:
        super().__init__()
        self.a, self.b, self.real = nn.Linear(4, 4), nn.Linear(4, 4), real

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        if self.real:
            h = h + torch.acos(h - h.detach() + 1)
        return h + torch.sqrt(torch.relu(self.b(x)))


def test_an_infinity_that_reaches_no_gradient_is_not_blamed() -> None:
    assert residuum.where_nan(Two(False), X) is None
    assert residuum.where_nan(Two(True), X).name == "acos"


class Broken(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x * 1

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return gradient * math.nan


def test_a_custom_function_is_blamed_itself() -> None:
    seen = residuum.where_nan(nn.Sequential(Around(lambda y: Broken.apply(y)), Then(torch.tanh)), X)
    assert (seen.name, seen.module, seen.source.file) == ("Broken", "0.then", str(Path(__file__)))
    out_of_sight = residuum.where_nan(nn.Sequential(Around(Broken.apply), Then(torch.tanh)), X)  # looked up too early
    assert (out_of_sight.name, out_of_sight.module, out_of_sight.source) == ("BrokenBackward", "", None)


def hooked(y: Tensor) -> Tensor:
    y = y.exp()
    y.register_hook(lambda gradient: gradient * math.nan)
    return y


def test_hooks_and_sums_of_gradients() -> None:
    maker = residuum.where_nan(Around(hooked), X)
    assert (maker.name, maker.module) == ("a hook on the gradient of exp", "then")
    (finding,) = [f for f in residuum.audit(Around(hooked), X).findings if f.code == "RS204"]
    assert "a hook on the gradient of exp made NaN in the backward pass of then" in finding.message
    model = Around(lambda y: y)
    model.map.bias.register_hook(lambda gradient: gradient / 0)
    assert residuum.where_nan(model, X).name == "a hook on the gradient of parameter map.bias"
    half = Around(lambda y: (h := y.exp().half()) + h)
    maker = residuum.where_nan(half, X, loss=lambda y: y.float().sum() * 60000)
    assert (maker.found, maker.name) == ("infinity", "the sum of the gradients of half")


def test_the_gradient_of_an_input() -> None:
    then = Then(lambda x: x + (x - x.detach()).sqrt())
    assert residuum.where_nan(nn.Sequential(then, nn.Linear(4, 4)), X).name == "sqrt"
    assert not X.requires_grad


def overwritten(y: Tensor) -> Tensor:
    y = y * 1
    half = y.chunk(2, -1)[0]  # may not be read with a gradient any more, but without
    y.mul_(0)
    with torch.no_grad():
        shift = half.sum()
    return y.sqrt() + shift


def test_a_view_whose_base_was_overwritten() -> None:
    assert residuum.where_nan(Around(overwritten), X).name == "sqrt"


def test_a_sparse_gradient() -> None:
    model = nn.Sequential(nn.Embedding(5, 4, sparse=True), Then(lambda x: (x * 0).sqrt()))
    assert residuum.where_nan(model, torch.tensor([1, 3])).name == "sqrt"
    model[1].function = torch.tanh
    assert residuum.where_nan(model, torch.tensor([1, 3])) is None


def test_the_flow_looks_for_it_only_where_something_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = []
    model = Around(lambda y: runs.append(1) or y)
    assert residuum.flow(model, X).nan_maker is None
    assert len(runs) == 1
    flow = residuum.flow(Around(lambda y: (y * 0).sqrt()), X)
    assert flow.nan_maker.where == "backward"
    assert flow.not_finite == ["map.weight"] or set(flow.not_finite) == {"map.weight", "map.bias"}


def test_the_model_is_left_as_it_was_found() -> None:
    model = Around(lambda y: nn.functional.dropout(y, 0.5).log())
    model.map.weight.grad = torch.ones(4, 4)
    random, before = torch.get_rng_state(), {n: p.clone() for n, p in model.named_parameters()}
    assert residuum.where_nan(model, X) is not None
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.equal(model.map.weight.grad, torch.ones(4, 4))
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    assert not torch.nn.modules.module._global_forward_hooks
    assert torch.overrides._get_current_function_mode() is None


def test_what_cannot_run_says_so() -> None:
    with pytest.raises(residuum.TraceError, match="mat1 and mat2 shapes"):
        residuum.where_nan(Around(lambda y: y), torch.randn(3, 9))
    with pytest.raises(residuum.TraceError, match="the given loss raised KeyError"):
        residuum.where_nan(Around(lambda y: y), X, loss=lambda y: {}["loss"])
