"""What a monitor says of ternary maps: levels, flips, what rounding leaves, and the estimator's cosine."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import residuum
from residuum.engine.autograd import Autograd
from residuum.errors import InputError
from residuum.model import ModelConfig, Transformer
from residuum.monitor.destination import scalars
from residuum.train.ternary import activation_levels, estimator_cosine

sys.path.insert(0, str(Path(__file__).parent))
from nets import TOKENS, Net, loss_of


class Ternary(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        size = self.weight.abs().mean()
        t = (self.weight / size).round().clamp(-1, 1) * size
        return F.linear(x, self.weight + (t - self.weight).detach(), self.bias)


def test_levels_of_ternary_maps_and_how_many_flip() -> None:
    model = Net().eval()
    model.blocks[1].up = Ternary(5, 15)
    lines: list[dict] = []
    monitor = residuum.Monitor(model, every=2, to=lines.append)
    weight = model.blocks[1].up.weight
    with torch.no_grad():
        weight.copy_(torch.tensor([1.0, -1.0, 0.1, 0.1, 1.0]).expand(15, 5))
    for step in range(1, 5):
        with monitor:
            loss_of(model, TOKENS[0]).backward()
        with torch.no_grad():
            if step == 2:  # after the look, so the next one finds them
                weight[:6, 0] = 0.1
                weight[0, 1] = 1.0
    assert [line["step"] for line in lines] == [1, 2, 4]
    assert [line["ternary"][0]["name"] for line in lines] == ["blocks.1.up.weight"] * 3
    assert [line["ternary"][0]["flips"] for line in lines] == [None, 0, pytest.approx(7 / 75)]
    before, after = ([line["ternary"][0][level] for level in ("minus", "zero", "plus")] for line in lines[1:])
    assert before == pytest.approx([0.2, 0.4, 0.4])
    assert after == pytest.approx([14 / 75, 36 / 75, 25 / 75])
    tags = dict(scalars(lines[-1]))
    assert tags["residuum/ternary_flips/blocks.1.up.weight"] == pytest.approx(7 / 75)
    assert tags["residuum/ternary_zero/blocks.1.up.weight"] == pytest.approx(36 / 75)


def test_a_dead_ternary_map_is_found_while_it_trains() -> None:
    model = Net().eval()
    model.blocks[1].up = Ternary(5, 15)
    with torch.no_grad():
        model.blocks[1].up.weight[0, 0] = 1e4
    monitor = residuum.Monitor(model, every=1, to=[].append)
    with monitor:
        loss_of(model, TOKENS[0]).backward()
    assert monitor.last is not None
    assert {"RS310", "RS311"} <= {finding["code"] for finding in monitor.last["findings"]}


class Experts(nn.Module):
    """All in one parameter; `chosen` run."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.chosen = nn.Parameter(torch.randn(4, 5, 5)), [slice(0, 1)]

    def forward(self, x: Tensor) -> Tensor:
        y = torch.zeros_like(x)
        for each in self.chosen:
            w = self.weight[each].reshape(-1, 5)
            size = w.abs().mean()
            y = y + F.linear(x, w + ((w / size).round().clamp(-1, 1) * size - w).detach())[..., :5]
        return y


def flips_of(model: Net, experts: Experts, *steps: list[slice]) -> list[dict[str, float | None]]:
    """At each step those of the experts that ran in it."""
    lines: list[dict] = []
    monitor = residuum.Monitor(model, every=1, to=lines.append)
    for experts.chosen in steps:
        with monitor:
            loss_of(model, TOKENS[0]).backward()
    return [{each["name"].removeprefix("blocks.1.up."): each["flips"] for each in line["ternary"]} for line in lines]


@pytest.fixture
def mixture() -> tuple[Net, Experts]:
    model, experts = Net().eval(), Experts()
    model.blocks[1].up, model.blocks[1].down = experts, nn.Identity()
    return model, experts


def test_flips_are_of_the_same_weights(mixture: tuple[Net, Experts]) -> None:
    a, b, c = (slice(k, k + 1) for k in range(3))
    assert flips_of(*mixture, [a, b], [c, b], [b, c], [a]) == [
        {"weight[0]": None, "weight[1]": None},
        {"weight[2]": None, "weight[1]": 0},
        {"weight[1]": 0, "weight[2]": 0},
        {"weight[0]": None},
    ]


def test_flips_of_a_part_that_grows_and_of_one_that_is_no_block(mixture: tuple[Net, Experts]) -> None:
    one, two, turns = slice(0, 1), slice(0, 2), slice(0, 4, 2)
    assert flips_of(*mixture, [one], [two], [two], [turns], [turns]) == [
        {"weight[0]": None}, {"weight[0:2]": None}, {"weight[0:2]": 0}, {"weight[?]": None}, {"weight[?]": None}
    ]  # fmt: skip


