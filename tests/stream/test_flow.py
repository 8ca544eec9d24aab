"""Both parts of the gradient, against vector-Jacobian products taken apart by hand in float64."""

from __future__ import annotations

import dataclasses
import math
import sys
from pathlib import Path

import pytest
import torch
import torch.utils.checkpoint
from torch import Tensor, nn

import residuum
from residuum.model import ModelConfig, Transformer

sys.path.insert(0, str(Path(__file__).parent))
import models

EXACT = {"rel": 1e-10, "abs": 1e-12}


def by_hand(model: nn.Module, states: list[Tensor], steps: list, loss) -> list[tuple[float, float, float]]:
    """(arriving, identity, branch) of each step, where a step is (skip's function, write's function, what follows)."""
    x, kept = states[0], []
    for skip, write, after in steps:
        x = x.detach().requires_grad_()
        y = (skip(x) + write(x)).detach().requires_grad_()
        kept.append((x, y, skip, write, after))
        x = after(y)
    g = torch.autograd.grad(loss(x), kept[-1][1])[0]
    found = []
    for k in reversed(range(len(kept))):
        x, _, skip, write, _ = kept[k]
        identity = torch.autograd.grad(skip(x), x, g)[0]
        branch = torch.autograd.grad(write(x), x, g)[0]
        found.append((g.norm().item(), identity.norm().item(), branch.norm().item()))
        if k:
            y = kept[k - 1][1]
            g = torch.autograd.grad(kept[k - 1][4](y), y, identity + branch)[0]
    return found[::-1]


def same(x: Tensor) -> Tensor:
    return x


@pytest.mark.parametrize("residual", ["pre", "post"])
def test_transformer(residual: str) -> None:
    config = ModelConfig(
        vocab_size=31, context=7, d_model=12, n_layers=2, n_heads=3, residual=residual, init_std=0.3, bias=True
    )
    model = Transformer(config).double()
    tokens, targets = torch.randint(31, (2, 7)), torch.randint(31, (2, 7))

    def cross_entropy(scores: Tensor) -> Tensor:
        return nn.functional.cross_entropy(scores.flatten(0, 1), targets.flatten())

    steps = []
    for block in model.blocks:
        for connection, branch in ((block.attn_residual, block.attn), (block.ff_residual, block.ff)):
            if residual == "pre":
                steps.append((same, lambda x, c=connection, f=branch: f(c.norm(x)), same))
            else:
                steps.append((same, branch, connection.norm))
    first = model.embedding(tokens) + model.positions(0, 7)
    read_out = model.final_norm or same
    expected = by_hand(model, [first], steps, lambda x: cross_entropy(model.head(read_out(x))))
    measured = residuum.flow(model, tokens, loss=cross_entropy).all_measured
    assert len(measured) == len(expected) == 4
    for m, (arriving, identity, branch) in zip(measured, expected, strict=True):
        assert m.backward.arriving == pytest.approx(arriving, **EXACT)
        assert m.backward.identity == pytest.approx(identity, **EXACT)
        assert m.backward.branch == pytest.approx(branch, **EXACT)


def step_of(model: models.Stack, i: int):
    """(skip, write, after) of layer i, for the models whose parts can be told apart by hand."""
    f, n = model.mlps[i], model.norms[i]
    match type(model).__name__:
        case "PreNorm" | "InPlace" | "TorchAdd" | "Helper" | "CastSkip":
            return same, lambda x: f(n(x)), same
        case "PostNorm":
            return same, f, n
        case "Sandwich":
            return same, lambda x: model.after[i](f(n(x))), same
        case "NormAtBranchEnd":
            return same, lambda x: n(f(x)), same
        case "Unnormalised":
            return same, f, same
        case "Scaled":
            return same, lambda x: model.scale * f(n(x)), same
        case "Keywords":
            return same, lambda x: f(n(x)), same
        case "ScaledSkip":
            return lambda x: 1.7 * x, f, n
    return None


