"""What claims have in common that say of a connection whether it trains at a depth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from residuum.study.cell import Cell
from residuum.study.claims.claim import Undecided
from residuum.study.depth import Grid, gain_of, has_trained, reference_gain

TRAINED = (
    "a model has trained if, on held-out text, it gains at least a quarter of what Pre-LN with 2 layers and warm-up "
    "gains on byte frequencies in as many steps at its learning rate (frequencies over all held-out text, which cost "
    "0.05 bits per byte more than over the windows that models are scored on)"
)


class Setting(NamedTuple):
    """What the seeds of one verdict have in common."""

    connection: str
    n_layers: int
    warmup: bool


class Verdict(NamedTuple):
    """How many of a setting's seeds have trained, and the mean share of the reference's gain that they came to.

    The share is that of the seeds that have not diverged; None where all have.
    """

    trained: int
    seeds: int
    share: float | None
    diverged: int

    @property
    def all(self) -> bool:
        return self.trained == self.seeds

    def __str__(self) -> str:
        gained = "diverged" if self.share is None else f"gained {self.share:.0%}"
        if self.share is not None and self.diverged:
            gained += f" but for {self.diverged} that diverged"
        return gained if self.seeds == 1 else f"{self.trained} of {self.seeds} seeds trained, {gained}"


@dataclass(frozen=True)
class Trial:
    """Settings to be trained with `seeds` seeds each, and judged by the reference of `grid`."""

    grid: Grid
    settings: tuple[Setting, ...]
    seeds: int

    def cells(self) -> list[Cell]:
        """The reference's, then each setting's."""
        return [
            *self.grid.reference(),
            *(cell for setting in self.settings for cell in self.grid.cells(*setting)[: self.seeds]),
        ]

    def verdicts(self, figures: list[dict[str, Any]]) -> dict[Setting, Verdict]:
        """What the figures of `cells` say. Raises `Undecided` if the reference itself has learned too little."""
        (reference, skipped), rest = reference_gain(figures[: self.grid.seeds]), figures[self.grid.seeds :]
        if reference is None:
            raise Undecided(skipped)
        found = {}
        for number, setting in enumerate(self.settings):
            rows = rest[number * self.seeds : (number + 1) * self.seeds]
            gains = [gain for row in rows if (gain := gain_of(row)) is not None]
            share = sum(gains) / len(gains) / reference if gains else None
            trained = sum(has_trained(row, reference) for row in rows)
            found[setting] = Verdict(trained, len(rows), share, len(rows) - len(gains))
        return found


def named(verdicts: dict[Setting, Verdict]) -> dict[str, Any]:
    """The verdicts as figures."""
    return {
        f"{s.connection}, {s.n_layers} layers, {'warm-up' if s.warmup else 'no warm-up'}": v._asdict()
        for s, v in verdicts.items()
    }
