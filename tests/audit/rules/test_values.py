"""RS3xx: each rule fires on a planted fault and not on the healthy twin."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import residuum

sys.path.insert(0, str(Path(__file__).parent))
from stack import Stack, found, variant


@pytest.mark.parametrize("code", [f"RS3{n:02}" for n in range(1, 12)])
def test_the_healthy_twin_has_none(code: str) -> None:
    assert found(Stack(), code) == []


def test_rs302_dominating_branch() -> None:
    (finding,) = found(variant(join=lambda self, i, x: x + self.branch(i, x) * (1e4 if i == 1 else 1)), "RS302")
    assert finding.message.startswith("connection 1")
    assert finding.severity == "warning"
    assert found(variant(join=lambda self, i, x: x + self.branch(i, x) * (30 if i == 1 else 1)), "RS302") == []


def test_rs303_stream_growth() -> None:
    (finding,) = found(variant(join=lambda self, i, x: x + 20 * self.downs[i](self.ups[i](x))), "RS303")
    assert float(finding.message.partition(" is ")[2].split()[0]) > 1e3
    assert found(variant(join=lambda self, i, x: x + 2 * self.downs[i](self.ups[i](x))), "RS303") == []


def test_rs304_rank_collapse() -> None:
    def attend(keep: float) -> Stack:
        """From the second layer on every position reads the mean of all, and keeps so much of itself."""

        def join(self: Stack, i: int, x: Tensor) -> Tensor:
            read = x.mean((0, 1), keepdim=True).expand_as(x) if i else x
            return (keep if i else 1.0) * x + self.downs[i](torch.tanh(self.ups[i](read)))

        model = type("Attending", (Stack,), {"join": join})(width=24)
        model.embed = nn.Linear(30, 24)
        return model

    x = torch.randn(3, 10, 30)
    (finding,) = [f for f in residuum.audit(attend(0.3), x).findings if f.code == "RS304"]
    assert "the state's effective rank falls from" in finding.message
    assert [f for f in residuum.audit(attend(1.0), x).findings if f.code == "RS304"] == []
    narrow = residuum.audit(Stack(), torch.randn(1, 4, 7))
    assert narrow.skipped["RS304"] == "no stream has two connections and a first state of effective rank 8 or more"


def test_rs305_outlier_dimension() -> None:
    def tower(height: float):
        def join(self: Stack, i: int, x: Tensor) -> Tensor:
            return x + self.branch(i, x) + height * self.norms[i].bias.new_tensor([1.0] + 11 * [0.0])

        return variant(join=join)

    assert [f.severity for f in found(tower(20.0), "RS305")] == ["info"]
    assert [f.severity for f in found(tower(2e4), "RS305")] == ["warning"]
    assert found(tower(0.1), "RS305") == []


@pytest.mark.parametrize(("kept", "severity", "stuck"), [((5, 1, 1), "info", 0), ((5, 4, 12), "warning", 1)])
def test_rs301_and_rs203_a_branch_that_this_run_dropped(kept: tuple[int, ...], severity: str, stuck: int) -> None:
    """No row of the five was kept; that every single entry was dropped is no chance."""

    def join(self: Stack, i: int, x: Tensor) -> Tensor:
        return x + self.branch(i, x) * (torch.empty(kept).bernoulli_(0.0) if i == 2 else 1)

    (finding,) = found(variant(join=join), "RS301")
    assert (finding.severity, len(found(variant(join=join), "RS203"))) == (severity, stuck)


def test_rs306_redundant_block() -> None:
    scaled = variant(join=lambda self, i, x: x + (1e-3 if i == 3 else 1.0) * self.branch(i, x))
    (finding,) = found(scaled, "RS306")
    assert finding.message.startswith("connection 3")
    assert finding.severity == "info"  # it stands behind a scale of its own
    model = Stack()
    with torch.no_grad():
        model.downs[3].weight.mul_(1e-3)
        model.downs[3].bias.mul_(1e-3)
    assert [f.severity for f in found(model, "RS306")] == ["warning"]


def test_rs307_not_the_identity_at_the_start() -> None:
    model = Stack()
    for i in (0, 1, 2, 4):
        nn.init.zeros_(model.downs[i].weight)
        nn.init.zeros_(model.downs[i].bias)
    (finding,) = found(model, "RS307")
    assert finding.message.startswith("connection 3 ")
    assert finding.message.endswith("but 4 of the stream's 5 connections write exactly nothing")
    nn.init.zeros_(model.downs[3].weight)
    nn.init.zeros_(model.downs[3].bias)
    assert found(model, "RS307") == []


class Adapted(nn.Linear):
    """W x + 2 B A dropout(x), in another order of operations than any library's."""

    def __init__(self, base: nn.Linear, size: float) -> None:
        super().__init__(base.in_features, base.out_features)
        self.requires_grad_(False)
        self.thin = nn.Linear(base.in_features, 2, bias=False)
        self.back = nn.Parameter(size * torch.randn(2, base.out_features))

    def forward(self, x: Tensor) -> Tensor:
        return 2 * (self.thin(nn.functional.dropout(x, 0.1, self.training)) @ self.back) + super().forward(x)


