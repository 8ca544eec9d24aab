"""One model, one batch, one seed: three ways to the same gradient, and the same way to train."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from residuum.engine import ENGINES, make_engine
from residuum.engine.check.cases import config as small
from residuum.engine.check.cases import ready, tokens
from residuum.engine.check.measure import compare
from residuum.model import ModelConfig, Transformer
from residuum.train import Recipe, RunFolder, train
from residuum.train.recipe import DataConfig, OptimConfig, RunConfig

SHAPES: dict[str, dict[str, Any]] = {
    "pre": {},
    "post, untied": {"residual": "post", "head": "untied"},
    "none": {"residual": "none"},
    "grouped queries": {"n_heads": 3, "n_kv_heads": 1, "activation": "squared_relu"},
}


def config(**values: Any) -> ModelConfig:
    return small(**{"d_model": 6, "n_heads": 2, "d_ff": 8, "norm": "rmsnorm", "activation": "relu", **values})


@pytest.mark.parametrize("values", SHAPES.values(), ids=list(SHAPES))
def test_loss_and_every_gradient(values: dict[str, Any]) -> None:
    model, batch = ready(Transformer(config(**values)), torch.float64), tokens()
    found: dict[str, dict[str, Tensor]] = {}
    for engine in ENGINES:
        make_engine(engine).check(model.config)
        model.zero_grad()
        loss = make_engine(engine).loss_and_grads(model, batch, scale=0.7)
        found[engine] = {"loss": loss, **{name: p.grad.clone() for name, p in model.named_parameters()}}
    for one, other in (("explicit", "scalar"), ("explicit", "autograd"), ("scalar", "autograd")):
        row = compare(one, other, "scalar", found[one], found[other])
        assert row.ok, row


def test_ten_steps() -> None:
    batches = [tokens() for _ in range(10)]
    start = ready(Transformer(config()), torch.float64).state_dict()
    ends, losses, clipped = {}, {}, {}
    for engine in ENGINES:
        model = Transformer(config()).double()
        model.load_state_dict(start)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.02, weight_decay=0.1)
        losses[engine], clipped[engine] = [], []
        for batch in batches:
            optimizer.zero_grad()
            losses[engine].append(make_engine(engine).loss_and_grads(model, batch).item())
            clipped[engine].append(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).item() > 1)
            optimizer.step()
        ends[engine] = dict(model.named_parameters())
    assert any(clipped["autograd"])
    assert clipped["explicit"] == clipped["scalar"] == clipped["autograd"]
    for engine in ("explicit", "scalar"):
        assert losses[engine] == pytest.approx(losses["autograd"], rel=1e-10)
        for name, p in ends["autograd"].items():
            assert (ends[engine][name] - p).norm() <= 1e-9 * p.norm(), name
            assert (p - start[name]).norm() > 1e-3 * p.norm(), name


def test_a_run_trained_by_each_ends_at_the_same_weights(text_folder: Path, tmp_path: Path) -> None:
    ends = {}
    for engine in ENGINES:
        recipe = Recipe(
            RunConfig(steps=3, eval_tokens=40, sample_tokens=0, device="cpu"),
            DataConfig(source=str(text_folder), held_out=0.3),
            config(context=6, n_layers=1),
            OptimConfig(batch_size=1, accumulate=2, warmup=1),
            engine=engine,
        )
        ends[engine] = dict(train(RunFolder.create(tmp_path / engine), recipe).named_parameters())
    for engine in ("explicit", "scalar"):
        for name, p in ends["autograd"].items():
            torch.testing.assert_close(ends[engine][name], p, rtol=1e-4, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
