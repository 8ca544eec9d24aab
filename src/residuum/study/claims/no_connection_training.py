"""Whether a deep network trains without residual connections."""

from __future__ import annotations

from typing import Any

from residuum.study.cell import Cell
from residuum.study.claims.claim import Outcome
from residuum.study.claims.depth_claim import TRAINED, Setting, Trial, named
from residuum.study.depth import Grid


class NoConnectionTraining:
    """y = f(x) all the way: what the first layer receives is a product of as many Jacobians as there are branches."""

    id = "no-connection-training"
    statement = "Without residual connections a network of 24 or more layers does not train, and with them it does"
    source = "He et al. 2015, https://arxiv.org/abs/1512.03385, section 4.1, of convolutional networks"
    experiment = "none and Pre-LN on the standard library's text, with warm-up; full: also 48 layers"
    metric = "gain on byte frequencies, bits per byte of held-out text, as a share of the reference's"
    threshold = f"no seed without connections trains, every seed with them does; {TRAINED}"

    def cells(self, quick: bool) -> list[Cell]:
        return _trial(quick).cells()

    def judge(self, figures: list[dict[str, Any]], quick: bool) -> Outcome:
        verdicts = _trial(quick).verdicts(figures)
        plain = [v for s, v in verdicts.items() if s.connection == "none"]
        joined = [v for s, v in verdicts.items() if s.connection == "pre"]
        holds = not any(v.trained for v in plain) and all(v.all for v in joined)
        said = "; ".join(f"{s.n_layers} layers of {s.connection}: {v}" for s, v in verdicts.items())
        return Outcome("holds" if holds else "does not hold", named(verdicts), said)


def _trial(quick: bool) -> Trial:
    depths = (24,) if quick else (24, 48)
    grid = Grid(("none", "pre"), depths, steps=300 if quick else 1000)
    return Trial(grid, tuple(Setting(c, n, True) for c in grid.connections for n in depths), 1 if quick else 3)


CLAIM = NoConnectionTraining()
