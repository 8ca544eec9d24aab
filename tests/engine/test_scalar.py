"""The scalar engine against PyTorch in float64."""

from __future__ import annotations

import dataclasses
import gc
import typing
from random import Random
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from residuum.engine import make_engine
from residuum.engine.scalar import GPT, AdamW, Shape, Value, sample
from residuum.engine.scalar.collector import collector_paused
from residuum.engine.scalar.engine import ANY, NO_MATTER, ONLY
from residuum.errors import InputError
from residuum.model import ModelConfig, Transformer
from residuum.model.residual import REGISTRY

BASE: dict[str, Any] = {
    "vocab_size": 7,
    "context": 5,
    "d_model": 6,
    "n_layers": 1,
    "n_heads": 2,
    "norm": "rmsnorm",
    "activation": "relu",
    "init_std": 0.5,
}
SHAPES: dict[str, dict[str, Any]] = {
    "base": {},
    "two layers, squared relu": {"n_layers": 2, "activation": "squared_relu"},
    "three heads of width 1": {"d_model": 3, "n_heads": 3},
    "width 1": {"d_model": 1, "n_heads": 1, "d_ff": 1},
    "grouped queries": {"d_model": 8, "n_heads": 4, "n_kv_heads": 2},
    "one head for all queries": {"n_heads": 3, "n_kv_heads": 1, "d_ff": 5},
    "untied": {"head": "untied"},
    "post": {"residual": "post", "n_layers": 2},
    "none": {"residual": "none", "n_layers": 2},
    "zero branches": {"branch_init": "zero", "n_layers": 2},
    "a wide epsilon": {"norm_eps": 0.3},
}


def build(**values: Any) -> Transformer:
    """In float64, with gains that are not all 1."""
    model = Transformer(ModelConfig(**{**BASE, **values})).double()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.uniform_(0.5, 1.5)
    return model


