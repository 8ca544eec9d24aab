"""The experiment that most studies are made of: train one model, and look at it before its first step."""

from __future__ import annotations

import math
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from residuum.engine.trial import try_out
from residuum.model import Transformer
from residuum.model.residual import residual_named
from residuum.stream import TraceError, flow
from residuum.study.cell import Cell, experiment
from residuum.train import Recipe, RunFolder, train
from residuum.train.batches import Batches, check_length
from residuum.train.evaluate import unigram_bits_per_byte
from residuum.train.loop import Diverged, new_model
from residuum.train.recipe import DataConfig, as_dict, recipe_from
from residuum.train.run_folder import code_of
from residuum.train.text import read_corpus
from residuum.train.tokenizer import ByteTokenizer, make_tokenizer, tokenize

# At the end of a run the loss is still noisy from step to step: it is averaged over this share of the steps.
LAST = 0.1

# Positions of the batch that a model is looked at with before its first step.
LOOK = 8


DEPENDS = "depends_on"
"""Checksums, among a cell's settings, of what a recipe only names: another text is another cell."""


def training_cell(recipe: Recipe, label: str) -> Cell:
    """`train_once` with a recipe as its settings. Its run has a folder of its own, whatever run.dir says.

    Raises `InputError` for a connection of somebody's own that is at fault, and for a text that cannot be read.
    """
    _try_out(recipe.model, recipe.engine)
    settings = as_dict(recipe)
    settings["run"].pop("dir", None)
    settings.pop("twin")  # a model of its own: who wants it trained makes it a cell
    settings[DEPENDS] = {
        "text": _fingerprint(recipe.data, recipe.model.context),
        "connection": code_of(recipe.model.residual),
    }
    run, model, optim = recipe.run, recipe.model, recipe.optim
    tokens = optim.batch_size * optim.accumulate * model.context
    # A tiny step is all calls, a larger one all products: 12 d_model² of them a token and layer.
    each = 1 + tokens * 12 * model.d_model**2 / 4e6
    return Cell(f"{__name__}:train_once", settings, run.steps * (2 + model.n_layers) * each, label)


# Cells of one row differ in their seed alone.
_try_out = lru_cache(maxsize=64)(try_out)


@lru_cache(maxsize=8)
def _fingerprint(config: DataConfig, context: int) -> str:
    """Of a text that has more bytes than `context` tokens; training finds out how many of its own tokens it has."""
    corpus = read_corpus(config)
    for part in (corpus.train, corpus.held_out):
        check_length(tokenize(ByteTokenizer(), part), context)
    return corpus.fingerprint


def engine_for(residual: str) -> str:
    """The explicit engine, which is the faster one, where all of the connection is derived by hand; else autograd."""
    return "autograd" if residual_named(residual).underived() else "explicit"


