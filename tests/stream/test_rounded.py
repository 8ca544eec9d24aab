"""Maps whose weights are rounded: their connections are what they are, and their levels are found, on any model."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import residuum

sys.path.insert(0, str(Path(__file__).parent))
import bitnets
import models

X = torch.randn(3, 2, 4)


@pytest.mark.parametrize("kind", [*bitnets.TRAINED, *bitnets.STORED], ids=lambda kind: kind.__name__)
def test_what_a_quantised_map_gives_back_is_no_gate(kind: type[nn.Module]) -> None:
    (stream,) = residuum.trace(bitnets.Net(kind), X).streams
    assert [(r.kind, r.placement) for r in stream.residuals] == [("identity", "pre")] * 3
    for m in residuum.flow(bitnets.Net(kind), X).all_measured:
        assert m.backward.identity > 0
        assert m.backward.elsewhere <= 1e-5 * (m.backward.identity + m.backward.branch)


class Gates(models.Stack):
    """Written from what the branch reads, as a size is, and yet more than one."""

    form = ""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(models.D, 1)

    def layer(self, i: int, x: Tensor) -> Tensor:
        h = self.norms[i](x)
        y = self.mlps[i](h)
        if self.form == "mean and map":
            return x + y * self.gate(h.mean(-2, keepdim=True))
        if self.form == "mean and sigmoid":
            return x + y * torch.sigmoid(h.mean(-1, keepdim=True))
        if self.form == "largest of a map":
            return x + y * self.gate(h).amax(-2, keepdim=True)
        if self.form == "entry by entry":
            return x + y * h
        if self.form == "squared":
            return x + y * y
        return x + y * self.mlps[i](x)


@pytest.mark.parametrize(
    "form", ["mean and map", "mean and sigmoid", "largest of a map", "entry by entry", "squared", "two branches"]
)
def test_a_gate_is_one_still(form: str) -> None:
    model = Gates()
    model.form = form
    assert [r.kind for r in residuum.trace(model, X).residuals] == ["gated"] * 3


class Scales(models.Stack):
    form = ""

    def layer(self, i: int, x: Tensor) -> Tensor:
        y = self.mlps[i](self.norms[i](x))
        if self.form == "number":
            return x + 0.5 * y
        if self.form == "of another map":
            return x + self.mlps[i].up.weight.abs().mean() * y
        return x + self.last.weight * y


@pytest.mark.parametrize("form", ["number", "of another map", "parameter"])
def test_a_scale_is_one_still(form: str) -> None:
    model = Scales()
    model.form = form
    assert [r.kind for r in residuum.trace(model, X).residuals] == ["scaled"] * 3


@pytest.mark.parametrize("kind", bitnets.TRAINED, ids=lambda kind: kind.__name__)
def test_the_levels_are_those_of_the_weights(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model = bitnets.Net(kind)
    found = residuum.flow(model, X).ternary
    assert [each.name for each in found] == [f"mlps.{i}.{end}.weight" for i in range(3) for end in ("up", "down")]
    assert all(each.learns for each in found)
    for each in found:
        w = model.get_parameter(each.name).detach()
        if kind is bitnets.WholeTensor:
            levels = (w - w.mean()).sign()
        elif kind is bitnets.Thresholds:
            levels = w.sign() * (w.abs() > 0.7 * w.abs().mean())
        elif kind is bitnets.OneProduct:
            levels = (w / w.abs().mean(1, keepdim=True)).round().clamp(-1, 1)
        elif kind is bitnets.Groups:
            halves = w.view(2, -1)
            levels = (halves / halves.abs().mean(1, keepdim=True)).round().clamp(-1, 1)
        else:
            levels = (w / w.abs().mean()).round().clamp(-1, 1)
        assert each.shares == pytest.approx([float((levels == level).float().mean()) for level in (-1, 0, 1)])
        assert each.sample.sum() == levels.sum()


class Given(nn.Module):
    """The same numbers for each token."""

    def __init__(self, values: list[float]) -> None:
        super().__init__()
        self.values = values

    def forward(self, x: Tensor) -> Tensor:
        return x * 0 + torch.tensor(self.values)


@pytest.mark.parametrize("kind", bitnets.TRAINED, ids=lambda kind: kind.__name__)
def test_what_rounding_leaves_of_what_a_map_reads(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model = bitnets.Net(kind)
    model.norms[0] = Given([-3.0, 0.005, 0.02, 0.0, 1.0, 2.0])
    first, *_ = residuum.flow(model, X).ternary
    read = model.norms[0](torch.zeros(3, 2, models.D))
    if kind in (bitnets.Thresholds, bitnets.TwoThresholds, bitnets.OwnFunction):
        assert first.read is None  # nothing rounds what these read
        return
    if kind is bitnets.WholeTensor:
        read = F.layer_norm(read, read.shape[-1:])
        largest = read.abs().max()
    elif kind is bitnets.Groups:
        read = read.unflatten(-1, (-1, 2))
        largest = read.abs().amax(-2, keepdim=True)
    else:
        largest = read.abs().amax(-1, keepdim=True)
    levels = (read / largest * 127).round()
    lost, top = ((levels == 0) & (read != 0)).float().mean(), (levels.abs() == 127).float().mean()
    assert first.read == pytest.approx((float(lost), float(top)))
    assert min(first.read) > 0


class Reader(nn.Linear):
    """A ternary map, and a rounding of what it reads that is given."""

    def __init__(self, rounding: Callable[[Tensor], Tensor]) -> None:
        super().__init__(models.D, models.D, bias=False)
        self.rounding = rounding

    def forward(self, x: Tensor) -> Tensor:
        levels, per_level = bitnets.to_ternary(self.weight)
        return F.linear(self.rounding(x), self.weight + (levels / per_level - self.weight).detach())


READINGS: dict[str, tuple[Callable[[Tensor], Tensor], tuple[float, float] | None]] = {
    "what was 0 is not lost": (lambda x: x.relu().mul(2).round(), (1 / 6, 1 / 6)),
    "in place": (lambda x: (x * 2).round_(), (2 / 6, 1 / 6)),
    "both ends of eight bits": (lambda x: (x * 1e3).round().clamp(-128, 127), (0, 5 / 6)),
    "limits first": (lambda x: (x * 1e3).clamp(-100, 100).round(), (0, 5 / 6)),
    "limits in eight bits": (
        lambda x: (x * 1e3).round().clamp(-128, 127).to(torch.int8).clamp(-128, 127).to(x.dtype),
        (0, 5 / 6),
    ),
    "as whole numbers": (lambda x: (x * 2).round().to(torch.int8).to(x.dtype), (2 / 6, 1 / 6)),
    "a limit on another view": (lambda x: (x * 2).round().mT.expand(3, 6, 2).clamp(-6, 3).mT, (2 / 6, 1 / 6)),
    "several roundings": (lambda x: (x * 2).round() + (x * 3).round(), None),
    "a step after it": (lambda x: torch.tanh((x * 2).round()), None),
    "nothing": (lambda x: x, None),
}


@pytest.mark.parametrize("kind", READINGS)
def test_readings(kind: str) -> None:
    rounding, expected = READINGS[kind]
    model = models.PreNorm()
    model.norms[1], model.mlps[1] = Given([-3.0, -0.2, 0.0, 0.2, 1.0, 4.0]), Reader(rounding)
    (found,) = residuum.flow(model, X).ternary
    assert found.read == (pytest.approx(expected) if expected else None)


class Strange(nn.Module):
    """Something is done on the side that looks like rounding."""

    def __init__(self, aside: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.aside, self.map = aside, nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.map(x)
        self.aside(x)
        return x


class round_(torch.autograd.Function):
    """Called as PyTorch's is, and computed elsewhere."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return torch.from_numpy(x.detach().numpy().round())


