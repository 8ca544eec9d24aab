"""The explicit pass as one compiled graph: the same numbers as the pass it was recorded from."""

from __future__ import annotations

import shutil

import pytest
import torch

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


def test_what_failed_to_compile_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def without_compiler(*args: object) -> None:
        raise torch._inductor.exc.InductorError(RuntimeError("No working C++ compiler found"), None)

    monkeypatch.setattr(torch, "compile", lambda graph, **options: without_compiler)
    with pytest.raises(InputError, match=r"^run\.compile: PyTorch's compiler gave up \(.*\): install a C\+\+ compiler"):
        Explicit(compiled=True).loss_and_grads(Transformer(ModelConfig(**SHAPE)), batch(0))