@pytest.mark.parametrize(("size", "expected"), [(0.0, ["info"]), (1e-6, ["warning"] * 5), (0.1, [])])
def test_rs308_idle_adapter(size: float, expected: list[str]) -> None:
    model = Stack()
    model.ups = nn.ModuleList(Adapted(up, size) for up in model.ups)
    findings = found(model, "RS308")
    assert [f.severity for f in findings] == expected
    seen = residuum.flow(model, torch.randn(5, 4, 7))
    assert [a.base for a in seen.adapters] == [f"ups.{i}.weight" for i in range(5)]
    up = model.ups[2]
    product = (up.thin.weight.T @ up.back).norm().item()
    assert seen.adapters[2].product_norm == pytest.approx(product, rel=1e-5)
    assert found(model, "RS203") == []  # what lies behind a zero is at its start


class Ternary(nn.Linear):
    """BitNet's straight-through weight: round(w / mean|w|), clamped to −1, 0, 1."""

    factor = 1.0

    @classmethod
    def stack(cls) -> Stack:
        model = Stack()
        model.ups = nn.ModuleList(cls(12, 20) for _ in range(5))
        return model

    def forward(self, x: Tensor) -> Tensor:
        scale = self.factor * self.weight.abs().mean()
        quantised = (self.weight / scale).round().clamp(-1, 1) * scale
        return nn.functional.linear(x, self.weight + (quantised - self.weight).detach(), self.bias)


def test_rs309_collapsed_ternary_weight() -> None:
    model = Ternary.stack()
    assert found(model, "RS309") == []
    model.ups[1].factor = 100.0
    (finding,) = found(model, "RS309")
    assert finding.message == "1 weight is rounded to a single value: ups.1.weight"
    assert finding.severity == "error"
    nn.init.constant_(model.ups[1].weight, 5.0)
    model.ups[1].factor = 0.1  # everything is clamped
    assert len(found(model, "RS309")) == 1
    nn.init.zeros_(model.ups[1].weight)
    model.ups[1].factor = 1.0
    model.ups[1].forward = lambda x: nn.functional.linear(x, model.ups[1].weight.round())
    assert found(model, "RS309") == []  # a matrix that starts at zero


def test_rs310_and_rs311_dead_ternary_weights() -> None:
    model = Ternary.stack()
    assert found(model, "RS310") == found(model, "RS311") == []
    with torch.no_grad():
        model.ups[3].weight[1, 2] = 1e3  # the mean grows with it
        model.ups[1].weight[:3] *= 1e-2
    (finding,) = found(model, "RS310")
    assert finding.message == "1 ternary weight is almost all 0: ups.3.weight (99.6%)"
    assert finding.names == ("ups.3.weight",)
    first, second = found(model, "RS311")[0].names
    assert (first, second) == ("ups.1.weight", "ups.3.weight")  # 3 of 20, and all but one
    with torch.no_grad():
        model.ups[1].weight[:3] *= 1e-9
        model.ups[3] = Ternary(12, 20)
    assert found(model, "RS310") == []
    (finding,) = found(model, "RS311")
    assert finding.message == "outputs of 1 ternary map have no weight but 0: ups.1.weight (15% of them)"
    with torch.no_grad():
        model.ups[1].weight[1:3] = torch.randn(2, 12)  # one of 20 is no tenth
    assert found(model, "RS311") == []


