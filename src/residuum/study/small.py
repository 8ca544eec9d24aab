"""Small models of bytes, trained in memory: for experiments that want the trained model itself, to take it apart."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn

from residuum.model import Transformer
from residuum.train.batches import Batch, Batches, spread, windows
from residuum.train.optimizer import make_optimizer, set_rates
from residuum.train.recipe import DataConfig, OptimConfig
from residuum.train.schedule import learning_rate, weight_decay
from residuum.train.text import read_corpus
from residuum.train.tokenizer import ByteTokenizer, Tokens, tokenize

VOCAB = ByteTokenizer.vocab_size


@dataclass(frozen=True)
class Text:
    """A text as bytes, those to train on and those held out.

    `unigram` is the held-out loss, in nats per byte, of knowing nothing but how frequent each byte is; `fingerprint`
    tells the texts of different Pythons apart.
    """

    train: Tokens
    held_out: Tokens
    unigram: float
    fingerprint: str

    def held_out_batch(self, context: int, count: int) -> Batch:
        """At most `count` windows, spread evenly through what is held out."""
        return windows(self.held_out, spread(self.held_out, context, count), context)


@lru_cache(maxsize=2)
def text_of(source: str) -> Text:
    """Eight megabytes of the standard library ("stdlib"), or the names in it ("stdlib-names"), as bytes."""
    one_a_line = source == "stdlib-names"
    corpus = read_corpus(DataConfig(source, documents="line" if one_a_line else "auto", max_bytes=8_000_000))
    tokens, held_out = (tokenize(ByteTokenizer(), part) for part in (corpus.train, corpus.held_out))
    counts = 1 + np.bincount(tokens, minlength=VOCAB)
    unigram = -float(np.log(counts / counts.sum())[held_out].mean())
    return Text(tokens, held_out, unigram, corpus.fingerprint)


def fit(model: Transformer, tokens: Tokens, steps: int, seed: int, lr: float = 3e-3) -> None:
    """`steps` steps of AdamW on those parameters that ask for a gradient; 8 windows each, a tenth of them warm-up."""
    optim = OptimConfig(batch_size=8, lr=lr, min_lr=lr / 10, warmup=steps // 10)
    optimizer = make_optimizer(model, optim, torch.device("cpu"))
    batches = Batches(tokens, model.config.context, optim.batch_size, seed)
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for step in range(steps):
        set_rates(optimizer, learning_rate(step, steps, optim), weight_decay(step, steps, optim))
        optimizer.zero_grad(set_to_none=True)
        model.loss(*batches.at(step)).backward()
        nn.utils.clip_grad_norm_(learned, optim.clip)
        optimizer.step()


@torch.no_grad()
def loss_of(model: Transformer, batch: tuple[Tensor, Tensor]) -> float:
    """Nats per byte; float32's largest number where the model's scores overflow, for a store holds no infinity."""
    loss = float(model.loss(*batch))
    return loss if math.isfinite(loss) else torch.finfo(torch.float32).max
