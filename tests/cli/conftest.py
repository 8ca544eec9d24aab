"""Runs that have hardly been trained: what they write is noise, and the same noise each time."""

from __future__ import annotations

from pathlib import Path

import pytest

from residuum.train import RunFolder, load_recipe, train
from residuum.train.recipe import as_dict, recipe_from

SHAPE = {"d_model": 12, "n_layers": 2, "n_heads": 3}


def barely_trained(path: Path, name: str, data: dict, model: dict) -> Path:
    content = as_dict(load_recipe(name))
    content["run"] |= {"steps": 1, "eval_tokens": 6000, "sample_tokens": 0}
    content["optim"] |= {"batch_size": 2}
    content["data"] |= data
    content["model"] |= SHAPE | model
    train(RunFolder.create(path), recipe_from(content, "test"))
    return path


@pytest.fixture(scope="session")
def noise_run(text_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bytes of any kind, also such as are no UTF-8."""
    data = {"source": str(text_folder), "tokenizer": "byte", "held_out": 0.3}
    path = tmp_path_factory.mktemp("noise") / "run"
    return barely_trained(path, "quick", data, {"context": 16, "init_std": 0.3})


@pytest.fixture(scope="session")
def answers_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Answers sums, wrongly; ternary."""
    return barely_trained(
        tmp_path_factory.mktemp("answers") / "run", "bitnet-arithmetic", {}, {"init_std": 0.3, "n_kv_heads": 1}
    )