def test_flips_of_a_parameter_that_grows() -> None:
    model = Net().eval()
    lines: list[dict] = []
    monitor = residuum.Monitor(model, every=1, to=lines.append)
    for width in (15, 20, 20):
        model.blocks[1].up, model.blocks[1].down = Ternary(5, width), nn.Linear(width, 5)
        with monitor:
            loss_of(model, TOKENS[0]).backward()
    assert [line["ternary"][0]["flips"] is None for line in lines] == [True, True, False]


def small_bitnet() -> tuple[Transformer, torch.Tensor]:
    torch.manual_seed(0)
    config = ModelConfig(
        vocab_size=31, context=8, d_model=24, n_layers=2, n_heads=2, n_kv_heads=1, dropout=0.1, linear="ternary",
        activation="squared_reglu", norm="rmsnorm", positions="rotary",
    )  # fmt: skip
    return Transformer(config), torch.randint(31, (3, 8))


def test_what_rounding_does_is_what_a_run_of_our_own_says() -> None:
    model, tokens = small_bitnet()
    lines: list[dict] = []
    monitor = residuum.Monitor(model.eval(), every=2, to=lines.append)
    called = 0

    def loss() -> torch.Tensor:
        nonlocal called
        called += 1
        return model.loss(tokens, tokens)

    for _ in range(3):
        with monitor:
            model.loss(tokens, tokens).backward()
            monitor.rerun(loss)
    assert (called, [line["step"] for line in lines]) == (4, [1, 2])
    lost_and_top, cosines = activation_levels(model, tokens), estimator_cosine(Autograd(), model, (tokens, tokens))
    assert len(cosines) == len(lines[-1]["ternary"]) == 14
    for each in lines[-1]["ternary"]:
        name = each["name"].removesuffix(".weight")
        assert [each["lost"], each["top"]] == pytest.approx(lost_and_top[name])
        assert each["cosine"] == pytest.approx(cosines[name], abs=1e-5)
    tags = dict(scalars(lines[-1]))
    for quantity in ("lost", "top", "cosine"):
        assert f"residuum/ternary_{quantity}/blocks.0.attn.q.weight" in tags


def test_running_the_loss_again_changes_nothing() -> None:
    def train(again: bool) -> list[torch.Tensor]:
        model, tokens = small_bitnet()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        monitor = residuum.Monitor(model, every=1, to=[].append)
        torch.manual_seed(1)
        for _ in range(3):
            with monitor:
                model.loss(tokens, tokens).backward()
                if again:
                    monitor.rerun(lambda: model.loss(tokens, tokens))
            optimizer.step()
            optimizer.zero_grad()
            assert monitor.last is not None
            assert all((each["cosine"] is None) is not again for each in monitor.last["ternary"])
        return [p.detach() for p in model.parameters()]

    assert all(map(torch.equal, train(False), train(True)))


def test_a_loss_that_cannot_be_run_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokens = small_bitnet()
    monitor = residuum.Monitor(model, every=1, to=[].append)
    raising = {
        "rerun's loss raised ZeroDivisionError": lambda: 1 / 0,
        "rerun's loss returned NoneType: return a tensor of one number": lambda: None,
        "rerun's loss returned Tensor: return a tensor of one number": lambda: model(tokens),
    }
    for said, loss in raising.items():
        monitor = residuum.Monitor(model, every=1, to=[].append)
        with pytest.warns(UserWarning, match=f"cosine is left out at step 1, because {said}") as warned, monitor:
            model.loss(tokens, tokens).backward()
            monitor.rerun(loss)
        assert [each.filename for each in warned] == [__file__]  # the user's block, not our code
        assert monitor.last is not None  # all else is there
        assert {each["cosine"] for each in monitor.last["ternary"]} == {None}
    for name, value in {"is_initialized": True, "get_world_size": 2, "get_rank": 0}.items():
        monkeypatch.setattr(torch.distributed, name, lambda value=value: value)
    monitor = residuum.Monitor(model, every=1, to=[].append)
    with pytest.warns(UserWarning, match="at step 1, because one process alone measures"), monitor:
        model.loss(tokens, tokens).backward()
        monitor.rerun(lambda: model.loss(tokens, tokens))
    with pytest.raises(InputError, match=r"rerun: loss is 3\.0: give a function of nothing"):
        monitor.rerun(3.0)  # type: ignore[arg-type]


def test_a_fault_in_reading_the_levels_leaves_the_training_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no levels")

    monkeypatch.setattr("residuum.monitor.flips.Flips.since_last", fail)
    model = Net()
    said = pytest.warns(UserWarning, match="measuring it raised RuntimeError: no levels")
    with said, residuum.Monitor(model, every=1, to=[].append):
        loss_of(model, TOKENS[0]).backward()
