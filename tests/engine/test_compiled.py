"""The explicit pass as one compiled graph: the same numbers as the pass it was recorded from."""

from __future__ import annotations

import shutil

import pytest
import torch

from residuum.engine.compiled import CompiledPass
from residuum.engine.explicit import Explicit
from residuum.errors import InputError
from residuum.model import ModelConfig, Transformer

SHAPE = {"vocab_size": 19, "context": 6, "d_model": 12, "n_layers": 2, "n_heads": 3}


def batch(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    tokens = torch.randint(19, (2, 7), generator=torch.Generator().manual_seed(seed))
    return tokens[:, :-1], tokens[:, 1:]


@pytest.mark.skipif(shutil.which("g++") is None, reason="because there is no C++ compiler, which PyTorch's own takes")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the compiler's, about parts of PyTorch
def test_the_same_numbers_with_dropout_accumulation_and_a_frozen_weight() -> None:
    model = Transformer(ModelConfig(**SHAPE, dropout=0.3, norm="rmsnorm", positions="rotary", n_kv_heads=1)).double()
    model.blocks[0].attn.v.weight.requires_grad_(False)
    gradients = []
    for engine in (Explicit(), Explicit(compiled=True)):
        model.zero_grad()
        torch.manual_seed(3)
        losses = [engine.loss_and_grads(model, batch(seed), scale=0.5) for seed in (0, 1)]
        gradients.append({"loss": torch.stack(losses), **{name: p.grad for name, p in model.named_parameters()}})
    plain, compiled = gradients
    assert compiled["blocks.0.attn.v.weight"] is None
    assert not plain["loss"][0].equal(plain["loss"][1])
    for name, expected in plain.items():
        if expected is not None:
            torch.testing.assert_close(compiled[name], expected, rtol=1e-10, atol=1e-14, msg=name)


@pytest.mark.skipif(shutil.which("g++") is None, reason="because there is no C++ compiler, which PyTorch's own takes")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", ["hyper-connections", "mhc"])
def test_several_streams_compile(name: str) -> None:
    """What is compiled without it, by Numba, is recorded as PyTorch: on a batch other than that which was recorded."""
    model = Transformer(ModelConfig(**{**SHAPE, "n_layers": 1}, residual=name))
    engines = (Explicit(), Explicit(compiled=True))
    for number in (0, 1):
        gradients = []
        for engine in engines:
            model.zero_grad()
            loss = engine.loss_and_grads(model, batch(number))
            gradients.append({"loss": loss, **{name: p.grad for name, p in model.named_parameters()}})
        plain, compiled = gradients
        for parameter, expected in plain.items():
            torch.testing.assert_close(compiled[parameter], expected, rtol=1e-4, atol=1e-6, msg=parameter)


def test_what_failed_to_compile_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def without_compiler(*args: object) -> None:
        raise torch._inductor.exc.InductorError(RuntimeError("No working C++ compiler found"), None)

    monkeypatch.setattr(torch, "compile", lambda graph, **options: without_compiler)
    with pytest.raises(InputError, match=r"^run\.compile: PyTorch's compiler gave up \(.*\): install a C\+\+ compiler"):
        Explicit(compiled=True).loss_and_grads(Transformer(ModelConfig(**SHAPE)), batch(0))


def test_a_graph_is_recorded_anew_where_what_it_took_for_granted_has_changed() -> None:
    def freeze(model: Transformer) -> None:
        model.final_norm.gain.requires_grad_(False)

    def replace(model: Transformer) -> None:
        model.final_norm.gain = torch.nn.Parameter(torch.ones(12))

    def drop_more(model: Transformer) -> None:
        model.blocks[1].ff.dropout.p = 0.5

    def judge_one_block(model: Transformer) -> None:
        model.blocks[0].eval()

    for change in (freeze, replace, drop_more, judge_one_block, Transformer.double, Transformer.eval):
        model = Transformer(ModelConfig(**SHAPE, dropout=0.1))
        with torch.no_grad():
            recorded = CompiledPass(lambda model, batch: Explicit()._run(model, batch, 1.0), model, batch(0))
        assert recorded.still_holds()
        change(model)
        assert not recorded.still_holds(), change


@pytest.mark.parametrize("options", [{"keep": "every-2"}, {"main_grads": True}], ids=str)
def test_choices_that_exclude_each_other(options: dict) -> None:
    with pytest.raises(InputError, match=r"run\.compile keeps everything|choose one of them"):
        Explicit(compiled=True, **options)