@pytest.mark.parametrize("kind", models.CONNECTED, ids=lambda kind: kind.__name__)
def test_every_way_of_writing_a_connection(kind: type[models.Stack]) -> None:
    model = kind().double().eval()
    x = torch.randn(3, 2, 4, dtype=torch.float64)
    weights = torch.randn(3, 2, 2, dtype=torch.float64)
    torch.manual_seed(1)
    flow = residuum.flow(model, x, loss=lambda y: (y * weights).sum())
    assert len(flow.all_measured) == 3
    for m in flow.all_measured:
        # Nothing else reads the stream, so both parts make up the whole gradient at x.
        assert m.backward.elsewhere <= 1e-10 * (m.backward.identity + m.backward.branch)
        assert m.backward.identity > 0
        assert m.backward.branch > 0
    steps = [step_of(model, i) for i in range(3)]
    if None in steps:
        return
    read_out = model.last if model.final else same
    expected = by_hand(model, [model.embed(x)], steps, lambda y: (model.out(read_out(y)) * weights).sum())
    for m, parts in zip(flow.all_measured, expected, strict=True):
        assert (m.backward.arriving, m.backward.identity, m.backward.branch) == pytest.approx(parts, **EXACT)


def test_highway_gate_belongs_to_the_branch() -> None:
    model = models.Highway().double()
    x = torch.randn(3, 2, 4, dtype=torch.float64)
    m = residuum.flow(model, x, loss=lambda y: y.sum()).all_measured[2]
    # The last connection's own parts: (1 − t) g along the skip; all else, the gate's own gradient too, is the branch's.
    with torch.no_grad():
        state = model.layer(1, model.layer(0, model.embed(x)))
    state.requires_grad_()
    t = torch.sigmoid(model.gates[2](state))
    y = t * model.mlps[2](state) + (1 - t) * state
    g = torch.autograd.grad(model.out(y).sum(), y, retain_graph=True)[0]
    identity = (1 - t.detach()) * g
    whole = torch.autograd.grad(y, state, g)[0]
    assert m.backward.identity == pytest.approx(identity.norm().item(), **EXACT)
    assert m.backward.branch == pytest.approx((whole - identity).norm().item(), **EXACT)


def test_resnet_projected_and_in_place() -> None:
    model = models.ResNet().double().eval()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    measured = residuum.flow(model, x, loss=lambda y: y.square().sum()).all_measured
    state = x
    for stage in (model.stem, model.blocks[0]):
        state = stage(state)
    state = state.detach().requires_grad_()
    block = model.blocks[1]
    skip = block.downsample(state)
    write = block.bn2(block.conv2(torch.relu(block.bn1(block.conv1(state)))))
    y = (skip + write).detach().requires_grad_()
    rest = model.blocks[3](model.blocks[2](torch.relu(y)))
    g = torch.autograd.grad(model.head(rest.mean((2, 3))).square().sum(), y)[0]
    identity = torch.autograd.grad(skip, state, g, retain_graph=True)[0]
    branch = torch.autograd.grad(write, state, g)[0]
    b = measured[1].backward
    expected = (g.norm().item(), identity.norm().item(), branch.norm().item())
    assert (b.arriving, b.identity, b.branch) == pytest.approx(expected, **EXACT)
    assert measured[1].forward.write_rms == pytest.approx(write.square().mean().sqrt().item(), **EXACT)
    assert measured[1].forward.skip_rms == pytest.approx(skip.square().mean().sqrt().item(), **EXACT)


def test_the_models_own_input_as_the_skip() -> None:
    mlp = models.Mlp().double()

    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mlp = mlp

        def forward(self, x: Tensor) -> Tensor:
            return x + self.mlp(x)

    x = torch.randn(3, 6, dtype=torch.float64)
    (m,) = residuum.flow(Bare(), x, loss=lambda y: y.square().sum()).all_measured
    g = 2 * (x + mlp(x)).detach()
    leaf = x.clone().requires_grad_()
    branch = torch.autograd.grad(mlp(leaf), leaf, g)[0]
    expected = (g.norm().item(), g.norm().item(), branch.norm().item())
    assert (m.backward.arriving, m.backward.identity, m.backward.branch) == pytest.approx(expected, **EXACT)
    cosine = torch.cosine_similarity(g.flatten(), branch.flatten(), dim=0).item()
    assert m.backward.cosine == pytest.approx(cosine, **EXACT)
    assert not x.requires_grad


