"""The training loop."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from residuum.errors import InputError
from residuum.files import write_whole
from residuum.model import Transformer, generate
from residuum.train.batches import Batches, check_length
from residuum.train.checkpoint import (
    discard_parts,
    load_moments,
    load_weights,
    newest_checkpoint,
    save_checkpoint,
)
from residuum.train.evaluate import bigram_bits_per_byte, bits_per_byte
from residuum.train.optimizer import make_optimizer
from residuum.train.recipe import Recipe
from residuum.train.run_folder import Log, RunFolder
from residuum.train.schedule import learning_rate
from residuum.train.text import Corpus, read_corpus
from residuum.train.tokenizer import Tokenizer, make_tokenizer, tokenize


class Progress(Protocol):
    """What the loop tells whoever watches."""

    def note(self, text: str) -> None: ...

    def step(self, line: dict[str, float], steps: int) -> None: ...


class Silent:
    """Nobody watches."""

    def note(self, text: str) -> None: ...

    def step(self, line: dict[str, float], steps: int) -> None: ...


def train(folder: RunFolder, recipe: Recipe, progress: Progress | None = None) -> Transformer:
    """Train in `folder` from its newest checkpoint, or from the start if it has none, to the recipe's last step.

    What happens at a step depends on the recipe, the data, and the weights and moments before it; on nothing else. So a
    run that was killed anywhere and goes on ends at the same weights, bit for bit, on the same machine.
    """
    progress = progress or Silent()
    device = _device(recipe.run.device)
    corpus = read_corpus(recipe.data)
    _same_data(folder, corpus)
    note = f", {corpus.skipped} files skipped, because they are not UTF-8 text" if corpus.skipped else ""
    progress.note(f"{len(corpus.train) + len(corpus.held_out):,} documents, {corpus.n_bytes / 1e6:.1f} MB{note}")
    tokenizer = _tokenizer(folder, recipe, corpus)
    recipe = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, vocab_size=tokenizer.vocab_size))
    train_tokens, held_tokens = tokenize(tokenizer, corpus.train), tokenize(tokenizer, corpus.held_out)
    check_length(held_tokens, recipe.model.context)
    batches = Batches(train_tokens, recipe.model.context, recipe.optim.batch_size, recipe.run.seed)
    bigram = bigram_bits_per_byte(corpus.train, corpus.held_out)
    progress.note(f"{len(train_tokens):,} training tokens; a byte bigram model needs {bigram:.3f} bits per byte")

    torch.manual_seed(recipe.run.seed)
    model = Transformer(recipe.model).to(device)
    optimizer = make_optimizer(model, recipe.optim, device)
    progress.note(f"{sum(p.numel() for p in model.parameters()):,} parameters on {device}")
    if not folder.recipe_file.exists():
        write_whole(folder.tokenizer_file, tokenizer.to_json())
        folder.write_recipe(recipe, corpus.fingerprint)
    discard_parts(folder.path)
    discard_parts(folder.checkpoints)
    checkpoint = newest_checkpoint(folder.checkpoints)
    first = 0
    if checkpoint is not None:
        load_weights(checkpoint, model)
        load_moments(checkpoint, model, optimizer)
        first = checkpoint.step
    lengths = checkpoint.log_bytes if checkpoint else {}
    metrics = Log(folder.metrics_file, lengths.get("metrics.jsonl", 0))
    samples = Log(folder.samples_file, lengths.get("samples.txt", 0))
    if checkpoint is None:
        metrics.append(json.dumps({"step": 0, "bigram_bits_per_byte": bigram}) + "\n")

    run, optim = recipe.run, recipe.optim
    clock, since = time.perf_counter(), first
    for step in range(first, run.steps):
        lr = learning_rate(step, run.steps, optim)
        for group in optimizer.param_groups:
            group["lr"] = lr
        loss, norm, targets = _step(model, optimizer, batches, step, recipe, device)
        done = step + 1
        if not math.isfinite(loss):
            raise InputError(
                f"the loss is {loss} at step {done}: lower optim.lr ({optim.lr:g}) or raise optim.warmup "
                f"({optim.warmup}); checkpoints before it are kept"
            )
        line: dict[str, float] = {"step": done, "loss": loss, "lr": lr, "grad_norm": norm}
        evaluated = done % run.eval_every == 0 or done == run.steps
        if evaluated or done % run.log_every == 0 or done == 1:
            passed = (time.perf_counter() - clock) / (done - since)
            line["train_bits_per_byte"] = loss / math.log(2) / float(tokenizer.token_bytes[targets].mean())
            line["tokens_per_second"] = targets.size / passed
            if evaluated:
                line["bits_per_byte"] = bits_per_byte(model, held_tokens, tokenizer, run.eval_tokens, optim.batch_size)
                if run.sample_tokens:
                    samples.append(f"== step {done}\n{_sample(model, tokenizer, recipe, done)}\n\n")
            metrics.append(json.dumps(line) + "\n")
            progress.step(line, run.steps)
            clock, since = time.perf_counter(), done
        if done % run.checkpoint_every == 0 or done == run.steps:
            metrics.settle()
            samples.settle()
            log_bytes = {"metrics.jsonl": metrics.length, "samples.txt": samples.length}
            save_checkpoint(folder.checkpoints, done, model, optimizer, log_bytes, run.keep_checkpoints)
    metrics.close()
    samples.close()
    return model.eval()


def _step(
    model: Transformer,
    optimizer: torch.optim.Optimizer,
    batches: Batches,
    step: int,
    recipe: Recipe,
    device: torch.device,
) -> tuple[float, float, NDArray[np.int64]]:
    """One optimizer step: the mean loss in nats per token, the gradient's norm before clipping, and the targets."""
    # Dropout must not remember what was drawn before a kill, so every step starts its own sequence.
    torch.manual_seed(recipe.run.seed * 1_000_003 + step)
    model.train()
    optimizer.zero_grad(set_to_none=True)
    total, targets = torch.zeros((), device=device), []
    for micro in range(recipe.optim.accumulate):
        x, y = batches.at(step, micro)
        with _precision(recipe.run.precision, device):
            loss = model.loss(x.to(device), y.to(device)) / recipe.optim.accumulate
        loss.backward()
        total += loss.detach()
        targets.append(y.numpy())
    most = recipe.optim.clip or float("inf")
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), most)
    optimizer.step()
    return float(total), float(norm), np.concatenate(targets)


