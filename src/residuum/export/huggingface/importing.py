"""A folder that holds a `BitNetForCausalLM` as the run of a model of ours, of which no step has been trained here."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import torch

from residuum.errors import InputError
from residuum.export.huggingface.config import model_config
from residuum.export.huggingface.read import read_model, read_tokenizer
from residuum.export.huggingface.source import Source
from residuum.files import check_free, whole_folder, write_whole
from residuum.train import Recipe, RunFolder
from residuum.train.checkpoint import save_checkpoint
from residuum.train.optimizer import make_optimizer
from residuum.train.recipe import DataConfig, OptimConfig
from residuum.train.text import read_corpus

GIVEN = ("context", "dropout")
"""Fields of the model's shape that somebody may choose: a shorter context, say."""


def recipe_of(path: Path) -> Recipe:
    """What the run of the model in `path` is at first: its shape, and a tenth of a new run's learning rate."""
    model = model_config(Source(path))
    data = DataConfig(tokenizer="bpe", vocab_size=max(model.vocab_size, 257))  # not read: the tokenizer is there
    return Recipe(data=data, model=model, optim=OptimConfig(lr=1e-4, min_lr=1e-5))


def import_run(path: Path, recipe: Recipe) -> RunFolder:
    """Write the run folder `recipe.run.dir`, whose step 0 has the weights and the tokenizer of the folder `path`.

    Raises `InputError`, before anything is written, where something of either cannot be.
    """
    if recipe.run.dir is None:
        raise InputError("--run.dir is missing: give the folder that the run is to be")
    run = Path(recipe.run.dir)
    check_free(run, "--run.dir")
    if recipe.twin:
        raise InputError(
            "twin = true is nothing for imported weights, whose full-precision twin would begin with random ones: "
            "leave --twin away"
        )
    _check_given(recipe, recipe_of(path), path)
    source = Source(path)
    tokenizer = read_tokenizer(source)
    model = read_model(source, recipe.model)
    corpus = read_corpus(recipe.data)
    with whole_folder(run) as part:
        folder = RunFolder(part)
        write_whole(folder.tokenizer_file, tokenizer.to_json())
        folder.write_recipe(recipe, corpus.fingerprint, imported=path)
        optimizer = make_optimizer(model, recipe.optim, torch.device("cpu"))
        save_checkpoint(folder.checkpoints, 0, model, optimizer, {}, folder.made_from(), keep=1)
    return RunFolder(run)


def _check_given(recipe: Recipe, own: Recipe, path: Path) -> None:
    """What the weights and the tokenizer decide is not for anybody to choose."""
    fixed = [("model", field.name) for field in fields(own.model) if field.name not in GIVEN]
    for section, name in [*fixed, ("data", "tokenizer"), ("data", "vocab_size")]:
        if getattr(getattr(recipe, section), name) != getattr(getattr(own, section), name):
            raise InputError(f"{section}.{name} is what {path} says: leave it away")
    if recipe.model.context > own.model.context:
        raise InputError(f"model.context is more than the {own.model.context} of {path}: give at most that")
