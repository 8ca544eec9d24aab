"""Choose the next token by its score."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from residuum.errors import InputError


@dataclass(frozen=True)
class Sampling:
    """Draw from softmax(scores / temperature), among the likeliest alone if asked. In NumPy, whatever made the scores.

    Raises `InputError`, which begins with the field's name, for a value that cannot be. Source of `top_p`: Holtzman et
    al. 2020, https://arxiv.org/abs/1904.09751.
    """

    temperature: float = 1.0
    """Below 1 likelier tokens are preferred, 0 takes the likeliest."""
    top_k: int | None = None
    """Choose among this many likeliest tokens. None: all."""
    top_p: float | None = None
    """Choose among the likeliest tokens whose chances together reach this, as few as do. None: all."""

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise InputError(f"temperature is {self.temperature}: give a finite number of at least 0")
        if self.top_k is not None and self.top_k < 1:
            raise InputError(f"top_k is {self.top_k}: give at least 1")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise InputError(f"top_p is {self.top_p}: give a share above 0, up to 1")

    def draw(self, scores: NDArray[np.floating], rng: np.random.Generator) -> int:
        """A token; of equals, the lower counts as likelier. Takes one number from `rng`, and none at temperature 0.

        `top_p` is a share of what `top_k` leaves. Raises `InputError` where a score is NaN, or all of them are −∞.
        """
        best = scores.max()
        if not best > -math.inf:  # nor is a NaN, which the maximum hands on
            raise InputError(
                f"the best of the model's scores is {best}: its weights are damaged, restore them from a copy"
            )
        if self.temperature == 0:
            return int(scores.argmax())
        # The best is taken off first, so that no temperature is too small to divide by. Infinity less itself is 0 here.
        with np.errstate(over="ignore", invalid="ignore"):
            gaps = np.subtract(scores, best, dtype=np.float64)
            gaps[scores == best] = 0.0
            chances = np.exp(gaps / self.temperature)
        if self.top_k is None and self.top_p is None:
            return _place(chances, rng.random())
        # In their own order, so that two decoders that disagree about that of near equals still draw alike.
        tokens = np.sort(self._likeliest(chances))
        return int(tokens[_place(chances[tokens], rng.random())])

    def _likeliest(self, chances: NDArray[np.float64]) -> NDArray[np.intp]:
        tokens = np.flatnonzero(chances)
        if self.top_k is not None and self.top_k < len(tokens):
            least = np.partition(chances, -self.top_k)[-self.top_k]
            tokens = _by_chance(tokens[chances[tokens] >= least], chances)[: self.top_k]
        if self.top_p is not None:
            total = chances[tokens].sum()
            # All that are less likely than this make less than 1 − top_p together: few are left to be sorted.
            tokens = _by_chance(tokens[chances[tokens] >= (1 - self.top_p) * total / len(tokens)], chances)
            tokens = tokens[: np.searchsorted(chances[tokens].cumsum(), self.top_p * total) + 1]
        return tokens


def _place(chances: NDArray[np.float64], share: float) -> int:
    """Where the sum of `chances` passes `share` (below 1) of the whole: never at a chance of 0."""
    sums = chances.cumsum()
    return int(np.searchsorted(sums, share * sums[-1], side="right"))


def _by_chance(tokens: NDArray[np.intp], chances: NDArray[np.float64]) -> NDArray[np.intp]:
    return tokens[np.argsort(-chances[tokens], kind="stable")]
