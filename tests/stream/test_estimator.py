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

sys.path.insert(0, str(Path(__file__).parent))
import bitnets

X = torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def cosines_of(model: nn.Module) -> dict[str, float | None]:
    """As a monitor says them; gradients are as before."""
    monitor = residuum.Monitor(model, every=1, to=[].append)
    kept = [p.grad for p in model.parameters()]
    chance = torch.get_rng_state()
    with monitor:
        loss_of(model).backward()
        torch.set_rng_state(chance)
        monitor.rerun(lambda: loss_of(model))
    for p, gradient in zip(model.parameters(), kept, strict=True):
        p.grad = gradient
    assert monitor.last is not None
    return {each["name"]: each["cosine"] for each in monitor.last.get("ternary", ())}


def loss_of(model: nn.Module) -> Tensor:
    return model(X).square().mean()


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
    if kind in bitnets.SIGNS:
        with pytest.warns(UserWarning, match="because (signs or a threshold make|.* rounds)"):
            assert set(cosines_of(model).values()) == {None}
        return
    found = cosines_of(model)
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
    """Rounded without a scale: what is left unrounded is W itself, and is then written into."""
    with torch.no_grad():
        levels = w.round().clamp_(-1, 1).mul_(0.7)
    return w * 0.7 + (levels - w * 0.7).detach()


def one_line(w: Tensor) -> Tensor:
    """The limit of the scale stands beside that of the levels."""
    return w + ((w / w.abs().mean().clamp(0.9, 5.0)).round().clamp(-1, 1) * w.abs().mean().clamp(0.9, 5.0) - w).detach()


def limits_first(w: Tensor) -> Tensor:
    size = w.abs().mean()
    return w + ((w / size).clamp(-1, 1).round() * size - w).detach()


def limited(w: Tensor) -> Tensor:
    """What `limits_first` is without its rounding: a limit that comes before it stays."""
    size = w.abs().mean()
    return w + ((w / size).clamp(-1, 1) * size - w).detach()


def into_another(w: Tensor) -> Tensor:
    size, levels = w.detach().abs().mean(), torch.empty_like(w)
    torch.round(w.detach() / size, out=levels)
    torch.clamp(input=levels, min=-1, max=1, out=levels)
    return w + (levels * size - w).detach()


def limits_last(w: Tensor) -> Tensor:
    """The estimator is within the limits."""
    size = w.detach().abs().mean()
    return (w / size + ((w / size).round() - w / size).detach()).clamp(-1, 1) * size


UNROUNDED: dict[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]] = {
    limits_first: limited,
    of_itself: lambda w: w * 0.7,
}
"""What is left without the rounding, where that is not W."""


@pytest.mark.parametrize("again", [False, True], ids=["", "checkpointed"])
@pytest.mark.parametrize("quantise", [plain, in_place, one_line, limits_first, of_itself, into_another, limits_last])
def test_each_block_and_nothing_is_changed(quantise: Callable[[Tensor], Tensor], again: bool) -> None:
    torch.manual_seed(0)
    chain = Chain(quantise, again)
    model = nn.Sequential(chain)
    chance = torch.get_rng_state()
    found = cosines_of(model)
    assert list(found) == ["0.weight[0]", "0.weight[1]"]
    torch.set_rng_state(chance)
    ours = gradients_of(model)["0.weight"].clone()
    chain.quantise = UNROUNDED.get(quantise, lambda w: w)
    torch.set_rng_state(chance)
    true = gradients_of(model)["0.weight"]
    assert list(found.values()) == pytest.approx([between(ours[k], true[k]) for k in range(2)], abs=1e-9)


def test_what_cannot_be_told() -> None:
    torch.manual_seed(0)
    model = bitnets.Net(bitnets.FakeQuantised).double()
    model.mlps[1].up.weight.requires_grad_(False)
    model.out.weight.data[:] = 0  # no gradient passes
    assert set(cosines_of(model).values()) == {None}
    assert cosines_of(bitnets.Net(nn.Linear).double()) == {}


class Strange(nn.Module):
    """A residual block with a ternary map, and with a rounding that is not known to be a quantiser's."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form, self.table = form, nn.Embedding(4, 4)
        self.weight, self.sign = (nn.Parameter(torch.randn(4, 4)) for _ in range(2))
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        size = self.weight.detach().abs().mean()
        levels = self.rounded(self.weight.detach() / size).clamp(-1, 1)
        h, w = torch.tanh(x), self.weight + (levels * size - self.weight).detach()
        if self.form == "a zero point":
            h = h + ((h.detach() * 7 - 0.3).round() / 7 + 0.3 / 7 - h).detach()
        if self.form == "to the lower":
            h = h + ((h.detach() * 7 + 0.5).floor() / 7 - h).detach()
        if self.form == "gated":
            h = (h + ((h.detach() * 7).round() / 7 - h).detach()) * torch.sigmoid(h)
        if self.form == "another map of signs":
            h = h + F.linear(h, self.sign + (self.sign.sign() - self.sign).detach())
        if self.form == "one helper for two":
            h = h + self.table(self.rounded(torch.linspace(0, 3, x.shape[-2], dtype=x.dtype)).int())
        return x + F.linear(h, w)

    def rounded(self, value: Tensor) -> Tensor:
        return value.round()


@pytest.mark.parametrize(
    "form", ["a zero point", "to the lower", "gated", "another map of signs", "one helper for two"]
)
def test_where_more_is_rounded_nothing_is_said(form: str) -> None:
    """A pass with some roundings left is not the one without."""
    torch.manual_seed(0)
    with pytest.warns(UserWarning, match="cosine is left out at step 1, because (signs|the model rounds)"):
        assert set(cosines_of(Strange(form)).values()) == {None}
    assert None not in cosines_of(Strange("")).values()


def test_no_hook_of_a_parameter_hears_of_it() -> None:
    torch.manual_seed(0)
    model, heard = Chain(plain), []
    handle = model.weight.register_hook(lambda gradient: heard.append(gradient))
    cosines_of(model)
    assert len(heard) == 1
    loss_of(model).backward()
    assert len(heard) == 2
    handle.remove()
    loss_of(model).backward()
    assert len(heard) == 2


@pytest.mark.parametrize("block", ["", "[3]", "[1:3]", "[:, 0:2]", "[2][0:1]", "[:, 1]"])
def test_a_block_by_its_name(block: str) -> None:
    whole = torch.arange(24).view(4, 3, 2)
    assert torch.equal(part_of(whole, block), eval(f"whole{block}"))