@experiment(version=2, resumes=True)
def train_once(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Train by the recipe that `settings` are. A run that was killed goes on from its newest checkpoint.

    Losses are in nats per token, `bits_per_byte` is held out. `curve` and `held_out` are [step, value] pairs,
    `final_loss` is the mean over the last tenth of the steps. A run that diverged has `diverged_at`, the step at which
    something was not finite, and neither final loss nor bits per byte. `at_start` is what `look` saw.
    """
    settings.pop(DEPENDS, None)
    recipe = recipe_from(settings, "the cell's settings")
    text = _text(recipe.data)
    device = torch.device("cpu")
    at_start = look(new_model(_with_vocab(recipe, text.vocab_size), device), text.batch(recipe))
    begun = (folder / "recipe.toml").exists()
    run = RunFolder.open(folder) if begun else RunFolder.create(folder)
    diverged_at = None
    try:
        train(run, run.recipe if begun else recipe)
    except Diverged as diverged:
        diverged_at = diverged.step
    lines = [line for line in run.metrics() if "loss" in line]
    curve = [[line["step"], line["loss"]] for line in lines]
    held_out = [[line["step"], line["bits_per_byte"]] for line in lines if "bits_per_byte" in line]
    last = [loss for step, loss in curve if step > (1 - LAST) * recipe.run.steps]
    finished = diverged_at is None
    speeds = sorted(line["tokens_per_second"] for line in lines)
    return {
        "engine": recipe.engine,
        "parameters": run.n_parameters(),
        "data_fingerprint": run.made_with()["data_fingerprint"],
        "curve": curve,
        "held_out": held_out,
        "first_loss": curve[0][1] if curve else None,
        "final_loss": sum(last) / len(last) if finished else None,
        "bits_per_byte": held_out[-1][1] if finished else None,
        "unigram_bits_per_byte": text.unigram,
        "diverged_at": diverged_at,
        "tokens_per_second": speeds[len(speeds) // 2] if speeds else None,
        "at_start": at_start,
    }


def look(model: Transformer, batch: tuple[Tensor, Tensor]) -> dict[str, Any]:
    """A model at its first weights: what each layer does to the stream, and what gradient comes back to it.

    `state_variance[k]` is the variance of all entries of the state after block k (k = 0: before the first), and
    `state_gradient[k]` the Euclidean norm of the loss's gradient there. A state of several tensors counts by its first.
    `parts` are the norms of both parts of the gradient at each connection that `residuum.stream` finds, [identity,
    branch] in order of depth; None, with `parts_skipped` saying why, where it cannot be measured. `logits_std` is the
    spread of the scores. A number that is not finite is None.
    """
    tokens, targets = batch
    variances: list[float] = []
    gradients: list[float] = []

    def watch(state: Any) -> None:
        first = state[0] if isinstance(state, (tuple, list)) else state
        variances.append(float(first.detach().float().var(correction=0)))
        place = len(gradients)
        gradients.append(0.0)  # where no gradient comes back, it is zero
        first.register_hook(lambda gradient: gradients.__setitem__(place, float(gradient.float().norm())))

    handles = [model.blocks[0].register_forward_pre_hook(lambda _, args: watch(args[0]))]
    handles += [block.register_forward_hook(lambda _, __, state: watch(state)) for block in model.blocks]
    try:
        scores = model(tokens)
        loss = _cross_entropy(scores, targets)
        loss.backward()
    finally:
        for handle in handles:
            handle.remove()
    model.zero_grad(set_to_none=True)
    parts, skipped = _parts(model, tokens, targets)
    return {
        "loss": _number(float(loss.detach())),
        "logits_std": _number(float(scores.detach().float().std())),
        "state_variance": [_number(value) for value in variances],
        "state_gradient": [_number(value) for value in gradients],
        "parts": parts,
        "parts_skipped": skipped,
    }


def _parts(model: Transformer, tokens: Tensor, targets: Tensor) -> tuple[list[list[float | None]] | None, str | None]:
    try:
        seen = flow(model, tokens, loss=lambda scores: _cross_entropy(scores, targets))
    except TraceError as error:
        return None, f"skipped, because {error}"
    found = [m.backward for m in seen.all_measured if m.backward is not None]
    return [[_number(part.identity), _number(part.branch)] for part in found], None


def _cross_entropy(scores: Tensor, targets: Tensor) -> Tensor:
    return torch.nn.functional.cross_entropy(scores.flatten(0, 1).float(), targets.flatten())


class _Text:
    """What a cell needs of its text besides what training reads itself."""

    def __init__(self, config: DataConfig) -> None:
        corpus = read_corpus(config)
        tokenizer = make_tokenizer(
            config, corpus.train + corpus.held_out if config.tokenizer == "char" else corpus.train
        )
        self.vocab_size = tokenizer.vocab_size
        self.tokens = tokenize(tokenizer, corpus.train)
        self.unigram = unigram_bits_per_byte(corpus.train, corpus.held_out)

    def batch(self, recipe: Recipe) -> tuple[Tensor, Tensor]:
        """The same for every model of a study with this context and seed."""
        return Batches(self.tokens, recipe.model.context, LOOK, recipe.run.seed).at(0)


# Cells of one study share their text.
@lru_cache(maxsize=1)
def _text(config: DataConfig) -> _Text:
    return _Text(config)


def _with_vocab(recipe: Recipe, vocab_size: int) -> Recipe:
    return recipe_from({**as_dict(recipe), "model": {**as_dict(recipe)["model"], "vocab_size": vocab_size}}, "recipe")


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