def test_readers_outside_the_connection_are_told_apart() -> None:
    class Peeked(models.PreNorm):
        def forward(self, x: Tensor) -> Tensor:
            first = self.embed(x)
            return self.out(self.layer(1, self.layer(0, first))).sum() + self.out(first).sum()

    x = torch.randn(3, 2, 4, dtype=torch.float64)
    model = Peeked().double()
    first, second = residuum.flow(model, x, loss=lambda y: y).all_measured
    outside = model.out.weight.sum(0).detach().expand(3, 2, 6)
    assert first.backward.elsewhere == pytest.approx(outside.norm().item(), **EXACT)
    assert second.backward.elsewhere < 1e-12


class ValueResidual(models.PreNorm):
    """Every layer adds the first layer's hidden values to its own: a branch is read half-way from outside."""

    def layer(self, i: int, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.mlps[i].up(self.norms[i](x)))
        self.first = hidden if i == 0 else self.first
        return x + self.mlps[i].down(hidden + self.first)


def test_a_branch_read_from_outside_counts_only_its_own_gradient() -> None:
    model = ValueResidual().double()
    x = torch.randn(3, 2, 4, dtype=torch.float64)
    measured = residuum.flow(model, x, loss=lambda y: y.square().sum()).all_measured
    state = model.embed(x).detach().requires_grad_()
    y = model.layer(0, state)
    kept = y.detach().requires_grad_()
    outside = model.first.detach()

    def rest(y: Tensor) -> Tensor:
        model.first = outside
        return model.out(model.last(model.layer(2, model.layer(1, y)))).square().sum()

    g = torch.autograd.grad(rest(kept), kept)[0]
    branch = torch.autograd.grad(y - state, state, g)[0]  # Jᵀ g alone, nothing of what layers 1 and 2 ask of `first`
    b = measured[0].backward
    assert (b.arriving, b.branch) == pytest.approx((g.norm().item(), branch.norm().item()), **EXACT)
    assert b.identity == pytest.approx(g.norm().item(), **EXACT)
    assert b.elsewhere > 0.01 * b.branch


def test_both_parts_on_other_peoples_models() -> None:
    for name, model, inputs, expected in _hugging_face():
        measured = residuum.flow(model.double().eval(), **{k: _double(v) for k, v in inputs.items()}).all_measured
        assert len(measured) == len(expected), name
        for m in measured:
            b = m.backward
            assert b.arriving > 0, name
            assert b.branch > 0, name
            assert b.elsewhere <= 1e-10 * (b.identity + b.branch), name
            if m.residual.kind == "identity":
                assert b.identity == pytest.approx(b.arriving, **EXACT), name


def _hugging_face() -> list:
    from test_graph import hugging_face

    return hugging_face()


def _double(value: Tensor) -> Tensor:
    return value.double() if value.is_floating_point() else value


def test_outputs_of_every_make() -> None:
    @dataclasses.dataclass
    class Output:
        first: Tensor
        second: Tensor

    class Wrapped(models.PreNorm):
        def forward(self, x: Tensor) -> Output:
            y = super().forward(x)
            return Output(y, 2 * y)

    assert len(residuum.flow(Wrapped(), torch.randn(3, 2, 4)).all_measured) == 3


