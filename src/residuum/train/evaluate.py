"""How well held-out text is predicted, in bits per byte: a unit that no choice of tokens can flatter."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F

from residuum.model import Transformer
from residuum.train.answers import QuestionBatches
from residuum.train.batches import Batch, spread, windows
from residuum.train.recipe import Recipe
from residuum.train.tokenizer import Tokenizer, Tokens


@torch.inference_mode()
def bits_per_byte(model: Transformer, tokens: Tokens, tokenizer: Tokenizer, most_tokens: int, batch_size: int) -> float:
    """−log₂ p(text) / bytes over windows spread evenly through `tokens`, at most `most_tokens` of them.

    A document's end counts as one byte, here and in `bigram_bits_per_byte`.
    """
    context = model.config.context
    starts = spread(tokens, context, most_tokens // context)
    device = model.embedding.weight.device
    was_training, nats, size = model.training, 0.0, 0
    model.eval()
    for i in range(0, len(starts), batch_size):
        x, y = windows(tokens, starts[i : i + batch_size], context)
        scores = model(x.to(device)).flatten(0, 1).float()
        nats += float(F.cross_entropy(scores, y.to(device).flatten(), reduction="sum"))
        size += int(tokenizer.token_bytes[y.numpy()].sum())
    model.train(was_training)
    return nats / math.log(2) / size


def held_out_batch(recipe: Recipe, tokens: Tokens, tokenizer: Tokenizer) -> Batch:
    """What is looked at besides the loss: windows spread evenly through held-out text, or rows of its questions."""
    context, rows = recipe.model.context, recipe.optim.batch_size
    if recipe.data.answer is not None:
        return QuestionBatches(tokens, tokenizer, recipe.data.answer, context, rows, seed=0).at(0)
    return windows(tokens, spread(tokens, context, rows), context)


def bigram_bits_per_byte(train: list[str], held_out: list[str]) -> float:
    """The same measure for the simplest model of bytes: p(b | a) from counts of pairs in `train`, each plus one.

    What a trained model must beat to have learned more than which byte follows which.
    """
    counts = np.ones((257, 257))
    for pairs in _pairs(train):
        counts += np.bincount(pairs, minlength=257 * 257).reshape(257, 257)
    cost = -np.log2(counts / counts.sum(axis=1, keepdims=True)).ravel()
    bits, size = 0.0, 0
    for pairs in _pairs(held_out):
        bits += float(cost[pairs].sum())
        size += len(pairs)
    return bits / size


def unigram_bits_per_byte(train: list[str], held_out: list[str]) -> float:
    """The same measure for a model that knows nothing but how frequent each byte is: what a network learns first."""
    counts = np.ones(257)
    for pairs in _pairs(train):
        counts += np.bincount(pairs % 257, minlength=257)
    cost = -np.log2(counts / counts.sum())
    bits, size = 0.0, 0
    for pairs in _pairs(held_out):
        bits += float(cost[pairs % 257].sum())
        size += len(pairs)
    return bits / size


def _pairs(documents: list[str]) -> Iterator[np.ndarray]:
    """Each pair of neighbouring bytes as one number, in chunks; 256 stands before and after a document."""
    chunk, size = [np.array([256])], 0
    for document in documents:
        chunk += [np.frombuffer(document.encode(), np.uint8), np.array([256])]
        size += len(document)
        if size > 1_000_000:
            yield _neighbours(chunk)
            chunk, size = [np.array([256])], 0
    yield _neighbours(chunk)


def _neighbours(parts: list[np.ndarray]) -> np.ndarray:
    row = np.concatenate(parts).astype(np.int64)
    return row[:-1] * 257 + row[1:]