def test_rs310_and_rs311_each_part_of_a_fused_weight() -> None:
    class Fused(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            sizes = [part.abs().mean() for part in self.weight.chunk(2)]
            rounded = [(w / s).round().clamp(-1, 1) * s for w, s in zip(self.weight.chunk(2), sizes, strict=True)]
            learning = [w + (t - w).detach() for w, t in zip(self.weight.chunk(2), rounded, strict=True)]
            return torch.cat([nn.functional.linear(x, w) for w in learning], -1)

    model = Stack()
    model.ups = nn.ModuleList(Fused(12, 20) for _ in range(5))
    assert found(model, "RS310") == found(model, "RS311") == []
    with torch.no_grad():
        model.ups[2].weight[11, 3] = 1e3  # in the second part
    for code in ("RS310", "RS311"):
        (finding,) = found(model, code)
        assert finding.names == ("ups.2.weight[10:20]",)


def test_rs310_rounding_by_the_largest_weight() -> None:
    class ByTheLargest(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            scale = self.weight.abs().max()
            return nn.functional.linear(x, self.weight + ((self.weight / scale).round() - self.weight).detach())

    model = Stack(width=512)
    model.ups = nn.ModuleList(ByTheLargest(512, 20) for _ in range(5))
    for up in model.ups:
        nn.init.normal_(up.weight)
    (finding,) = found(model, "RS310")
    assert len(finding.names) == 5


def test_rs301_a_branch_that_can_never_train() -> None:
    def zeroed(*names: str) -> Stack:
        model = Stack()
        for name in names:
            nn.init.zeros_(getattr(model, name)[2].weight)
            nn.init.zeros_(getattr(model, name)[2].bias)
        model.downs[2].bias = None
        return model

    assert [f.severity for f in found(zeroed("downs"), "RS301")] == ["info"]
    (finding,) = found(zeroed("ups", "downs"), "RS301")
    assert finding.severity == "warning"
    assert finding.message.endswith("writes exactly nothing, and no parameter of it gets a gradient")
    dropped = variant(join=lambda self, i, x: x + nn.functional.dropout(self.branch(i, x), float(i == 2)))
    assert [f.severity for f in found(dropped, "RS301")] == ["warning"]


def test_rs302_a_skip_of_zeros_is_not_drowned() -> None:
    assert found(variant(join=lambda self, i, x: (x if i else x * 0) + self.branch(i, x)), "RS302") == []


def test_rs306_compares_like_with_like() -> None:
    """Feed-forwards that all write little beside their attention."""

    class Block(nn.Module):
        def __init__(self, size: float) -> None:
            super().__init__()
            self.size, self.mix, self.map = size, nn.Linear(12, 12), nn.Linear(12, 12)

        def forward(self, x: Tensor) -> Tensor:
            x = x + self.mix(x)
            return x + self.size * self.map(x)

    model = Stack()
    model.last = nn.Sequential(*(Block(1e-2) for _ in range(5)))
    assert found(model, "RS306") == []
    for i, block in enumerate(model.last):
        block.size = 0.003 if i == 3 else 0.3
    (finding,) = found(model, "RS306")
    assert "(last.3.map)" in finding.message


def test_rs308_an_adapter_of_two_zero_matrices_never_trains() -> None:
    model = Stack()
    model.ups = nn.ModuleList(Adapted(up, 0.0) for up in model.ups)
    nn.init.zeros_(model.ups[2].thin.weight)
    assert sorted(f.severity for f in found(model, "RS308")) == ["info", "warning"]
    assert [f.severity for f in found(model, "RS203")] == ["warning"]
