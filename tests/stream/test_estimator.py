"""The straight-through estimator's gradient against that of the same model with nothing rounded."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import residuum
from residuum.stream.block import part_of
from residuum.stream.estimator import estimator_cosines

sys.path.insert(0, str(Path(__file__).parent))
import bitnets

X = torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def cosines_of(model: nn.Module) -> dict[str, float | None]:
    maps = residuum.flow(model, X).ternary
    found = estimator_cosines(model, lambda: model(X).square().mean(), maps)
    return dict(zip((each.name for each in maps), found, strict=True))


def gradients_of(model: nn.Module) -> dict[str, Tensor]:
    model.zero_grad()
    model(X).square().mean().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def float_twin(model: nn.Module, kind: type[nn.Module]) -> nn.Module:
    """The same weights in maps that round nothing."""
    torch.manual_seed(0)
    twin = bitnets.Net(nn.Linear)
    twin.load_state_dict({name: value for name, value in model.state_dict().items() if not name.endswith(".step")})
    if kind is bitnets.Groups:  # which has no bias, and adds what it computes of every other output
        for mlp in twin.mlps:
            mlp.up, mlp.down = (Ungrouped.of(linear) for linear in (mlp.up, mlp.down))
    return twin.double()


class Ungrouped(nn.Linear):
    @classmethod
    def of(cls, linear: nn.Linear) -> Ungrouped:
        made = cls(linear.in_features, linear.out_features)
        made.load_state_dict(linear.state_dict())
        return made

    def forward(self, x: Tensor) -> Tensor:
        w = self.weight.view(2, -1, x.shape[-1] // 2, 2)
        return torch.einsum("...ik,goik->...gok", x.unflatten(-1, (-1, 2)), w).sum(-1).flatten(-2)


@pytest.mark.parametrize("kind", bitnets.TRAINED, ids=lambda kind: kind.__name__)
def test_the_cosine_is_that_with_a_model_that_rounds_nothing(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model = bitnets.Net(kind).double()
    with torch.no_grad():
        for mlp in model.mlps:  # some of these maps have none
            mlp.up.bias.zero_(), mlp.down.bias.zero_()
    found = cosines_of(model)
    if kind in bitnets.SIGNS:
        assert set(found.values()) == {None}
        return
    ours, true = gradients_of(model), gradients_of(float_twin(model, kind))
    for name, cosine in found.items():
        assert cosine == pytest.approx(between(ours[name], true[name]), abs=1e-9)
        assert 0 < cosine < 0.999


def between(one: Tensor, other: Tensor) -> float:
    return float(F.cosine_similarity(one.flatten(), other.flatten(), 0))


class Chain(nn.Module):
    """Residual blocks whose map rounds in a way that is given."""

    def __init__(self, quantise: Callable[[Tensor], Tensor], again: bool = False) -> None:
        super().__init__()
        self.up, self.weight = nn.Linear(4, 6), nn.Parameter(torch.randn(2, 6, 6))
        self.quantise, self.again = quantise, again
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(x)
        for w in self.weight:
            x = x + (checkpoint(self.branch, x, w, use_reentrant=False) if self.again else self.branch(x, w))
        return x

    def branch(self, x: Tensor, w: Tensor) -> Tensor:
        return F.dropout(F.linear(torch.tanh(x), self.quantise(w)), 0.2)


def plain(w: Tensor) -> Tensor:
    levels, per_level = bitnets.to_ternary(w)
    return w + (levels / per_level - w).detach()


def in_place(w: Tensor) -> Tensor:
    size = w.detach().abs().mean()
    return w + ((w / size).detach().round_().clamp_(-1, 1).mul_(size) - w).detach()


def of_itself(w: Tensor) -> Tensor:
    """Rounded without a scale, so that what stays unrounded is W itself, and is then written into."""
    with torch.no_grad():
        levels = w.round().clamp_(-1, 1).mul_(0.7)
    return w * 0.7 + (levels - w * 0.7).detach()


def one_line(w: Tensor) -> Tensor:
    """The limit of the scale stands beside that of the levels."""
    return w + ((w / w.abs().mean().clamp(0.9, 5.0)).round().clamp(-1, 1) * w.abs().mean().clamp(0.9, 5.0) - w).detach()


def limits_first(w: Tensor) -> Tensor:
    size = w.abs().mean()
    return w + ((w / size).clamp(-1, 1).round() * size - w).detach()


@pytest.mark.parametrize("again", [False, True], ids=["", "checkpointed"])
@pytest.mark.parametrize("quantise", [plain, in_place, one_line, limits_first, of_itself])
def test_each_block_and_nothing_is_changed(quantise: Callable[[Tensor], Tensor], again: bool) -> None:
    torch.manual_seed(0)
    chain = Chain(quantise, again)
    model = nn.Sequential(chain)
    maps = residuum.flow(model, X).ternary
    assert [each.name for each in maps] == ["0.weight[0]", "0.weight[1]"]
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    chance = torch.get_rng_state()
    found = estimator_cosines(model, lambda: model(X).square().mean(), maps)
    assert torch.equal(chance, torch.get_rng_state())
    assert all(torch.equal(p, before[name]) and p.grad is None for name, p in model.named_parameters())
    ours = gradients_of(model)["0.weight"].clone()
    chain.quantise = lambda w: w * 0.7 if quantise is of_itself else w
    torch.set_rng_state(chance)
    true = gradients_of(model)["0.weight"]
    assert found == pytest.approx([between(ours[k], true[k]) for k in range(2)], abs=1e-9)


def test_what_cannot_be_told() -> None:
    torch.manual_seed(0)
    model = bitnets.Net(bitnets.FakeQuantised).double()
    model.mlps[1].up.weight.requires_grad_(False)
    model.out.weight.data[:] = 0  # no gradient passes
    assert set(cosines_of(model).values()) == {None}
    assert cosines_of(bitnets.Net(nn.Linear).double()) == {}


@pytest.mark.parametrize("block", ["", "[3]", "[1:3]", "[:, 0:2]", "[2][0:1]", "[:, 1]"])
def test_a_block_by_its_name(block: str) -> None:
    whole = torch.arange(24).view(4, 3, 2)
    assert torch.equal(part_of(whole, block), eval(f"whole{block}"))