def test_custom_functions_checkpoints_and_inference_tensors() -> None:
    class Own(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, w):
            ctx.save_for_backward(x, w)
            return x @ w.T

        @staticmethod
        def backward(ctx, g):
            x, w = ctx.saved_tensors
            return g @ w, g.flatten(0, 1).T @ x.flatten(0, 1)

    class Custom(models.PreNorm):
        def layer(self, i: int, x: Tensor) -> Tensor:
            return x + self.mlps[i].down(Own.apply(self.norms[i](x), self.mlps[i].up.weight))

    class Checkpointed(models.PreNorm):
        def layer(self, i: int, x: Tensor) -> Tensor:
            part = super().layer
            return torch.utils.checkpoint.checkpoint(lambda y: part(i, y), x, use_reentrant=False)

    for model in (Custom().double(), Checkpointed().double()):
        for m in residuum.flow(model, torch.randn(3, 2, 4, dtype=torch.float64)).all_measured:
            assert m.backward.elsewhere <= 1e-10 * m.backward.identity
            assert m.backward.branch > 0
    model = models.PreNorm()
    with torch.inference_mode():
        x = torch.randn(3, 2, 4)
        assert len(residuum.flow(model, x).all_measured) == 3
        with pytest.raises(residuum.TraceError, match=r"built under torch\.inference_mode"):
            residuum.flow(models.PreNorm(), x)
    assert len(residuum.flow(models.PreNorm(), x).all_measured) == 3


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_what_cannot_be_looked_at_says_so() -> None:
    x = torch.randn(3, 2, 4)
    with torch.device("meta"):
        meta = models.PreNorm()
    for model, inputs, message in (
        ("gpt", (x,), "give a torch.nn.Module, not 'gpt'"),
        (models.PreNorm, (x,), "give a torch.nn.Module"),
        (meta, (x.to("meta"),), "residuum.trace gives the structure"),
        (nn.Sequential(nn.LazyLinear(3)), (x,), "lazy parameters: run it once"),
        (models.PreNorm(), (x[:0],), "an input is empty"),
        (torch.jit.trace(nn.Linear(4, 4), x, check_trace=False), (x,), "compiled by torch.jit"),
    ):
        with pytest.raises(residuum.TraceError, match=message):
            residuum.flow(model, *inputs)
    with pytest.raises(residuum.TraceError, match="the given loss raised ZeroDivisionError"):
        residuum.flow(models.PreNorm(), x, loss=lambda y: 1 / 0)


def test_forward_norms_and_shares() -> None:
    model = models.PreNorm().double()
    x = torch.randn(3, 2, 4, dtype=torch.float64)
    m = residuum.flow(model, x).all_measured[0]
    skip = model.embed(x)
    write = model.mlps[0](model.norms[0](skip))
    rms = [float(v.detach().square().mean().sqrt()) for v in (skip, write, skip + write)]
    assert (m.forward.skip_rms, m.forward.write_rms, m.forward.state_rms) == pytest.approx(rms, **EXACT)
    assert m.forward.write_share == pytest.approx(rms[1] / (rms[0] + rms[1]))
    b = m.backward
    assert b.identity_share == pytest.approx(b.identity / (b.identity + b.branch))


def test_detached_skip_carries_nothing() -> None:
    class Detached(models.PreNorm):
        def layer(self, i: int, x: Tensor) -> Tensor:
            return x.detach() + self.mlps[i](self.norms[i](x))

    for m in residuum.flow(Detached(), torch.randn(3, 2, 4)).all_measured:
        assert m.backward.identity == 0
        assert m.backward.branch > 0


