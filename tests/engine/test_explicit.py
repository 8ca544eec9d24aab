"""The explicit engine against autograd, over configurations, and what it keeps of a forward pass."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from residuum.engine import make_engine
from residuum.engine.check.cases import config, ready, tokens
from residuum.engine.check.measure import compare
from residuum.engine.check.pair import same_draws
from residuum.engine.explicit import Explicit
from residuum.errors import InputError
from residuum.model import ModelConfig, Transformer
from residuum.model.cross_entropy import cross_entropy
from residuum.model.residual import REGISTRY, Branch, Residual, register
from residuum.stream.flow import flow

GRID: dict[str, dict[str, Any]] = {
    "gpt": {},
    "bias": {"bias": True},
    "llama": {"norm": "rmsnorm", "activation": "swiglu", "positions": "rotary", "n_kv_heads": 2, "head": "untied"},
    "relu, sinusoidal": {"activation": "relu", "positions": "sinusoidal", "n_kv_heads": 1},
    "squared relu": {"activation": "squared_relu", "norm": "rmsnorm", "bias": True},
    "original": {"residual": "post", "activation": "relu", "positions": "sinusoidal", "bias": True},
    "bert": {"residual": "post", "embedding_norm": True, "causal": False, "bias": True, "dropout": 0.3},
    "embedding norm, rmsnorm": {"embedding_norm": True, "norm": "rmsnorm", "positions": "rotary"},
    "post, rmsnorm": {"residual": "post", "norm": "rmsnorm", "activation": "swiglu"},
    "none": {"residual": "none"},
    "encoder": {"causal": False, "bias": True},
    "one head": {"n_heads": 1, "d_ff": 3},
    "zero branches": {"branch_init": "zero"},
    "dropout": {"dropout": 0.3, "bias": True},
    "dropout, llama": {"dropout": 0.3, "norm": "rmsnorm", "activation": "swiglu", "positions": "rotary"},
    "dropout, post": {"dropout": 0.3, "residual": "post", "n_kv_heads": 3, "head": "untied"},
}


def gradients_of(engine: Any, model: Transformer, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    model.zero_grad()
    torch.manual_seed(5)
    loss = engine.loss_and_grads(model, batch)
    assert all(p.grad is not None for p in model.parameters())
    return {"loss": loss, **{name: p.grad.clone() for name, p in model.named_parameters()}}


def both(model: Transformer, batch: tuple[Tensor, Tensor]) -> list[dict[str, Tensor]]:
    return [gradients_of(make_engine(engine), model, batch) for engine in ("explicit", "autograd")]


@pytest.mark.parametrize("compared", ["autograd", "float32"])
@pytest.mark.parametrize("values", GRID.values(), ids=list(GRID))
def test_loss_and_every_gradient_are_autograds(values: dict[str, Any], compared: str) -> None:
    kind = torch.float32 if compared == "float32" else torch.float64
    model, batch = ready(Transformer(config(**values)), kind), tokens()
    expected = gradients_of(make_engine("autograd"), model, batch)
    after = torch.get_rng_state()
    ours = gradients_of(make_engine("explicit"), model, batch)
    assert ours["loss"].dtype == expected["loss"].dtype
    assert not ours["loss"].requires_grad
    row = compare("explicit", str(values), compared, ours, expected)
    assert row.ok, row
    assert torch.equal(torch.get_rng_state(), after)  # the next draw is the same, too
    model.eval()
    row = compare("explicit", str(values), compared, *both(model, batch))
    assert row.ok, row


@pytest.mark.parametrize("keep", ["block-inputs", "every-2", "every-3", "every-99"])
@pytest.mark.parametrize("values", [{}, GRID["dropout, llama"], GRID["dropout, post"]], ids=str)
def test_what_is_kept_changes_no_bit(values: dict[str, Any], keep: str) -> None:
    model, batch = ready(Transformer(config(n_layers=5, **values)), torch.float32), tokens()
    everything = gradients_of(Explicit(), model, batch)
    after = torch.get_rng_state()
    sparing = gradients_of(Explicit(keep), model, batch)
    assert all(torch.equal(sparing[name], gradient) for name, gradient in everything.items())
    assert torch.equal(torch.get_rng_state(), after)
    gradients_of(make_engine("autograd"), model, batch)
    assert torch.equal(torch.get_rng_state(), after)


def test_gradients_add_up_scaled() -> None:
    model, batches = ready(Transformer(config(bias=True)), torch.float64), (tokens(), tokens())
    whole = [gradients_of(make_engine("autograd"), model, batch) for batch in batches]
    model.zero_grad()
    for batch, gradients in zip(batches, whole, strict=True):
        loss = make_engine("explicit").loss_and_grads(model, batch, scale=0.5)
        torch.testing.assert_close(loss, gradients["loss"])  # comes back unscaled
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, (whole[0][name] + whole[1][name]) / 2)


@pytest.mark.parametrize("keep", ["everything", "every-2"])
@pytest.mark.parametrize("values", [GRID["bias"], GRID["llama"], GRID["original"], GRID["post, rmsnorm"]], ids=str)
def test_flow_is_what_is_measured_from_outside(values: dict[str, Any], keep: str) -> None:
    model, (read, wanted) = ready(Transformer(config(n_layers=3, **values)), torch.float64), tokens()
    measured = flow(model, read, loss=lambda scores: cross_entropy(scores, wanted)).all_measured
    plain = gradients_of(Explicit(keep), model, (read, wanted))
    model.zero_grad()
    loss, parts = Explicit(keep).loss_and_grads(model, (read, wanted), flow=True)
    assert torch.equal(loss, plain["loss"])
    assert all(torch.equal(p.grad, plain[name]) for name, p in model.named_parameters())
    assert len(parts) == len(measured) == 2 * 3
    for part, outside in zip(parts, measured, strict=True):
        assert part.identity.norm().item() == pytest.approx(outside.backward.identity, rel=1e-10)
        assert part.branch.norm().item() == pytest.approx(outside.backward.branch, rel=1e-10)
    if model.config.residual == "pre":  # what leaves one connection is what arrives at the one before it
        for before, after in pairwise(parts):
            assert torch.equal(before.identity, after.identity + after.branch)


@pytest.mark.parametrize("residual", sorted(REGISTRY.keys() - {"none"}))
def test_the_parts_sum_to_the_gradient_before_the_connection(residual: str) -> None:
    model, batch = ready(Transformer(config(residual=residual)), torch.float64), tokens()
    states: list[Tensor] = []

    def watch(module: torch.nn.Module, given: tuple[Any, ...]) -> Any:
        """Under a name of its own, as the same tensor may also stand further back in the state."""
        state, *args = given
        first, *rest = state if isinstance(state, tuple) else (state,)
        first = first.view_as(first)
        first.retain_grad()
        states.append(first)
        return ((first, *rest) if isinstance(state, tuple) else first, *args)

    hooks = [
        module.register_forward_pre_hook(watch)
        for block in model.blocks
        for module in (block.attn_residual, block.ff_residual)
    ]
    with same_draws():
        model.loss(*batch).backward()
    for hook in hooks:
        hook.remove()
    with same_draws():
        _, parts = Explicit().loss_and_grads(model, batch, flow=True)
    for state, part in zip(states, parts, strict=True):
        torch.testing.assert_close(part.identity + part.branch, state.grad, rtol=1e-10, atol=1e-14)


def test_none_has_no_connection_to_tell_of() -> None:
    model = Transformer(config(residual="none"))
    assert Explicit().loss_and_grads(model, tokens(), flow=True)[1] == []


@pytest.mark.skipif(not hasattr(Tensor, "grad_dtype"), reason="because this PyTorch has no grad_dtype")
def test_main_grads_lose_nothing_over_many_batches() -> None:
    """Each engine's sum over 64 batches against the same gradients of bfloat16 weights, summed in float64."""
    model = ready(Transformer(config(bias=True)), torch.bfloat16)
    batches = [tokens() for _ in range(64)]
    truth = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in model.named_parameters()}
    for batch in batches:
        for name, gradient in gradients_of(Explicit(), model, batch).items():
            if name != "loss":
                truth[name] += gradient.double()
    errors = {}
    for main_grads in (False, True):
        model.zero_grad()
        for batch in batches:
            Explicit(main_grads=main_grads).loss_and_grads(model, batch)
        assert {p.grad.dtype for p in model.parameters()} == {torch.float32 if main_grads else torch.bfloat16}
        summed = {name: p.grad.double() for name, p in model.named_parameters()}
        errors[main_grads] = compare("", "", "float32", summed, truth).error
    assert errors[True] < errors[False] / 5


