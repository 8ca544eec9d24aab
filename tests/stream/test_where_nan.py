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
    model.map.register_buffer("scale", torch.tensor([1.0, math.nan]))
    assert str(residuum.where_nan(model, X)) == "buffer map.scale holds NaN already"
    with torch.no_grad():
        model.map.bias[1] = math.inf
    assert str(residuum.where_nan(model, X)) == "parameter map.bias holds infinity already"


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
