"""The norms of both gradient parts that an explicit run writes down: the very ones of its batches and weights."""

from __future__ import annotations

import json
import math
import re
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from residuum.audit.run import audit_run, write_report
from residuum.engine.explicit import Explicit
from residuum.model import ModelConfig, Transformer
from residuum.model.residual import Parts
from residuum.stream import flow
from residuum.train import Recipe, RunFolder, train
from residuum.train.batches import Batches
from residuum.train.gradient_parts import loss_and_parts
from residuum.train.recipe import DataConfig, OptimConfig, RunConfig
from residuum.train.text import read_corpus
from residuum.train.tokenizer import ByteTokenizer, tokenize


@pytest.fixture
def recipe(text_folder: Path) -> Recipe:
    return Recipe(
        RunConfig(steps=5, log_every=2, eval_every=5, eval_tokens=100, sample_tokens=0, device="cpu"),
        DataConfig(source=str(text_folder), held_out=0.3),
        ModelConfig(context=16, d_model=12, n_layers=2, n_heads=3, dropout=0.2),
        OptimConfig(batch_size=3, accumulate=2, warmup=2),
        engine="explicit",
    )


def metrics(path: Path) -> list[dict]:
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("residual", ["pre", "post"])
def test_the_first_line_holds_what_flow_measures_on_the_same_batch(
    residual: str, recipe: Recipe, tmp_path: Path
) -> None:
    recipe = replace(recipe, model=replace(recipe.model, residual=residual, dropout=0.0))
    trained = train(RunFolder.create(tmp_path / "run"), recipe)
    torch.manual_seed(0)
    model = Transformer(trained.config)
    x, y = Batches(tokenize(ByteTokenizer(), read_corpus(recipe.data).train), 16, 3, seed=0).at(0)
    seen = flow(model, x, loss=lambda scores: F.cross_entropy(scores.flatten(0, 1), y.flatten()))
    expected = [[m.backward.identity, m.backward.branch] for m in seen.all_measured if m.backward]
    first = metrics(tmp_path / "run")[1]
    assert first["step"] == 1
    assert len(first["gradient_parts"]) == len(expected) == 4
    for pair, wanted in zip(first["gradient_parts"], expected, strict=True):
        assert pair == pytest.approx(wanted, rel=1e-5)
        assert min(pair) > 0


def test_every_line_of_an_explicit_run_has_them_and_no_other_runs(recipe: Recipe, tmp_path: Path) -> None:
    train(RunFolder.create(tmp_path / "explicit"), recipe)
    train(RunFolder.create(tmp_path / "autograd"), replace(recipe, engine="autograd"))
    lines = metrics(tmp_path / "explicit")
    assert [line["step"] for line in lines if "gradient_parts" in line] == [1, 2, 4, 5]
    assert not any("gradient_parts" in line for line in metrics(tmp_path / "autograd"))


def test_the_report_of_an_explicit_run_draws_them(recipe: Recipe, tmp_path: Path) -> None:
    for engine in ("explicit", "autograd"):
        folder = RunFolder.create(tmp_path / engine)
        train(folder, replace(recipe, engine=engine))
        write_report(folder, audit_run(folder))
    explicit, autograd = ((tmp_path / engine / "report.html").read_text() for engine in ("explicit", "autograd"))
    assert re.search(r"the identity path took \d+% of the gradient on average at step 5, \d+% at step 1", explicit)
    assert "Gradient while training" not in autograd
    assert explicit.count('class="chart"') == autograd.count('class="chart"') + 1


def test_they_change_no_weight(recipe: Recipe, tmp_path: Path) -> None:
    """At every step, or at the first and the last alone: the same weights, bit for bit, with dropout too."""
    often, seldom = (
        train(RunFolder.create(tmp_path / str(every)), replace(recipe, run=replace(recipe.run, log_every=every)))
        for every in (1, 100)
    )
    for (name, p), q in zip(often.named_parameters(), seldom.parameters(), strict=True):
        assert torch.equal(p, q), name


def test_no_connection_no_parts(recipe: Recipe, tmp_path: Path) -> None:
    train(RunFolder.create(tmp_path / "run"), replace(recipe, model=replace(recipe.model, residual="none")))
    assert [line.get("gradient_parts") for line in metrics(tmp_path / "run")] == [None, [], [], [], []]


def test_a_function_is_given_each_connection(tiny: Transformer) -> None:
    """In the order of the backward; its answers come in the order of the forward."""
    tokens = torch.randint(31, (2, 7))
    _, whole = Explicit().loss_and_grads(tiny, (tokens, tokens), flow=True)
    seen: list[Parts] = []

    def number(parts: Parts) -> int:
        seen.append(parts)
        return len(seen)

    _, numbers = Explicit().loss_and_grads(tiny, (tokens, tokens), flow=number)
    assert numbers == [6, 5, 4, 3, 2, 1]
    for parts, wanted in zip(seen[::-1], whole, strict=True):
        assert torch.equal(parts.identity, wanted.identity)
        assert torch.equal(parts.branch, wanted.branch)


def test_no_part_outlives_its_connection(tiny: Transformer) -> None:
    tokens = torch.randint(31, (2, 7))
    alive: list[weakref.ref[torch.Tensor]] = []
    most = 0

    def count(parts: Parts) -> None:
        nonlocal most
        alive.append(weakref.ref(parts.branch))
        most = max(most, sum(ref() is not None for ref in alive))

    Explicit().loss_and_grads(tiny, (tokens, tokens), flow=count)
    assert len(alive) == 6
    assert most == 1


def test_a_norm_that_is_not_finite_is_none(tiny: Transformer) -> None:
    """The squares of 1e30 overflow float32: the line stays JSON."""
    with torch.no_grad():
        tiny.final_norm.gain.fill_(1e30)
        tiny.embedding.weight.mul_(1e-3)
    tokens = torch.randint(31, (2, 7))
    _, parts = loss_and_parts(Explicit(), tiny, (tokens, tokens), 1.0)
    assert None in {number for pair in parts for number in pair}
    assert all(number is None or math.isfinite(number) for pair in parts for number in pair)
