"""The batch at a step is a pure function of (seed, step, pass, rank): a resumed run reads what an unbroken one does."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from residuum.errors import InputError
from residuum.train.tokenizer import Tokens

Batch = tuple[Int[Tensor, "batch pos"], Int[Tensor, "batch pos"]]


class Batches:
    """Windows of `context` tokens at random places of a text, each with the window one token later as its targets."""

    def __init__(self, tokens: Tokens, context: int, batch_size: int, seed: int) -> None:
        check_length(tokens, context)
        self.tokens = tokens
        self.context = context
        self.batch_size = batch_size
        self.seed = seed

    def at(self, step: int, micro: int = 0, rank: int = 0) -> Batch:
        """The batch of one forward and backward pass (`micro` counts those within a step) on one rank."""
        random = np.random.default_rng([self.seed, step, micro, rank])
        last = len(self.tokens) - self.context
        return windows(self.tokens, random.integers(0, last, self.batch_size).tolist(), self.context)


def windows(tokens: Tokens, starts: list[int], context: int) -> Batch:
    """The windows of `context` tokens that begin at `starts`, and the tokens one place later."""
    rows = np.stack([tokens[start : start + context + 1] for start in starts]).astype(np.int64)
    return torch.from_numpy(rows[:, :-1].copy()), torch.from_numpy(rows[:, 1:].copy())


def spread(tokens: Tokens, context: int, most: int) -> list[int]:
    """Where at most `most` windows begin that lie side by side and evenly through the text; always at least one."""
    check_length(tokens, context)
    fit = (len(tokens) - 1) // context
    count = max(min(fit, most), 1)
    return [i * fit // count * context for i in range(count)]


def check_length(tokens: Tokens, context: int) -> None:
    """Raises `InputError` if not even one window fits in the text."""
    if len(tokens) < context + 1:
        raise InputError(
            f"model.context = {context} is longer than the text, which has {len(tokens)} tokens: "
            f"give more text (data.source), or set model.context below {len(tokens)}"
        )
