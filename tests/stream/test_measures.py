"""What is measured beside norms, against its definition in float64."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import residuum
from residuum.stream.parameter import TINY
from residuum.stream.slope import log_slope

sys.path.insert(0, str(Path(__file__).parent))
import models

EXACT = {"rel": 1e-10, "abs": 1e-12}


def entropy_rank(rows: Tensor) -> float:
    values = torch.linalg.svdvals(rows / rows.norm(dim=-1, keepdim=True))
    shares = values / values.sum()
    return math.exp(-sum(float(p) * math.log(p) for p in shares if p > 1e-12))


@pytest.mark.parametrize("kind", [models.PreNorm, models.InPlace], ids=lambda kind: kind.__name__)
def test_states_of_positions(kind: type[models.Stack]) -> None:
    model = kind().double()
    x = torch.randn(3, 2, 4, dtype=torch.float64)
    m = residuum.flow(model, x).all_measured[0]
    with torch.no_grad():
        skip = model.embed(x)
        state = skip + model.mlps[0](model.norms[0](skip))
    cosines = (skip * state).sum(-1) / (skip.norm(dim=-1) * state.norm(dim=-1))
    assert m.forward.influence == pytest.approx(1 - cosines.mean().item(), **EXACT)
    assert m.forward.effective_rank == pytest.approx(entropy_rank(state.flatten(0, 1)), rel=1e-6)
    channels = state.flatten(0, 1).square().mean(0).sqrt()
    assert m.forward.outlier == pytest.approx((channels.max() / channels.median()).item(), **EXACT)
    assert m.forward.sampled == 6


def test_states_of_images_are_read_by_channel() -> None:
    class Convolved(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.conv = nn.Conv2d(3, 5, 1), nn.Conv2d(5, 5, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            return x + self.conv(x)

    model, x = Convolved().double(), torch.randn(2, 3, 7, 6, dtype=torch.float64)
    (m,) = residuum.flow(model, x).all_measured
    state = model.stem(x) + model.conv(model.stem(x))
    channels = state.detach().square().mean((0, 2, 3)).sqrt()
    assert m.forward.outlier == pytest.approx((channels.max() / channels.median()).item(), **EXACT)
    assert m.forward.sampled == 32
    assert 1 <= m.forward.effective_rank <= 5 + 1e-9


def test_rank_of_extremes() -> None:
    class Fixed(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.map = nn.Linear(width, width, bias=False)
            nn.init.zeros_(self.map.weight)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.map(x)

    alike = torch.randn(1, 6).expand(40, 6) * torch.arange(1, 41)[:, None]
    assert residuum.flow(Fixed(6), alike).all_measured[0].forward.effective_rank == pytest.approx(1, abs=0.1)
    apart = residuum.flow(Fixed(32), 7 * torch.eye(32)).all_measured[0].forward
    assert apart.effective_rank == pytest.approx(32, rel=1e-5)
    assert apart.influence == pytest.approx(0, abs=1e-6)
    nothing = residuum.flow(Fixed(32), torch.zeros(3, 32)).all_measured[0].forward
    assert (nothing.state_rms, nothing.influence, nothing.effective_rank, nothing.outlier) == (0, 0, 1, 1)
    unknown = residuum.flow(Fixed(32), torch.full((3, 32), math.nan)).all_measured[0].forward
    assert all(math.isnan(n) for n in (unknown.influence, unknown.effective_rank, unknown.outlier))


def test_complex_states() -> None:
    class Complex(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.maps = nn.ModuleList(nn.Linear(4, 4, dtype=torch.complex128) for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.maps:
                x = x + layer(x)
            return x

    model, x = Complex(), torch.randn(2, 3, 4, dtype=torch.complex128)
    first, second = residuum.flow(model, x, loss=lambda y: y.abs().sum()).all_measured
    assert first.forward.state_rms == pytest.approx(second.forward.skip_rms, **EXACT)
    state = x + model.maps[0](x)
    channels = state.detach().abs().square().mean((0, 1)).sqrt()
    assert first.forward.outlier == pytest.approx((channels.max() / channels.median()).item(), **EXACT)
    assert first.backward is not None and first.backward.identity == pytest.approx(first.backward.arriving, **EXACT)


def test_features_of_a_branch_that_convolves_over_positions() -> None:
    class Mixed(nn.Module):
        def __init__(self, swapped: bool) -> None:
            super().__init__()
            self.conv, self.swapped = nn.Conv1d(5, 5, 3, padding=1), swapped

        def forward(self, x: Tensor) -> Tensor:
            return x + (self.conv(x.transpose(1, 2)).transpose(1, 2) if self.swapped else self.conv(x))

    x = torch.randn(2, 5, 5, dtype=torch.float64) * torch.arange(1, 6)  # as many positions as channels
    for swapped, others in ((True, (0, 1)), (False, (0, 2))):
        model = Mixed(swapped).double()
        (m,) = residuum.flow(model, x).all_measured
        channels = model(x).detach().square().mean(others).sqrt()
        assert m.forward.outlier == pytest.approx((channels.max() / channels.median()).item(), **EXACT)


@pytest.mark.parametrize("kind", models.CONNECTED, ids=lambda kind: kind.__name__)
def test_cosine_and_parts_sum_to_what_arrives_at_the_fork(kind: type[models.Stack]) -> None:
    model = kind().double().eval()
    torch.manual_seed(1)
    for m in residuum.flow(model, torch.randn(3, 2, 4, dtype=torch.float64)).all_measured:
        b = m.backward
        assert -1 - 1e-12 <= b.cosine <= 1 + 1e-12
        assert b.elsewhere <= 1e-10 * (b.identity + b.branch)


def test_log_slope() -> None:
    assert log_slope([3 * 0.5**i for i in range(7)]) == pytest.approx(math.log(0.5))
    assert log_slope([1.0, None, 4.0, 0.0, math.nan, math.inf]) == pytest.approx(math.log(2))
    assert log_slope([1.0]) is None
    assert log_slope([]) is None
    (slope,) = residuum.flow(models.PreNorm(), torch.randn(3, 2, 4)).slopes
    assert slope.state > 0
    assert slope.gradient is not None


def test_every_parameter_has_a_verdict() -> None:
    class Odd(models.PreNorm):
        def __init__(self) -> None:
            super().__init__()
            self.unused, self.zeroed, self.tiny, self.bad = (nn.Parameter(torch.full((6,), 2.0)) for _ in range(4))
            self.embed.weight.requires_grad_(False)

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + (0 * self.zeroed + TINY / 9 * self.tiny + (0 * self.bad).sqrt()).sum()

    parameters = residuum.flow(Odd(), torch.randn(3, 2, 4), loss=lambda y: y.mean()).parameters
    verdicts = {name: p.verdict for name, p in parameters.items()}
    assert {name: verdicts[name] for name in ("embed.weight", "unused", "zeroed", "tiny", "bad", "out.weight")} == {
        "embed.weight": "frozen",
        "unused": "no gradient",
        "zeroed": "zero",
        "tiny": "tiny",
        "bad": "not finite",
        "out.weight": "trains",
    }
    assert parameters["unused"].weight_rms == pytest.approx(2)


def test_sizes_whose_squares_do_not_fit_are_read_all_the_same() -> None:
    model = nn.Linear(3, 2)
    for scale in (1e-30, 1e30):
        gradient = residuum.flow(model, torch.randn(4, 3), loss=lambda y, s=scale: (y * s).mean()).parameters["bias"]
        assert gradient.gradient_rms == pytest.approx(scale / 2, rel=1e-4)
        assert gradient.verdict in ("tiny", "trains")


def test_parameters_of_a_branch_are_named() -> None:
    model = models.PreNorm()
    first = residuum.flow(model, torch.randn(3, 2, 4)).all_measured[0]
    assert set(first.parameters) == {
        name for name, _ in model.named_parameters() if name.startswith(("mlps.0.", "norms.0."))
    }


def test_bad_inputs_are_one_line_each() -> None:
    x = torch.randn(3, 2, 4)

    class Growing(models.PreNorm):
        def forward(self, x: Tensor) -> Tensor:
            self.mlps.append(nn.Linear(2, 2))
            return super().forward(x)

    class Half(models.PreNorm):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("\"gelu\" not implemented for 'Half'")

    class Overwriting(models.PreNorm):
        def forward(self, x: Tensor) -> Tensor:
            hidden = self.embed(x).exp()
            y = self.out(hidden)
            hidden.zero_()
            return y + hidden.sum()

    for model, value, options, message in (
        (Growing(), x, {}, r"made or replaced parameters while it ran \(mlps.3.bias, mlps.3.weight\): run it once"),
        (Half(), x, {}, r"not implemented for 'Half' \(half precision cannot do this on a CPU: give model.float\(\)"),
        (Overwriting(), x, {}, "the backward pass raised RuntimeError: one of the variables needed for gradient"),
        (
            models.PreNorm(),
            x.to("meta"),
            {},
            r"an input is on meta, the model on cpu: move the input with .to\('cpu'\)",
        ),
        (models.PreNorm(), x, {"loss": lambda y: y.detach().sum()}, "the given loss carries no gradient: compute it"),
        (models.PreNorm(), x, {"loss": lambda y: y}, r"one real number that carries a gradient, got a tensor of shape"),
    ):
        with pytest.raises(residuum.TraceError, match=message) as raised:
            residuum.flow(model, value, **options)
        assert "\n" not in str(raised.value)


def test_half_precision_on_a_cpu_is_measured_where_pytorch_can() -> None:
    for dtype in (torch.bfloat16, torch.float16):
        flow = residuum.flow(models.PreNorm().to(dtype), torch.randn(3, 2, 4, dtype=dtype))
        assert len(flow.all_measured) == 3
        assert all(math.isfinite(m.forward.effective_rank) for m in flow.all_measured)
