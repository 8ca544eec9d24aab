"""RS2xx: each rule fires on a planted fault and not on the healthy twin."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))
from stack import Stack, found, variant

Gate = Callable[[Stack, Tensor], Tensor]


@pytest.mark.parametrize("code", ["RS201", "RS202", "RS203", "RS204", "RS205", "RS206", "RS207"])
def test_the_healthy_twin_has_none(code: str) -> None:
    assert found(Stack(), code) == []


def test_rs201_over_all_and_connection_by_connection() -> None:
    over_all = found(variant(join=lambda self, i, x: 0.1 * x + 0.01 * self.ups[i](x)[..., :12]), "RS201")
    assert over_all[0].message.startswith("the gradient at connection 0")
    # A third at each of five connections is a hundredth in all, and nothing at fifty.
    each = found(variant(join=lambda self, i, x: 0.3 * x + 0.01 * self.ups[i](x)[..., :12]), "RS201")
    (finding,) = each
    assert finding.message.startswith("each connection passes on 0.3")
    assert finding.severity == "warning"
    assert found(variant(join=lambda self, i, x: 0.7 * x + 0.01 * self.ups[i](x)[..., :12]), "RS201") == []


def test_rs202_connection_by_connection() -> None:
    (finding,) = found(variant(join=lambda self, i, x: 3 * x + 0.01 * self.ups[i](x)[..., :12]), "RS202")
    assert finding.message.startswith("each connection multiplies the gradient by 3")
    assert found(variant(join=lambda self, i, x: 1.5 * x + 0.01 * self.ups[i](x)[..., :12]), "RS202") == []


def test_rs202_one_place_of_four_decides_nothing() -> None:
    """A small embedding is scaled up once: that is no factor of every connection."""

    def join(self: Stack, i: int, x: Tensor) -> Tensor:
        return (100 if i == 1 else 1) * x + 0.01 * self.branch(i, x)

    assert found(type("Small", (Stack,), {"join": join})(layers=4), "RS202") == []


def test_rs201_to_rs303_compare_what_the_norm_makes_of_the_sum() -> None:
    """The sums are 10,000 times as large from the second on, and the norm behind each takes it back."""

    def join(self: Stack, i: int, x: Tensor) -> Tensor:
        return torch.nn.functional.layer_norm((1e4 if i else 1) * x + 0.01 * self.branch(i, x), (12,))

    model = variant(join=join)
    model.last = nn.Identity()
    for code in ("RS201", "RS202", "RS303"):
        assert found(model, code) == [], code


def test_rs203_a_zero_behind_a_zero_is_no_fault() -> None:
    model = Stack()
    torch.nn.init.zeros_(model.downs[2].weight)
    torch.nn.init.zeros_(model.downs[2].bias)
    assert found(model, "RS203") == []  # norm and up get exactly zero, and train from the second step on
    model = Stack()
    model.spare = torch.nn.Linear(2, 2)
    (finding,) = found(model, "RS203")
    assert finding.message == "2 parameters get no gradient from a fixed random projection of the output: " + (
        "spare.weight, spare.bias"
    )
    model = variant(branch=lambda self, i, x: self.downs[i](torch.tanh(self.ups[i](self.norms[i](x)) * (i != 3))))
    (finding,) = found(model, "RS203")  # the branch writes its bias, so nothing explains these zeros
    assert finding.message.startswith("5 parameters get no gradient")
    assert finding.message.endswith("norms.3.weight, norms.3.bias, ups.3.weight, ups.3.bias and 1 more")


@pytest.mark.parametrize(
    ("gate", "said"),
    [
        (lambda self, x: self.scale * torch.tanh(self.gate(x)), []),
        (lambda self, x: (self.scale.view(1, 1, -1) * (x @ self.gate.weight.t())).relu() + self.gate(x), []),
        # nothing that trains makes these zeros
        (lambda self, x: self.scale * torch.tanh(self.gate(0 * x)), ["scale, gate.weight"]),
        (lambda self, x: self.scale * torch.tanh(self.gate(x).detach()), ["scale, gate.weight"]),
        (lambda self, x: self.scale * (torch.tanh(self.gate(x)) + x).mul(0) + self.gate(x), ["scale"]),
    ],
)
def test_rs203_a_scale_before_zeros_waits_for_them(gate: Gate, said: list[str]) -> None:
    model = variant(join=lambda self, i, x: x + self.branch(i, x) + (gate(self, x) if i == 2 else 0))
    model.scale = nn.Parameter(torch.ones(12))
    model.gate = nn.Linear(12, 12, bias=False)
    nn.init.zeros_(model.gate.weight)
    assert [finding.message.rpartition(": ")[2] for finding in found(model, "RS203")] == said


def test_rs204_names_the_line_and_the_operation() -> None:
    def branch(self: Stack, i: int, x: Tensor) -> Tensor:
        y = Stack.branch(self, i, x)
        return y if i != 2 else y + (y - 100).log()

    (finding,) = found(variant(branch=branch), "RS204")
    assert finding.message.startswith("the write of connection 2")
    assert finding.message.endswith("holds NaN or infinity: log made NaN in the forward pass of the model")
    assert Path(finding.source.file) == Path(__file__)
    assert "(y - 100).log()" in Path(__file__).read_text().splitlines()[finding.source.line - 1]
    assert finding.severity == "error"


def test_rs204_backward() -> None:
    (finding,) = found(variant(join=lambda self, i, x: x + self.branch(i, x) + (x * 0).sqrt()), "RS204")
    assert "sqrt made" in finding.message
    assert "in the backward pass" in finding.message
    assert Path(finding.source.file) == Path(__file__)


def test_rs204_a_model_that_changes_between_runs() -> None:
    class Once(Stack):
        def forward(self, x: Tensor) -> Tensor:
            self.runs = getattr(self, "runs", 0) + 1
            return super().forward(x) * (float("nan") if self.runs == 1 else 1)

    (finding,) = found(Once(), "RS204")
    assert finding.message.endswith(
        "a second run found none: perhaps the model changes between runs, or only squares overflow"
    )


def test_rs205_matrices_are_a_fault_and_vectors_news() -> None:
    def branch(self: Stack, i: int, x: Tensor) -> Tensor:
        y = Stack.branch(self, i, x)
        return y + 1e-12 * self.spare(x) if i == 1 else y

    model = variant(branch=branch)
    model.spare = torch.nn.Linear(12, 12)
    findings = found(model, "RS205")
    assert [(f.severity, f.message.rpartition(" ")[2]) for f in findings] == [
        ("warning", "spare.weight"),
        ("info", "spare.bias"),
    ]


def test_rs206_frozen_block() -> None:
    def frozen(*layers: int, embed: bool = False) -> Stack:
        model = Stack()
        for i in layers:
            for part in (model.norms, model.ups, model.downs):
                part[i].requires_grad_(False)
        model.embed.requires_grad_(not embed)
        return model

    (finding,) = found(frozen(2), "RS206")
    assert finding.message.endswith("is frozen; 4 of 5 connections train")
    assert finding.severity == "warning"
    assert [f.severity for f in found(frozen(0, 1), "RS206")] == ["warning", "warning"]  # the embedding trains
    assert [f.severity for f in found(frozen(0, 1, embed=True), "RS206")] == ["info", "info"]
    assert found(frozen(1, 2, 3), "RS206") == []  # most are frozen: a design
    half = Stack()
    half.ups[2].requires_grad_(False)
    assert found(half, "RS206") == []


def test_rs203_a_branch_that_can_never_train() -> None:
    (finding,) = found(variant(join=lambda self, i, x: x + (i != 2) * self.branch(i, x)), "RS203")
    assert finding.message.startswith("6 parameters get no gradient")


class Experts(nn.Module):
    """Four experts of which this run takes all but one."""

    def __init__(self, idle: int | None) -> None:
        super().__init__()
        self.idle = idle
        self.experts = nn.ModuleList(nn.Linear(12, 12) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        return sum(expert(x) for i, expert in enumerate(self.experts) if i != self.idle)


def test_rs203_a_member_left_out_of_this_run_is_news() -> None:
    model = Stack()
    model.last = Experts(idle=1)
    (finding,) = found(model, "RS203")
    assert finding.severity == "info"
    assert finding.message.endswith("last.experts.1.weight, last.experts.1.bias")
    model.last = Experts(idle=None)
    model.last.experts[1].forward = lambda x: nn.functional.linear(x, model.last.experts[1].weight.detach())
    assert [f.severity for f in found(model, "RS203")] == ["warning"]  # it ran


def test_rs201_two_kinds_that_take_turns() -> None:
    """The gradient is made ten times smaller and as often ten times larger: the whole loses nothing."""

    def join(self: Stack, i: int, x: Tensor) -> Tensor:
        return (10.0 if i % 2 else 0.1) * x + 1e-4 * self.ups[i](x)[..., :12]

    model = type("Turns", (Stack,), {"join": join})(layers=8)
    assert found(model, "RS201") == []
    assert found(model, "RS202") == []


class Rounded(nn.Linear):
    """A ternary weight whose estimator may be missing, and whose scale may carry a gradient."""

    estimator, scale_learns = True, True

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight.abs().mean() if self.scale_learns else self.weight.detach().abs().mean()
        quantised = (self.weight / scale).round().clamp(-1, 1) * scale
        if self.estimator:
            quantised = self.weight + (quantised - self.weight).detach()
        return nn.functional.linear(x, quantised, self.bias)


@pytest.mark.parametrize("scale_learns", [True, False])
def test_rs207_a_rounding_without_its_estimator(scale_learns: bool) -> None:
    model = Stack()
    model.ups = nn.ModuleList(Rounded(12, 20) for _ in range(5))
    assert found(model, "RS207") == found(model, "RS203") == []
    for up in model.ups[1:4]:
        up.estimator, up.scale_learns = False, scale_learns
    (finding,) = found(model, "RS207")
    assert finding.message == (
        "3 weights get no gradient past their rounding: ups.1.weight, ups.2.weight, ups.3.weight"
    )
    assert finding.severity == "error"
    assert found(model, "RS203") == []  # said once
    model.ups.requires_grad_(False)
    assert found(model, "RS207") == []  # nor is one wanted


def test_rs207_a_part_of_a_fused_weight() -> None:
    class Fused(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            first, second = self.weight.chunk(2)
            first = first + (first.sign() - first).detach()
            return torch.cat([nn.functional.linear(x, w) for w in (first, second.sign())], -1)

    model = Stack()
    model.ups[2] = Fused(12, 20)
    (finding,) = found(model, "RS207")
    assert finding.message == "1 weight gets no gradient past their rounding: ups.2.weight"


def test_rs207_leaves_alone_what_lies_behind_a_zero() -> None:
    model = Stack()
    model.ups = nn.ModuleList(Rounded(12, 20) for _ in range(5))
    for down in model.downs:
        nn.init.zeros_(down.weight)
        nn.init.zeros_(down.bias)
    assert found(model, "RS207") == found(model, "RS203") == []