def _sample(model: Transformer, tokenizer: Tokenizer, recipe: Recipe, step: int) -> str:
    generator = torch.Generator().manual_seed(recipe.run.seed * 1_000_003 + step)
    model.eval()
    tokens = generate(model, [tokenizer.separator], recipe.run.sample_tokens, 0.8, generator=generator)
    return tokenizer.decode(list(tokens))


def _tokenizer(folder: RunFolder, recipe: Recipe, corpus: Corpus) -> Tokenizer:
    if folder.tokenizer_file.exists():
        return folder.tokenizer
    # The alphabet is the whole text's, so that held-out characters can be scored; merges are learned on training text.
    every = recipe.data.tokenizer == "char"
    return make_tokenizer(recipe.data, corpus.train + corpus.held_out if every else corpus.train)


def _same_data(folder: RunFolder, corpus: Corpus) -> None:
    if folder.recipe_file.exists() and folder.made_with().get("data_fingerprint") != corpus.fingerprint:
        raise InputError(
            f"the text of data.source is not what {folder.path} was trained on: restore it, or start a new run with "
            f"residuum train {folder.recipe_file}"
        )


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"run.device = '{name}' cannot be used: {str(error).splitlines()[0]}") from None
    return device


def _precision(name: str, device: torch.device) -> AbstractContextManager[object]:
    if name == "float32" or (name == "auto" and (device.type != "cuda" or not torch.cuda.is_bf16_supported())):
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)
