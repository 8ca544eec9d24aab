"""The experiment that trains: what it measures, and that a kill in the middle changes nothing."""

from __future__ import annotations

import dataclasses
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from residuum.model import ModelConfig, Transformer
from residuum.model.residual import REGISTRY
from residuum.study import training
from residuum.study.cell import Cell
from residuum.study.store import Store
from residuum.study.training import engine_for, look, train_once, training_cell
from residuum.train import Recipe
from residuum.train.recipe import DataConfig, OptimConfig, RunConfig


def recipe(source: Path, **model: object) -> Recipe:
    return Recipe(
        RunConfig(steps=30, eval_every=10, eval_tokens=256, checkpoint_every=10, sample_tokens=0, log_every=1),
        DataConfig(source=str(source)),
        ModelConfig(**{"context": 16, "d_model": 16, "n_layers": 2, "n_heads": 2, **model}),  # type: ignore[arg-type]
        OptimConfig(batch_size=4, warmup=5),
        engine="explicit",
    )


def test_its_figures(text_folder: Path, tmp_path: Path) -> None:
    cell = training_cell(dataclasses.replace(recipe(text_folder)), "one")
    figures = cell.run(tmp_path / "run")
    assert [step for step, _ in figures["curve"]] == list(range(1, 31))
    assert [step for step, _ in figures["held_out"]] == [10, 20, 30]
    assert figures["bits_per_byte"] == figures["held_out"][-1][1]
    assert figures["final_loss"] == pytest.approx(sum(loss for _, loss in figures["curve"][-3:]) / 3)
    assert figures["final_loss"] < figures["first_loss"] == figures["curve"][0][1]
    assert figures["diverged_at"] is None and figures["tokens_per_second"] > 0
    assert 3 < figures["unigram_bits_per_byte"] < 5
    assert figures["at_start"]["loss"] == pytest.approx(figures["first_loss"], abs=0.1)  # ln 257, nearly


def test_a_run_that_diverges_says_when(text_folder: Path, tmp_path: Path) -> None:
    given = recipe(text_folder)
    given = dataclasses.replace(given, optim=OptimConfig(batch_size=4, warmup=0, lr=1e30, clip=0.0))
    figures = training_cell(given, "").run(tmp_path / "run")
    assert 1 <= figures["diverged_at"] <= 30
    assert figures["bits_per_byte"] is None and figures["final_loss"] is None
    assert len(figures["curve"]) < 30


def test_killed_inside_a_cell_it_ends_at_the_same_figures(text_folder: Path, tmp_path: Path) -> None:
    given = dataclasses.replace(
        recipe(text_folder), run=RunConfig(steps=60, checkpoint_every=10, eval_tokens=64, sample_tokens=0)
    )
    cell, store = training_cell(given, ""), Store(tmp_path / "store")
    program = (
        "import json, sys\nfrom residuum.study.cell import Cell\nfrom residuum.study.store import Store\n"
        "Store(sys.argv[1]).finish(Cell(*json.loads(sys.argv[2])))\n"
    )
    args = [sys.executable, "-c", program, str(store.folder), json.dumps([cell.experiment, cell.settings])]
    checkpoints = store.folder / "work" / cell.key / "checkpoints"
    with subprocess.Popen(args) as process:
        while process.poll() is None and not list(checkpoints.glob("step_000000[2-4]0")):
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL and store.figures(cell) is None
    resumed = store.finish(cell)
    assert resumed is not None and not checkpoints.parent.exists()
    unbroken = train_once(cell.settings, tmp_path / "unbroken")
    for figures in (resumed.figures, unbroken):
        figures.pop("tokens_per_second")
    assert resumed.figures == unbroken


def test_every_connection_can_be_looked_at() -> None:
    tokens = torch.randint(31, (2, 13))
    for name in REGISTRY:
        model = Transformer(ModelConfig(vocab_size=31, context=12, d_model=12, n_layers=3, n_heads=3, residual=name))
        seen = look(model, (tokens[:, :-1], tokens[:, 1:]))
        assert len(seen["state_variance"]) == len(seen["state_gradient"]) == 4
        assert all(value > 0 for value in seen["state_gradient"])
        assert (seen["parts"] is None) is (seen["parts_skipped"] is not None)
        assert all(parameter.grad is None for parameter in model.parameters())
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
        assert engine_for(name) in ("explicit", "autograd")


def test_what_is_looked_at_is_the_state() -> None:
    """Against the same by hand, for Pre-LN."""
    model = Transformer(ModelConfig(vocab_size=31, context=12, d_model=12, n_layers=2, n_heads=3))
    tokens = torch.randint(31, (2, 13))
    x, y = tokens[:, :-1], tokens[:, 1:]
    states = [model.embedding(x) + model.positions(0, 12)]
    states[0].retain_grad()
    for block in model.blocks:
        states.append(block(states[-1]))
        states[-1].retain_grad()
    scores = model.head(model.final_norm(states[-1]))
    torch.nn.functional.cross_entropy(scores.flatten(0, 1), y.flatten()).backward()
    seen = look(model, (x, y))
    assert seen["state_variance"] == pytest.approx([float(s.detach().var(correction=0)) for s in states])
    assert seen["state_gradient"] == pytest.approx([float(s.grad.norm()) for s in states], rel=1e-5)


def test_cost_grows_with_depth_and_steps(text_folder: Path) -> None:
    small, deep = (training_cell(recipe(text_folder, n_layers=layers), "") for layers in (2, 8))
    assert isinstance(small, Cell) and 2 < deep.cost / small.cost < 4
    assert "dir" not in small.settings["run"]


def test_another_text_or_another_code_is_another_cell(
    text_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def key(residual: str) -> str:
        training._fingerprint.cache_clear()
        monkeypatch.delitem(sys.modules, "mine_of_a_cell", raising=False)
        REGISTRY.pop("mine-of-a-cell", None)
        recipe = Recipe(data=DataConfig(source=str(folder)), model=ModelConfig(residual=residual))
        return training_cell(recipe, "").key

    folder, code = tmp_path / "text", tmp_path / "mine_of_a_cell.py"
    shutil.copytree(text_folder, folder)
    code.write_text(MINE.format(factor=0.5))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = key("pre"), key("mine_of_a_cell:Mine")
    assert (key("pre"), key("mine_of_a_cell:Mine")) == before
    code.write_text(MINE.format(factor=-300.0))
    assert key("pre") == before[0] and key("mine_of_a_cell:Mine") != before[1]
    next(folder.iterdir()).write_text("another text\n" * 200)
    assert key("pre") != before[0]
    REGISTRY.pop("mine-of-a-cell", None)


MINE = """
from residuum.model.residual import Residual, register

@register("mine-of-a-cell")
class Mine(Residual):
    def forward(self, x, branch, *args):
        return x + {factor} * branch(x, *args)
"""