def batch_of(rows: int = 2, length: int = 5) -> tuple[Tensor, Tensor]:
    tokens, targets = torch.randint(7, (2, rows, length))
    targets[0, length // 2] = -100
    return tokens, targets


def float64_loss(model: Transformer, tokens: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(model(tokens).flatten(0, 1), targets.flatten())


def shape_of(config: ModelConfig) -> Shape:
    return Shape(**{field.name: getattr(config, field.name) for field in dataclasses.fields(Shape)})


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("length", [5, 1])
def test_loss_and_every_gradient_are_autograds(name: str, length: int) -> None:
    model = build(**SHAPES[name])
    batch = batch_of(3, length)
    expected = float64_loss(model, *batch)
    gradients = torch.autograd.grad(expected, list(model.parameters()))
    loss = make_engine("scalar").loss_and_grads(model, batch)
    assert abs(loss - expected) <= 1e-12 * expected
    for (parameter, p), gradient in zip(model.named_parameters(), gradients, strict=True):
        assert (p.grad - gradient).norm() <= 1e-10 * gradient.norm(), parameter


def test_gradients_add_up_scaled() -> None:
    model, batch = build(), batch_of()
    engine = make_engine("scalar")
    first = engine.loss_and_grads(model, batch)
    once = [p.grad.clone() for p in model.parameters()]
    assert torch.equal(engine.loss_and_grads(model, batch, scale=0.5), first)
    for p, grad in zip(model.parameters(), once, strict=True):
        torch.testing.assert_close(p.grad, 1.5 * grad, rtol=1e-14, atol=0)


def test_float32_agrees_and_keeps_its_type() -> None:
    model, batch = build().float(), batch_of()
    expected = make_engine("autograd").loss_and_grads(model, batch)
    gradients = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    loss = make_engine("scalar").loss_and_grads(model, batch)
    torch.testing.assert_close(loss, expected)
    for p, gradient in zip(model.parameters(), gradients, strict=True):
        torch.testing.assert_close(p.grad, gradient)


def test_a_frozen_weight_gets_no_gradient() -> None:
    model = build()
    model.embedding.weight.requires_grad_(False)
    make_engine("scalar").loss_and_grads(model, batch_of())
    assert [name for name, p in model.named_parameters() if p.grad is None] == ["embedding.weight"]


def test_the_collector_is_left_as_it_was_found() -> None:
    model, batch = build(), batch_of()
    make_engine("scalar").loss_and_grads(model, batch)
    assert gc.isenabled()
    with pytest.raises(IndexError):
        make_engine("scalar").loss_and_grads(model, (batch[0] + 7, batch[1]))
    assert gc.isenabled()


def test_no_counted_target_is_no_loss() -> None:
    """0/0, as PyTorch has it: not a number, and no gradient."""
    model, (tokens, targets) = build(), batch_of()
    none = torch.full_like(targets, -100)
    assert float64_loss(model, tokens, none).isnan()
    assert make_engine("scalar").loss_and_grads(model, (tokens, none)).isnan()
    assert all(p.grad.eq(0).all() for p in model.parameters())


def test_tokens_that_are_none_are_refused_as_pytorch_does() -> None:
    gpt = GPT(Shape(vocab_size=7, context=3, d_model=4, n_heads=2))
    for tokens, targets in (([0, -1], [0, 0]), ([0, 7], [0, 0]), ([0, 0], [0, -1]), ([0, 0], [0, 7])):
        with pytest.raises(IndexError, match="vocabulary's 7"):
            gpt.loss([tokens], [targets])
    with pytest.raises(ValueError, match="4 tokens are more than the model's context of 3"):
        gpt.scores([0] * 4)


@pytest.mark.parametrize("name", SHAPES)
def test_initial_values_have_the_models_names_shapes_and_spread(name: str) -> None:
    config = ModelConfig(**{**BASE, **SHAPES[name]})
    ours = {key: torch.tensor(_numbers(values)) for key, values in GPT(shape_of(config), seed=3).parameters.items()}
    theirs = dict(Transformer(config).named_parameters())
    assert list(ours) == list(theirs)
    for key, tensor in theirs.items():
        assert ours[key].shape == tensor.shape, key
        if tensor.ndim == 1 or config.branch_init == "zero":
            assert torch.equal(ours[key].eq(0), tensor.eq(0)), key
        elif tensor.numel() > 100:
            std = config.write_std if key.endswith(("out.weight", "down.weight")) else config.init_std
            assert ours[key].std().item() == pytest.approx(std, rel=0.25), key


def test_adam_is_pytorchs() -> None:
    random = Random(0)
    parameters = {
        "w": [[Value(random.gauss(0, 1)) for _ in range(3)] for _ in range(2)],
        "gain": [Value(random.gauss(0, 1)) for _ in range(4)],
    }
    tensors = [
        torch.tensor(_numbers(values), dtype=torch.float64, requires_grad=True) for values in parameters.values()
    ]
    groups = [{"params": tensors[:1], "weight_decay": 0.1}, {"params": tensors[1:], "weight_decay": 0.0}]
    theirs = torch.optim.AdamW(groups, betas=(0.8, 0.95), eps=1e-6)
    ours = AdamW(parameters, weight_decay=0.1, beta1=0.8, beta2=0.95, eps=1e-6)
    clipped = []
    for step in range(10):
        gradients = [torch.randn_like(tensor) * 3.0**-step for tensor in tensors]
        for tensor, gradient in zip(tensors, gradients, strict=True):
            tensor.grad = gradient.clone()
        for weight, grad in zip(ours.weights, torch.cat([g.flatten() for g in gradients]).tolist(), strict=True):
            weight.grad = grad
        lr = 0.1 / (step + 1)
        for group in theirs.param_groups:
            group["lr"] = lr
        norm = torch.nn.utils.clip_grad_norm_(tensors, 0.5)
        theirs.step()
        clipped.append(bool(norm > 0.5))
        assert ours.step(lr, clip=0.5) == pytest.approx(norm.item(), rel=1e-14)
        assert all(weight.grad == 0.0 for weight in ours.weights)
        for tensor, values in zip(tensors, parameters.values(), strict=True):
            torch.testing.assert_close(
                torch.tensor(_numbers(values), dtype=torch.float64), tensor.detach(), rtol=1e-12, atol=1e-14
            )
    assert set(clipped) == {True, False}


@collector_paused()
def test_ten_steps_are_autograds_ten_steps() -> None:
    config = ModelConfig(**{**BASE, "n_layers": 2, "activation": "squared_relu"})
    gpt = GPT(shape_of(config), seed=1)
    model = Transformer(config).double()
    model.load_state_dict(
        {k: torch.tensor(_numbers(v), dtype=torch.float64) for k, v in gpt.parameters.items()}, strict=False
    )
    matrices, vectors = ([p for p in model.parameters() if (p.ndim > 1) == wide] for wide in (True, False))
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    theirs, ours = torch.optim.AdamW(groups, lr=0.02, betas=(0.9, 0.95)), AdamW(gpt.parameters, weight_decay=0.1)
    losses = []
    for _ in range(10):
        tokens, targets = batch_of()
        expected = float64_loss(model, tokens, targets)
        theirs.zero_grad()
        expected.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        theirs.step()
        loss = gpt.loss(tokens.tolist(), targets.tolist())
        loss.backward()
        ours.step(0.02, clip=1.0)
        losses.append(loss.data)
        assert loss.data == pytest.approx(expected.item(), rel=1e-10)
    assert len(set(losses)) == 10
    for name, p in model.named_parameters():
        mine = torch.tensor(_numbers(gpt.parameters[name]), dtype=torch.float64)
        assert (mine - p).norm() <= 1e-9 * p.norm(), name


def test_it_learns_a_word_and_says_it() -> None:
    gpt = GPT(Shape(vocab_size=4, context=5, d_model=8, n_heads=2, init_std=0.1))
    optimizer = AdamW(gpt.parameters)
    word = [3, 1, 1, 2]
    for _ in range(60):
        gpt.loss([[0, *word]], [[*word, 0]]).backward()
        optimizer.step(0.02)
    assert sample(gpt, 0, 0.0, Random(0)) == word
    assert sample(gpt, 0, 1e-300, Random(0)) == word
    drawn = {tuple(sample(gpt, 0, 50.0, Random(seed))) for seed in range(20)}
    assert len(drawn) > 5
    assert max(map(len, drawn)) == gpt.shape.context  # one that met no end is as long as there is room for


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"norm": "layernorm"}, "no model.norm = 'layernorm': set model.norm to rmsnorm"),
        ({"activation": "gelu"}, "no model.activation = 'gelu': set model.activation to relu or squared_relu"),
        ({"positions": "sinusoidal"}, "no model.positions = 'sinusoidal': set model.positions to learned"),
        ({"residual": "other"}, "no model.residual = 'other': set model.residual to pre or post or none"),
        ({"causal": False}, "no model.causal = false: set model.causal to true"),
        ({"head": "none"}, "no model.head = 'none': set model.head to tied or untied"),
        ({"bias": True}, "no model.bias = true: set model.bias to false"),
        ({"dropout": 0.1}, "no model.dropout = 0.1: set model.dropout to 0.0"),
    ],
)
def test_what_it_cannot_run_names_the_field_and_the_mend(values: dict, message: str) -> None:
    with pytest.raises(InputError) as error:
        make_engine("scalar").check(ModelConfig(**{**BASE, **values}))
    assert str(error.value) == f"engine = 'scalar' has {message}"