@pytest.mark.parametrize(
    ("keep", "message"),
    [("nothing", "run.keep = 'nothing'"), ("every-0", "run.keep = 'every-0'"), ("every-2x", "run.keep = 'every-2x'")],
)
def test_what_cannot_be_kept_is_refused(keep: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_engine("explicit", keep)


def test_what_it_cannot_run_names_the_field_and_the_mend() -> None:
    for residual in REGISTRY:
        make_engine("explicit").check(ModelConfig(residual=residual))
    with pytest.raises(InputError, match=r"takes a head.*set model\.head to tied"):
        make_engine("explicit").check(ModelConfig(head="none"))

    @register("half")
    class Half(Residual):
        def forward(self, x: Tensor, branch: Branch, *args: Any) -> Tensor:
            return x + branch(x, *args) / 2

    try:
        with pytest.raises(InputError, match=r"no backward for model\.residual = 'half'.*or set engine to autograd"):
            make_engine("explicit").check(ModelConfig(residual="half"))
    finally:
        del REGISTRY["half"]


def test_what_a_connection_draws_is_drawn_again() -> None:
    """A connection may drop whole branches though the model has no dropout."""

    @register("drawing")
    class Drawing(REGISTRY["pre"]):
        def explicit_forward(self, x, branch, *args):
            kept = torch.empty(len(x), 1, 1, dtype=x.dtype).bernoulli_(0.5) * 2
            y, saved = super().explicit_forward(x, branch, *args)
            return x + (y - x) * kept, (kept, saved)

        def explicit_backward(self, dy, saved, parts=None):
            kept, rest = saved
            return dy * (1 - kept) + super().explicit_backward(dy * kept, rest, parts)

    try:
        shape = {"vocab_size": 11, "context": 5, "d_model": 6, "n_layers": 3, "n_heads": 2}
        model, read = Transformer(ModelConfig(**shape, residual="drawing")).double(), torch.randint(11, (4, 5))
        found = []
        for keep in ("everything", "block-inputs", "every-2"):
            model.zero_grad()
            torch.manual_seed(1)
            Explicit(keep).loss_and_grads(model, (read, read))
            found.append((torch.cat([p.grad.flatten() for p in model.parameters()]), torch.rand(1)))
        for gradients, next_drawn in found[1:]:
            assert torch.equal(gradients, found[0][0])
            assert torch.equal(next_drawn, found[0][1])
    finally:
        del REGISTRY["drawing"]


@pytest.mark.parametrize("engine", ["autograd", "explicit"])
def test_a_batch_that_is_none_is_refused_by_both(engine: str, tiny: Transformer) -> None:
    read = torch.randint(31, (2, 7))
    run = make_engine(engine).loss_and_grads
    with pytest.raises((IndexError, RuntimeError), match="out of bounds"):
        run(tiny, (read, torch.full_like(read, -1)))
    with pytest.raises(ValueError, match="13 tokens are more than the model's context of 12"):
        run(tiny, (torch.zeros(1, 13, dtype=torch.long),) * 2)


def test_main_gradients_take_over_what_is_there() -> None:
    shape = {"vocab_size": 11, "context": 5, "d_model": 6, "n_layers": 1, "n_heads": 2}
    model, read = Transformer(ModelConfig(**shape)).bfloat16(), torch.randint(11, (2, 5))
    Explicit().loss_and_grads(model, (read, read))
    before = {name: p.grad.clone() for name, p in model.named_parameters()}
    Explicit(main_grads=True).loss_and_grads(model, (read, read))
    for name, p in model.named_parameters():
        assert p.grad.dtype == torch.float32
        torch.testing.assert_close(p.grad, 2 * before[name].float(), rtol=0.05, atol=0.01, msg=name)


def test_ternary_maps_are_not_compiled_yet() -> None:
    with pytest.raises(InputError, match=r"^run\.compile has no ternary maps yet"):
        make_engine("explicit", compiled=True).check(ModelConfig(linear="ternary"))
    make_engine("explicit").check(ModelConfig(linear="ternary"))
