"""Connections with several streams: their formulas, their start, and Pre-LN where they are it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from residuum.engine.check.cases import config, ready, tokens
from residuum.engine.check.measure import compare
from residuum.engine.check.stack import Stack
from residuum.engine.explicit import Explicit
from residuum.errors import InputError
from residuum.model import ModelConfig, Transformer
from residuum.model.residual import mixing, residual_named, streams
from residuum.model.residual.mhc import ITERATIONS, sinkhorn
from residuum.stream.trace import trace
from residuum.train.optimizer import make_optimizer
from residuum.train.recipe import OptimConfig

BOTH = ["hyper-connections", "mhc"]
both = pytest.mark.parametrize("name", BOTH)


def by_autograd(stack: Stack, x: Tensor, dy: Tensor) -> dict[str, Tensor]:
    x = x.detach().requires_grad_()
    wanted = {"x": x, **dict(stack.named_parameters())}
    y = stack(x)
    return {"y": y.detach(), **dict(zip(wanted, torch.autograd.grad(y, list(wanted.values()), dy), strict=True))}


def by_hand(stack: Stack, x: Tensor, dy: Tensor) -> dict[str, Tensor]:
    stack.zero_grad()
    with torch.no_grad():
        y, saved = stack.explicit_forward(x)
        dx = stack.explicit_backward(dy, saved)
    return {"y": y, "x": dx, **{name: p.grad for name, p in stack.named_parameters()}}


def naively(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    for block in stack.blocks:
        for residual in (block.attn_residual, block.ff_residual):
            monkeypatch.setattr(residual, "forward", residual.naive)


@both
@pytest.mark.parametrize("kind", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("shape", [(2, 5, 12), (1, 1, 6), (3, 1, 18), (1, 7, 30)], ids=str)
def test_the_fused_steps_are_the_formula(
    name: str, kind: torch.dtype, n: int, shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """y and every gradient, of autograd through the fused steps, of the explicit pair, and of the plain formula."""
    values = config(residual=name, residual_streams=n, d_model=shape[-1], bias=True, norm_eps=1.0)
    stack, x, dy = ready(Stack(values), kind), torch.randn(shape, dtype=kind), torch.randn(shape, dtype=kind)
    fused, explicit = by_autograd(stack, x, dy), by_hand(stack, x, dy)
    naively(stack, monkeypatch)
    naive = by_autograd(stack, x, dy)
    for ours in (fused, explicit):
        row = compare(name, "", "autograd", ours, naive)
        assert row.error <= (1e-4 if kind == torch.float32 else row.bound), row


@both
def test_the_formula_one_stream_at_a_time(name: str) -> None:
    model = ready(Transformer(config(residual=name, norm_eps=0.1)), torch.float64)
    residual, branch = model.blocks[1].ff_residual, model.blocks[1].ff
    state = torch.randn(2, 3, 4, 12, dtype=torch.float64)
    y = residual(state, branch)
    read, mix, write = residual.coefficients(state)
    assert [tuple(each.shape) for each in (read, mix, write)] == [(2, 3, 4), (2, 3, 4, 4), (2, 3, 4)]
    for place in ((0, 0), (1, 2)):
        old, a, m, b = state[place], read[place], mix[place], write[place]
        written = branch(residual.norm(sum(a[i] * old[i] for i in range(4))))
        for j in range(4):
            expected = sum(m[i, j] * old[i] for i in range(4)) + b[j] * written
            torch.testing.assert_close(y[place][j], expected, rtol=1e-11, atol=1e-11)


def test_the_coefficients_of_hyper_connections() -> None:
    residual = (
        ready(Transformer(config(residual="hyper-connections", norm_eps=0.1)), torch.float64).blocks[0].ff_residual
    )
    state = torch.randn(1, 1, 4, 12, dtype=torch.float64)
    read, mix, write = (each[0, 0] for each in residual.coefficients(state))
    for i in range(4):
        x = state[0, 0, i]
        normed = (x - x.mean()) / (x.var(unbiased=False) + 0.1).sqrt()
        bent = (residual.dynamic @ normed).tanh()
        of_alpha, of_beta = residual.scale
        torch.testing.assert_close(read[i], residual.read[i] + of_alpha * bent[0])
        torch.testing.assert_close(mix[i], residual.mix[i] + of_alpha * bent[1:5])
        torch.testing.assert_close(write[i], residual.write[i] + of_beta * bent[5])


def test_the_coefficients_on_the_manifold() -> None:
    residual = ready(Transformer(config(residual="mhc", norm_eps=0.1)), torch.float64).blocks[0].ff_residual
    residual.mix.data.normal_()
    state = torch.randn(1, 1, 4, 12, dtype=torch.float64)
    read, mix, write = (each[0, 0] for each in residual.coefficients(state))
    x = state.flatten()
    along = (residual.dynamic @ (x / (x.square().mean() + 0.1).sqrt())).view(4, 6)
    of_read, of_mix, of_write = residual.scale
    torch.testing.assert_close(read, (residual.read + of_read * along[:, 0]).sigmoid())
    torch.testing.assert_close(write, 2 * (residual.write + of_write * along[:, 5]).sigmoid())
    expected = (residual.mix + of_mix * along[:, 1:5]).exp()
    for _ in range(ITERATIONS):
        expected = expected / expected.sum(1, keepdim=True)
        expected = expected / expected.sum(0, keepdim=True)
    torch.testing.assert_close(mix, expected)
    torch.testing.assert_close(mix.sum(0), torch.ones(4, dtype=torch.float64))
    assert (mix.sum(1) - 1).abs().max() < 0.05
    assert mix.min() >= 0


@pytest.mark.parametrize("size", [0, 1, 1e3, 1e6])
def test_sinkhorn_is_finite_whatever_the_logits(size: float) -> None:
    mix, _ = sinkhorn(size * torch.randn(4, 4, 50))
    assert mix.isfinite().all()
    torch.testing.assert_close(mix.sum(0), torch.ones(4, 50), rtol=1e-5, atol=1e-5)


@both
def test_one_stream_is_pre_norm_bit_for_bit(name: str) -> None:
    shape = {"bias": True, "dropout": 0.3}
    pre = ready(Transformer(config(**shape)), torch.float64)
    ours = Transformer(config(residual=name, residual_streams=1, **shape)).double()
    ours.load_state_dict(pre.state_dict(), strict=False)
    for residual, _ in ours.connections():
        if name == "mhc":
            residual.read.data.fill_(40)  # its sigmoid is 1
    batch = tokens()
    found: dict[bool, list[dict[str, Tensor]]] = {True: [], False: []}
    for model in (pre, ours):
        for explicit in (True, False):
            model.zero_grad()
            torch.manual_seed(5)
            if explicit:
                loss = Explicit().loss_and_grads(model, batch)
            else:
                loss = model.loss(*batch)
                loss.backward()
            shared = {n: p.grad.clone() for n, p in model.named_parameters() if n in pre.state_dict()}
            found[explicit].append({"loss": loss.detach(), **shared})
    for expected, got in found.values():
        assert torch.equal(got.pop("loss"), expected.pop("loss"))
        for parameter, gradient in expected.items():
            torch.testing.assert_close(got[parameter], gradient, rtol=1e-12, atol=1e-15, msg=parameter)


@both
@pytest.mark.parametrize("n", [2, 4, 5])
def test_every_stream_is_pre_norms_at_the_start(name: str, n: int) -> None:
    pre = Transformer(config(n_layers=3)).double()
    ours = Transformer(config(residual=name, residual_streams=n, n_layers=3)).double()
    ours.load_state_dict(pre.state_dict(), strict=False)
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    one, state = x, ours.first_residual.begin(x)
    for ours_block, pre_block in zip(ours.blocks, pre.blocks, strict=True):
        one, state = pre_block(one), ours_block(state)
        torch.testing.assert_close(state, one.unsqueeze(2).expand_as(state), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ours.last_residual.end(state), n * one)


def test_first_values() -> None:
    """Hyper-connections: those of the paper. Constrained ones: what stands in the docstring."""
    model = Transformer(config(residual="hyper-connections", n_layers=3))
    for place, (residual, _) in enumerate(model.connections()):
        read, mix, write = residual.coefficients(torch.randn(1, 1, 4, 12))
        assert read.flatten().tolist() == [float(i == place % 4) for i in range(4)]
        assert torch.equal(mix[0, 0], torch.eye(4))
        assert torch.equal(write, torch.ones(1, 1, 4))
        assert residual.scale.tolist() == pytest.approx([0.01, 0.01])
        assert not residual.dynamic.any()
    for place, (residual, _) in enumerate(Transformer(config(residual="mhc", n_layers=3)).connections()):
        read, mix, write = residual.coefficients(torch.randn(1, 1, 4, 12))
        assert read.flatten().tolist() == pytest.approx([0.75 if i == place % 4 else 0.25 / 3 for i in range(4)])
        assert (mix[0, 0] - torch.eye(4)).abs().max() < 0.0011
        assert torch.equal(write, torch.ones(1, 1, 4))
        assert residual.scale.tolist() == pytest.approx([0.01] * 3)
        assert not residual.dynamic.any()


def test_a_product_of_many_mixings_grows_only_without_the_manifold() -> None:
    gains = {}
    for name in BOTH:
        model = ready(Transformer(config(residual=name, n_layers=16, norm_eps=0.1)), torch.float64)
        product = torch.eye(4, dtype=torch.float64)
        for residual, _ in model.connections():
            product = product @ residual.coefficients(torch.randn(1, 1, 4, 12, dtype=torch.float64)).mix[0, 0]
        gains[name] = max(product.abs().sum(0).max().item(), product.abs().sum(1).max().item())
    assert gains["hyper-connections"] > 100
    assert gains["mhc"] == pytest.approx(1, abs=0.1)


@both
def test_what_decays(name: str) -> None:
    model = Transformer(config(residual=name))
    groups = make_optimizer(model, OptimConfig(weight_decay=0.1), torch.device("cpu")).param_groups
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    for residual, _ in model.connections():
        assert decay[id(residual.mix)] == decay[id(residual.read)] == decay[id(residual.write)] == 0
        assert decay[id(residual.scale)] == 0
        assert decay[id(residual.dynamic)] == 0.1


@both
def test_settings(name: str) -> None:
    assert residual_named(name)(config(residual=name), 0).n == streams.STREAMS == 4
    assert residual_named(name)(config(residual=name, residual_streams=2), 0).n == 2
    with pytest.raises(InputError, match=r"model\.residual_scale means nothing"):
        Transformer(config(residual=name, residual_scale=0.5))
    with pytest.raises(InputError, match=r"model\.residual_streams means nothing.*choose.*hyper"):
        Transformer(config(residual_streams=4))


@both
def test_a_trace_sees_the_formula(name: str) -> None:
    model = Transformer(config(residual=name))
    (stream,) = trace(model, torch.randint(31, (2, 5))).streams
    assert [(each.kind, each.placement) for each in stream.residuals] == [("multi-stream", "pre")] * 4


@both
def test_meta_tensors(name: str) -> None:
    with torch.device("meta"):
        model = Transformer(config(residual=name))
        assert model(torch.empty(2, 5, dtype=torch.long)).shape == (2, 5, 31)


@both
def test_a_bag_of_embeddings_is_the_product(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32 on a CPU another kernel takes the sums, where nothing is compiled."""
    monkeypatch.setattr(mixing, "_kernels", lambda _process: None)
    values: dict[str, Any] = {"residual": name, "bias": True, "norm_eps": 1.0}
    model, batch = ready(Transformer(ModelConfig(**{**config().__dict__, **values})), torch.float32), tokens(7)

    def gradients() -> dict[str, Tensor]:
        model.zero_grad()
        loss = Explicit().loss_and_grads(model, batch)
        return {"loss": loss, **{n: p.grad for n, p in model.named_parameters()}}

    bags = gradients()
    monkeypatch.setattr(mixing, "weighted", lambda weights, rows: weights.to(rows.dtype).mT @ rows)
    assert compare(name, "", "float32", bags, gradients()).error <= 1e-5