def test_every_field_and_every_choice_is_decided_on() -> None:
    """A field or a choice added to `ModelConfig` must be put on a list, and is refused until it is."""
    assert sorted(field.name for field in dataclasses.fields(ModelConfig)) == sorted([*ANY, *NO_MATTER, *ONLY])
    hints = typing.get_type_hints(ModelConfig)
    choices = {name: typing.get_args(hints[name]) for name in ("activation", "norm", "positions", "head")}
    for name, known in {**choices, "residual": tuple(REGISTRY), "causal": (True, False), "bias": (True, False)}.items():
        for choice in known:
            config = ModelConfig(**{**BASE, "d_model": 4, name: choice})
            if choice in ONLY[name]:
                make_engine("scalar").check(config)
                make_engine("scalar").loss_and_grads(Transformer(config), batch_of())
            else:
                with pytest.raises(InputError, match=f"model.{name}"):
                    make_engine("scalar").loss_and_grads(Transformer(config), batch_of())


def test_a_field_of_tomorrow_is_refused() -> None:
    @dataclasses.dataclass(frozen=True)
    class Tomorrow(ModelConfig):
        window: int = 0

    make_engine("scalar").check(Tomorrow(**BASE))
    with pytest.raises(InputError, match=r"no model\.window = 3: set model\.window to 0"):
        make_engine("scalar").check(Tomorrow(**BASE, window=3))


def _numbers(values: Any) -> Any:
    return [_numbers(inner) for inner in values] if isinstance(values, list) else values.data