ASIDE: dict[str, Callable[[Tensor], object]] = {
    "nested": lambda x: torch.nested.as_nested_tensor([x[0, :1], x[0]], layout=torch.jagged).round(),
    "sparse": lambda x: x.relu().to_sparse().sign(),
    "sparse rows": lambda x: x[0].relu().to_sparse_csr().sign(),
    "signs of signs": lambda x: (x > 0).sign(),
    "nothing": lambda x: x.round()[:0].clamp(-8, 7),
    "complex": lambda x: torch.complex(x, x).sgn(),
    "one number": lambda x: x.sum().round().clamp(0, 1),
    "a function of one's own": lambda x: (x[0].round(), round_.apply(x)),
}


@pytest.mark.parametrize("kind", ASIDE)
@pytest.mark.filterwarnings("ignore:.*(Sparse|nested).*:UserWarning")
def test_what_looks_like_rounding_harms_nobody(kind: str) -> None:
    assert residuum.flow(Strange(ASIDE[kind]), X).rounded == []


def test_what_is_no_ternary_map() -> None:
    class Masked(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.weight * (self.weight.abs() > 0.1))

    class FourBits(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            step = self.weight.abs().max() / 7
            return F.linear(x, self.weight + ((self.weight / step).round() * step - self.weight).detach())

    assert residuum.flow(bitnets.Net(nn.Linear), X).rounded == []
    assert residuum.flow(bitnets.Net(Masked), X).rounded == []
    four = residuum.flow(bitnets.Net(FourBits), X)
    assert (len(four.rounded), four.ternary) == (6, [])


@pytest.mark.parametrize("by_hand", [False, True])
def test_outputs_without_a_weight_but_zero(by_hand: bool) -> None:
    model = bitnets.Net(bitnets.OwnFunction if by_hand else bitnets.FakeQuantised)
    with torch.no_grad():
        model.mlps[1].up.weight[:3] *= 1e-3
        model.mlps[2].up.weight[:, :3] *= 1e-3  # inputs, not outputs
    assert [each.dead_outputs for each in residuum.flow(model, X).ternary] == [0, 0, 3 / 12, 0, 0, 0]


def test_whether_a_rounded_weight_learns() -> None:
    model = bitnets.Net(bitnets.Forgotten)
    flow = residuum.flow(model, X)
    assert [each.learns for each in flow.ternary] == [False] * 6
    assert flow.parameters["mlps.0.up.weight"].verdict == "trains"  # by its size alone


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what torch.compile imports
def test_bitnet_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    from transformers.integrations.bitnet import AutoBitLinear, BitLinear, pack_weights

    def online(linear: nn.Linear) -> nn.Module:
        made = AutoBitLinear(linear.in_features, linear.out_features, False, online_quant=True)
        made.weight.data.copy_(linear.weight)
        return made

    def offline(linear: nn.Linear) -> nn.Module:
        made = AutoBitLinear(linear.in_features, linear.out_features, False).requires_grad_(False)
        made.weight.copy_(bitnets.to_ternary(linear.weight)[0])
        made.weight_scale.copy_(linear.weight.abs().mean())
        return made

    def packed(linear: nn.Linear) -> nn.Module:
        made = BitLinear(linear.in_features, linear.out_features, False, dtype=torch.float32)
        made.weight.copy_(pack_weights(bitnets.to_ternary(linear.weight)[0]))
        made.weight_scale.copy_(1 / linear.weight.abs().mean())
        return made

    config = transformers.BitNetConfig(
        vocab_size=31, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    for make, maps in ((None, 0), (online, 14), (offline, 0), (packed, 0)):
        model = transformers.BitNetForCausalLM(config).eval()
        with torch.no_grad():
            for name, module in list(model.model.named_modules()):
                if make is not None and isinstance(module, nn.Linear):
                    model.model.set_submodule(name, make(module))
        flow = residuum.flow(model, input_ids=torch.arange(10)[None])
        assert [(r.kind, r.placement) for r in flow.graph.residuals] == [("identity", "pre")] * 4
        assert len(flow.ternary) == maps
        assert all(each.learns and each.read is not None for each in flow.ternary)


class Shared(nn.Module):
    """Maps that share one parameter, each rounded by itself."""

    def __init__(self, cut: Callable[[Tensor], Iterable[Tensor]], *shape: int) -> None:
        super().__init__()
        self.weight, self.cut = nn.Parameter(torch.randn(*shape)), cut

    def forward(self, x: Tensor) -> Tensor:
        y = torch.zeros_like(x)
        for w in self.cut(self.weight):
            levels, per_level = bitnets.to_ternary(w)
            y = y + F.linear(x, w + (levels / per_level - w).detach())
        return y


CUTS: dict[str, tuple[Callable[[Tensor], Iterable[Tensor]], tuple[int, ...], list[str]]] = {
    "all": (lambda w: [w[:]], (6, 6), [""]),
    "fused": (lambda w: w.chunk(3), (18, 6), ["[0:6]", "[6:12]", "[12:18]"]),
    "fused and transposed": (lambda w: [part.mT for part in w.chunk(2, dim=1)], (6, 12), ["[:, 0:6]", "[:, 6:12]"]),
    "fused in groups": (lambda w: [w[:, k].reshape(6, 6) for k in (0, 2)], (2, 3, 3, 6), ["[:, 0]", "[:, 2]"]),
    "viewed": (lambda w: w.view(2, 6, 6), (12, 6), ["[0:6]", "[6:12]"]),
    "scaled before": (lambda w: (2 * w.detach()).split([6, 6])[1:], (12, 6), ["[6:12]"]),
    "experts": (lambda w: w.unbind(), (3, 6, 6), ["[0]", "[1]", "[2]"]),
    "experts by a router": (lambda w: [w[k] for k in (2, 0, 2)], (3, 6, 6), ["[2]", "[0]"]),
    "cut twice": (lambda w: w[1].float().clone().chunk(2), (2, 12, 6), ["[1][0:6]", "[1][6:12]"]),
    "no block": (lambda w: [w[::2], w[[5, 4, 3, 2, 1, 0]]], (12, 6), ["[?]", "[?]"]),
    "joined": (lambda w: [torch.cat([w[:3], w[6:9]])], (12, 6), ["[?]"]),
}


@pytest.mark.parametrize("kind", CUTS)
def test_each_block_of_a_parameter_is_a_map(kind: str) -> None:
    cut, shape, blocks = CUTS[kind]
    model = models.PreNorm()
    model.mlps[1] = shared = Shared(cut, *shape)
    found = residuum.flow(model, X).ternary
    assert [each.name for each in found] == [f"mlps.1.weight{block}" for block in blocks]
    for each, w in zip(found, cut(shared.weight.detach()), strict=False):
        assert each.shares is not None
        assert each.shares[1] == pytest.approx(float((bitnets.to_ternary(w)[0] == 0).float().mean()))


def test_a_parameter_made_of_several_is_no_block() -> None:
    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ParameterList(torch.randn(3, models.D) for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            w = torch.cat(list(self.parts))
            return F.linear(x, w + (w.sign() - w).detach())

    model = models.PreNorm()
    model.mlps[1] = Joined()
    assert [(each.name, each.block) for each in residuum.flow(model, X).ternary] == [("mlps.1", "")]
