"""What a claim is: a sentence that people repeat, and the experiment that may contradict it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from residuum.study.cell import Cell


@dataclass(frozen=True)
class Outcome:
    """What the experiment said: "holds", "does not hold", or "holds under ..." naming the condition.

    `figures` are those that the outcome rests on, as JSON holds them; `sentence` says it with its numbers.
    """

    outcome: str
    figures: dict[str, Any]
    sentence: str

    def __post_init__(self) -> None:
        if self.outcome not in ("holds", "does not hold") and not self.outcome.startswith("holds under "):
            raise ValueError(f"{self.outcome!r} is no outcome: holds, does not hold, or holds under ...")


class Undecided(Exception):
    """The experiment says neither yes nor no, and why."""


class Claim(Protocol):
    """A statement with its `source`, the `experiment` in words, the `metric`, and the `threshold` that decides.

    The threshold is fixed before the experiment is run; what pilots chose, `experiment` says. `quick` asks for a
    smaller experiment of the same kind.
    """

    id: str
    """Lower case, words joined by hyphens."""
    statement: str
    source: str
    experiment: str
    metric: str
    threshold: str

    def cells(self, quick: bool) -> list[Cell]:
        """The cells whose figures are judged."""

    def judge(self, figures: list[dict[str, Any]], quick: bool) -> Outcome:
        """The outcome of the figures of `cells(quick)`, in their order. Raises `Undecided` if they say nothing."""
