"""The training loop."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from contextlib import AbstractContextManager, closing, nullcontext
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from residuum.engine import make_engine
from residuum.engine.explicit import Explicit
from residuum.engine.trial import faults_named, try_out
from residuum.errors import InputError
from residuum.files import write_whole
from residuum.model import Sampling, Transformer, generate
from residuum.model.cross_entropy import NOT_COUNTED
from residuum.model.experts import MixtureOfExperts
from residuum.train.answers import QuestionBatches, Questions
from residuum.train.batches import Batches, check_length
from residuum.train.checkpoint import (
    discard_parts,
    list_checkpoints,
    load_moments,
    load_weights,
    save_checkpoint,
)
from residuum.train.culprit import culprit
from residuum.train.evaluate import bigram_bits_per_byte, bits_per_byte, held_out_batch
from residuum.train.gradient_parts import Norms, loss_and_parts
from residuum.train.optimizer import make_optimizer, set_rates
from residuum.train.recipe import Recipe
from residuum.train.run_folder import Log, RunFolder
from residuum.train.schedule import learning_rate, weight_decay
from residuum.train.ternary import Flips, activation_levels, estimator_cosine, shares
from residuum.train.text import Corpus, read_corpus
from residuum.train.tokenizer import Tokenizer, Tokens, make_tokenizer, tokenize


class Diverged(InputError):
    """Loss, gradient or weights are not finite after `step` steps."""

    def __init__(self, message: str, step: int) -> None:
        super().__init__(message)
        self.step = step


class Progress(Protocol):
    """What the loop tells whoever watches: each step as a line of metrics.jsonl, also where the file gets none."""

    def note(self, text: str) -> None: ...

    def step(self, line: dict[str, Any], steps: int) -> None: ...


class Silent:
    """Nobody watches."""

    def note(self, text: str) -> None: ...

    def step(self, line: dict[str, Any], steps: int) -> None: ...


def train(folder: RunFolder, recipe: Recipe, progress: Progress | None = None) -> Transformer:
    """Train in `folder` from its newest checkpoint, or from the start if it has none, to the recipe's last step.

    What happens at a step depends on the recipe, the data, and the weights and moments before it; on nothing else. So a
    run that was killed anywhere and goes on ends at the same weights, bit for bit, on the same machine.
    """
    progress = progress or Silent()
    resumed = folder.recipe_file.exists()
    device = _device("cpu" if recipe.engine == "scalar" else recipe.run.device)
    corpus = read_corpus(recipe.data)
    if resumed:
        _same_data(folder, corpus)
        _same_code(folder)
    skipped = f", {corpus.skipped} files skipped, because they are not UTF-8 text" if corpus.skipped else ""
    progress.note(f"{len(corpus.train) + len(corpus.held_out):,} documents, {corpus.n_bytes / 1e6:.1f} MB{skipped}")
    try_out(recipe.model, recipe.engine, device)
    tokenizer = folder.tokenizer if resumed else _new_tokenizer(recipe, corpus)
    recipe = dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, vocab_size=tokenizer.vocab_size))
    train_tokens, held_out = tokenize(tokenizer, corpus.train), tokenize(tokenizer, corpus.held_out)
    context, batch_size, seed = recipe.model.context, recipe.optim.batch_size, recipe.run.seed
    questions = None
    batches: Batches | QuestionBatches
    if (mark := recipe.data.answer) is not None:
        batches = QuestionBatches(train_tokens, tokenizer, mark, context, batch_size, seed)
        questions = Questions(corpus.held_out, tokenizer, mark, context)
    else:
        batches = Batches(train_tokens, context, batch_size, seed)
        check_length(held_out, context)
    bigram = None if questions else bigram_bits_per_byte(corpus.train, corpus.held_out)  # which has no questions
    if questions:
        yardstick = f"{questions.count:,} held-out questions are asked"
    else:
        yardstick = f"a byte bigram model needs {bigram:.3f} bits per byte"
    progress.note(f"{len(train_tokens):,} training tokens; {yardstick}")
    model = new_model(recipe, device)
    progress.note(f"{sum(p.numel() for p in model.parameters()):,} parameters on {device}")
    training = _Training(folder, recipe, model, batches, questions, held_out, tokenizer, device, progress)
    with folder.locked():
        if folder.recipe_file.exists() != resumed:
            raise InputError(f"another process has begun a run in {folder.path}: choose another --run.dir")
        if not resumed:
            write_whole(folder.tokenizer_file, tokenizer.to_json())
            folder.write_recipe(recipe, corpus.fingerprint)
        training.run(bigram)
    return model.eval()


class _Training:
    """A run under way."""

    def __init__(
        self,
        folder: RunFolder,
        recipe: Recipe,
        model: Transformer,
        batches: Batches | QuestionBatches,
        questions: Questions | None,
        held_out: Tokens,
        tokenizer: Tokenizer,
        device: torch.device,
        progress: Progress,
    ) -> None:
        self.folder, self.recipe, self.model, self.batches = folder, recipe, model, batches
        self.questions, self.held_out, self.tokenizer = questions, held_out, tokenizer
        self.device, self.progress = device, progress
        self.engine = make_engine(recipe.engine, recipe.run.keep, recipe.run.compile)
        self.optimizer = make_optimizer(model, recipe.optim, device)
        self.flips = Flips(model)

    def run(self, bigram: float | None) -> None:
        """Every step that is left, with its evaluations, samples and checkpoints."""
        first, metrics, samples = self._begin(bigram)
        with closing(metrics), closing(samples), faults_named(self.recipe.model):
            self._steps(first, metrics, samples)

    def _steps(self, first: int, metrics: Log, samples: Log) -> None:
        folder, run, optim = self.folder, self.recipe.run, self.recipe.optim
        made_from = folder.made_from()
        read = optim.batch_size * optim.accumulate * self.recipe.model.context
        clock, since = time.perf_counter(), first
        self.flips.at(first)
        for step in range(first, run.steps):
            lr = learning_rate(step, run.steps, optim)
            done = step + 1
            evaluated = done % run.eval_every == 0 or done == run.steps
            saved = done % run.checkpoint_every == 0 or done == run.steps
            recorded = evaluated or done % run.log_every == 0 or done == 1
            loss, norm, experts, targets, parts = self._step(step, lr, recorded)
            flips = self.flips.at(done)
            if evaluated or saved:
                self._check_weights(done, loss, norm)
            line: dict[str, Any] = {"step": done, "loss": loss, "lr": lr, "grad_norm": norm, **experts}
            nats = loss
            if experts:  # the sum over layers is part of the loss, and not of how well text is predicted
                nats -= self.recipe.model.balance * self.recipe.model.n_layers * experts["imbalance"]
            line["train_bits_per_byte"] = nats / math.log(2) / float(self.tokenizer.token_bytes[targets].mean())
            line["tokens_per_second"] = read * (done - since) / (time.perf_counter() - clock)
            if parts is not None:
                line["gradient_parts"] = parts
            if flips is not None:
                recorded, line["flips"] = True, flips
            if evaluated and self.flips.maps:
                line |= self._ternary()
            if evaluated:
                if self.questions is None:
                    line["bits_per_byte"] = bits_per_byte(
                        self.model, self.held_out, self.tokenizer, run.eval_tokens, optim.batch_size
                    )
                else:
                    line["bits_per_byte"], line["exact_match"], kinds = self.questions.ask(self.model, optim.batch_size)
                    if kinds:
                        line["exact_match_by_kind"] = kinds
                if run.sample_tokens:
                    samples.append(f"== step {done}\n{self._sample(done)}\n\n")
            if recorded:
                metrics.append(json.dumps(line, allow_nan=False) + "\n")
                clock, since = time.perf_counter(), done
            self.progress.step(line, run.steps)
            if saved:
                metrics.settle()
                samples.settle()
                log_bytes = {log.path.name: log.length for log in (metrics, samples)}
                save_checkpoint(
                    folder.checkpoints, done, self.model, self.optimizer, log_bytes, made_from, run.keep_checkpoints
                )

    def _begin(self, bigram: float | None) -> tuple[int, Log, Log]:
        """Take up the newest checkpoint: the steps already done, and both logs as they were then."""
        folder = self.folder
        discard_parts(folder.path)
        discard_parts(folder.checkpoints)
        checkpoint = folder.newest_checkpoint()
        lengths: dict[str, int] = {}
        if checkpoint is not None:
            load_weights(checkpoint, self.model)
            if checkpoint.step:  # imported weights have had no step, and AdamW makes its moments at the first
                load_moments(checkpoint, self.model, self.optimizer)
            lengths = checkpoint.log_bytes
        metrics, samples = (Log(p, lengths.get(p.name, 0)) for p in (folder.metrics_file, folder.samples_file))
        for log in (metrics, samples):
            if log.lost:
                self.progress.note(f"{log.path} has lost lines that were written before; the report shows what is left")
        folder.metrics()  # what cannot be read is said now, not after the training
        first = checkpoint.step if checkpoint else 0
        if not first and bigram is not None:
            metrics.append(json.dumps({"step": 0, "bigram_bits_per_byte": bigram}) + "\n")
        return first, metrics, samples

    def _step(
        self, step: int, lr: float, recorded: bool
    ) -> tuple[float, float, dict[str, Any], NDArray[np.int64], Norms | None]:
        """One optimizer step: the mean loss in nats per token, the gradient's norm before clipping, what a line of
        metrics says of experts (their imbalance is the mean over layers, 1 where it is none), and the targets.

        If the step is `recorded`, the experts' shares of the choices, layer by layer, are among it, and by the explicit
        engine there are also the parts of the gradient in the first pass.
        Raises `Diverged`, before anything is updated, where loss or norm is not finite.
        """
        optim = self.recipe.optim
        self._seed(step)
        self.model.train()
        set_rates(self.optimizer, lr, weight_decay(step, self.recipe.run.steps, optim))
        self.optimizer.zero_grad(set_to_none=True)
        total, targets, parts = torch.zeros((), device=self.device), [], None
        uneven, shares = torch.zeros((), device=self.device), []
        mixtures: list[Any] = [block.ff for block in self.model.blocks if isinstance(block.ff, MixtureOfExperts)]
        for micro in range(optim.accumulate):
            x, y = self.batches.at(step, micro)
            batch, scale = (x.to(self.device), y.to(self.device)), 1 / optim.accumulate
            with self._autocast():
                if recorded and micro == 0 and isinstance(self.engine, Explicit):
                    loss, parts = loss_and_parts(self.engine, self.model, batch, scale)
                else:
                    loss = self.engine.loss_and_grads(self.model, batch, scale)
            total += loss / optim.accumulate
            for mixture in mixtures:
                uneven += mixture.imbalance / (len(mixtures) * optim.accumulate)
            if mixtures and recorded:
                shares.append(torch.stack([mixture.shares for mixture in mixtures]))
            targets.append(y[y != NOT_COUNTED].numpy())
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), optim.clip or float("inf"))
        mean, length, imbalance = torch.stack((total, norm, uneven)).tolist()  # waits for the device, once a step
        experts: dict[str, Any] = {"imbalance": imbalance} if mixtures else {}
        if shares:
            experts["expert_shares"] = torch.stack(shares).mean(0).tolist()
        if not (math.isfinite(mean) and math.isfinite(length)):
            raise self._diverged(step + 1, mean, length, self._culprit(step))
        self.optimizer.step()
        return mean, length, experts, np.concatenate(targets), parts

    def _ternary(self) -> dict[str, Any]:
        """What ternary maps are and do, on held-out text that is the same at every step."""
        x, y = held_out_batch(self.recipe, self.held_out, self.tokenizer)
        x, y = x.to(self.device), y.to(self.device)
        with self._autocast():
            return {
                "ternary_shares": shares(self.model),
                "estimator_cosine": estimator_cosine(self.engine, self.model, (x, y)),
                "activation_levels": activation_levels(self.model, x),
            }

    def _seed(self, step: int) -> None:
        # Dropout must not remember what was drawn before a kill, so every step starts its own sequence.
        torch.manual_seed(self.recipe.run.seed * 1_000_003 + step)

    def _autocast(self) -> AbstractContextManager[object]:
        return _precision(self.recipe.run.precision, self.device)

    def _culprit(self, step: int) -> str:
        accumulate = self.recipe.optim.accumulate
        batches = (self.batches.at(step, micro) for micro in range(accumulate))
        self._seed(step)
        return culprit(self.model, self.engine, batches, step + 1, 1 / accumulate, self._autocast)

    def _check_weights(self, done: int, loss: float, norm: float) -> None:
        """Stop before anything is made of weights that are not finite: the update itself may overflow."""
        for name, parameter in self.model.named_parameters():
            if not parameter.isfinite().all():
                raise self._diverged(done, loss, norm, f"its update left {name} not finite")

    def _diverged(self, done: int, loss: float, norm: float, found: str) -> Diverged:
        optim, kept = self.recipe.optim, list_checkpoints(self.folder.checkpoints)
        saved = "no checkpoint was written before it"
        if kept:
            saved = f"{kept[-1].name} stays (residuum train --resume {self.folder.path} repeats what came after it)"
        lr = f"{optim.lr / 10:g}"
        low = f" --optim.min-lr {optim.lr / 100:g}" if float(lr) < optim.min_lr else ""
        return Diverged(
            f"training diverged at step {done} (loss {loss:.3g}, gradient norm {norm:.3g}): {found}; {saved}; "
            f"start a new run with a lower optim.lr ({optim.lr:g}) or a longer optim.warmup ({optim.warmup}): "
            f"{self.folder.anew} --optim.lr {lr}{low}",
            done,
        )

    def _sample(self, step: int) -> str:
        seed = self.recipe.run.seed * 1_000_003 + step
        start, length = [self.tokenizer.separator], self.recipe.run.sample_tokens
        return self.tokenizer.decode(list(generate(self.model, start, length, Sampling(0.8), seed)))


def _new_tokenizer(recipe: Recipe, corpus: Corpus) -> Tokenizer:
    # The alphabet is the whole text's, so that held-out characters can be scored; merges are learned on training text.
    every = recipe.data.tokenizer == "char"
    return make_tokenizer(recipe.data, corpus.train + corpus.held_out if every else corpus.train)


def new_model(recipe: Recipe, device: torch.device) -> Transformer:
    """The model with its first weights, which the seed decides. Raises `InputError` if it takes too much memory."""
    torch.manual_seed(recipe.run.seed)
    try:
        return Transformer(recipe.model).to(device)
    except (RuntimeError, MemoryError) as error:  # the allocator's refusal is a RuntimeError
        shape = (
            f"{recipe.model.n_layers} layers of width {recipe.model.d_model:,} and {recipe.model.vocab_size:,} tokens"
        )
        raise InputError(f"a model of {shape} does not fit in memory: make model.d_model smaller") from error


def _same_data(folder: RunFolder, corpus: Corpus) -> None:
    fingerprint = folder.made_with().get("data_fingerprint")
    if fingerprint is None:
        raise InputError(f"{folder.recipe_file} has lost its [made_with] data_fingerprint: restore the run's own file")
    if fingerprint != corpus.fingerprint:
        raise InputError(
            f"the text of data.source is not what {folder.path} was trained on: restore it, or start a new run with "
            f"{folder.anew}"
        )


def _same_code(folder: RunFolder) -> None:
    if changed := folder.changed_code():
        raise InputError(f"{changed}: restore it, or start a new run with {folder.anew}")


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # it must be there, and hold numbers
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0][:100]
        raise InputError(f"run.device = '{name}' cannot be used ({reason}): choose auto or cpu") from None
    return device


def _precision(name: str, device: torch.device) -> AbstractContextManager[object]:
    if name == "float32" or (name == "auto" and (device.type != "cuda" or not torch.cuda.is_bf16_supported())):
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)