def test_parameters_without_gradient_and_with_nan_are_named() -> None:
    class Odd(models.PreNorm):
        def __init__(self) -> None:
            super().__init__()
            self.unused = nn.Linear(2, 2)
            self.sick = nn.Parameter(torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + 0 * self.sick.sqrt()  # the derivative of √ at 0 is infinite

    flow = residuum.flow(Odd(), torch.randn(3, 2, 4))
    assert flow.without_gradient == ["unused.weight", "unused.bias"]
    assert flow.not_finite == ["sick"]


def test_losses_are_found_and_named(tiny: Transformer) -> None:
    tokens = torch.randint(31, (2, 7))
    flow = residuum.flow(tiny, tokens)
    assert flow.loss_name == "next-token cross-entropy"
    scores = tiny(tokens)
    expected = nn.functional.cross_entropy(scores[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).item()
    assert flow.loss == pytest.approx(expected)
    pytest.importorskip("transformers", reason="because the extra hf is not installed")
    bert, gpt2 = (next(m for n, m, _, _ in _hugging_face() if n == name) for name in ("bert", "gpt2"))
    # A mask and a hidden state of matching shapes are no tokens and no scores.
    name = residuum.flow(bert, input_ids=tokens, attention_mask=torch.ones_like(tokens)).loss_name
    assert name == "a fixed random projection of the output"
    own = residuum.flow(gpt2.eval(), input_ids=tokens, labels=tokens, return_dict=False)
    assert own.loss_name == "the model's own loss"
    assert own.loss == pytest.approx(gpt2(input_ids=tokens, labels=tokens).loss.item())
    assert "random projection" in residuum.flow(models.PreNorm(), torch.randn(3, 2, 4)).loss_name
    assert residuum.flow(models.PreNorm(), torch.randn(3, 2, 4), loss=torch.mean).loss_name == "the given loss"


def test_a_loss_that_cannot_be_differentiated_says_so(tiny: Transformer) -> None:
    tokens = torch.randint(31, (2, 7))
    with pytest.raises(residuum.TraceError, match="one real number that carries a gradient, got a tensor of shape"):
        residuum.flow(tiny, tokens, loss=lambda scores: scores)
    with pytest.raises(residuum.TraceError, match="got float"):
        residuum.flow(tiny, tokens, loss=lambda scores: 1.0)
    tiny.requires_grad_(False)
    with pytest.raises(residuum.TraceError, match="give loss=, or let a parameter require grad"):
        residuum.flow(tiny, tokens)


def test_the_model_is_left_as_it_was_found() -> None:
    model = models.ResNet().train()
    x = torch.randn(2, 3, 8, 8)
    model(x).sum().backward()
    grads = [p.grad.clone() for p in model.parameters()]
    buffers = [b.clone() for b in model.buffers()]
    weights = [p.detach().clone() for p in model.parameters()]
    wrong = torch.randn(2, 9, 8, 8)
    random = torch.get_rng_state()
    residuum.flow(model, x)
    residuum.trace(model, x)
    with pytest.raises(residuum.TraceError):
        residuum.flow(model, wrong)
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), grads, strict=True))
    assert all(torch.equal(b, saved) for b, saved in zip(model.buffers(), buffers, strict=True))
    assert all(torch.equal(p, saved) for p, saved in zip(model.parameters(), weights, strict=True))
    assert torch.equal(torch.get_rng_state(), random)
    assert model.training
    assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in model.modules())
    assert not torch.nn.modules.module._global_forward_hooks
    assert not torch.nn.modules.module._global_forward_pre_hooks
    assert torch.overrides._get_current_function_mode() is None
    assert not x.requires_grad


def test_what_hooks_measured_does_not_change_the_gradient(tiny: Transformer) -> None:
    tokens = torch.randint(31, (2, 7))
    tiny.loss(tokens, tokens).backward()
    before = {n: p.grad.clone() for n, p in tiny.named_parameters()}
    residuum.flow(tiny, tokens)
    tiny.zero_grad()
    tiny.loss(tokens, tokens).backward()
    assert all(torch.equal(p.grad, before[n]) for n, p in tiny.named_parameters())
    assert all(math.isfinite(m.forward.state_rms) for m in residuum.flow(tiny, tokens).all_measured)


def test_tokens_that_are_viewed_first_are_tokens_still() -> None:
    class Viewing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = Transformer(ModelConfig(vocab_size=31, context=8, d_model=12, n_heads=3, n_layers=1))

        def forward(self, tokens: Tensor) -> Tensor:
            return self.model(tokens.view(-1, tokens.shape[-1]).long())

    assert residuum.flow(Viewing(), torch.arange(10).view(2, 5)).loss_name == "next-token cross-entropy"
