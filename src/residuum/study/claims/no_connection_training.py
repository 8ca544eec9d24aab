"""Whether a deep network trains without residual connections."""

from __future__ import annotations

from typing import Any

from residuum.study.cell import Cell
from residuum.study.claims.claim import Outcome
from residuum.study.claims.depth_claim import TRAINED, Setting, Trial, named
from residuum.study.claims.without_skip import NORMED_XAVIER
from residuum.study.depth import Grid

PLAIN = {"none": "y = f(x)", NORMED_XAVIER: "y = f(norm(x))"}


class NoConnectionTraining:
    """Without a skip, what the first layer receives is a product of as many Jacobians as there are branches.

    A network that is given norms and Xavier's weights, which keep the signal's size, loses the connections alone.
    """

    id = "no-connection-training"
    statement = "Without residual connections a network of 24 or more layers does not train, and with them it does"
    source = "He et al. 2015, https://arxiv.org/abs/1512.03385, section 4.1, of convolutional networks"
    experiment = (
        "y = f(x) from GPT-2's first weights, whose scores are exactly 0 in float32 and stay so, y = f(norm(x)) from "
        "Xavier's (an earlier run did without), and Pre-LN on the standard library's text, with warm-up, at a learning "
        "rate of 0.001; full: also 48 layers"
    )
    metric = "gain on byte frequencies, bits per byte of held-out text, as a share of the reference's"
    threshold = (
        "no seed without connections trains, with norms or without, every seed with connections does; holds under: the "
        f"networks of which no seed does; {TRAINED}"
    )

    def cells(self, quick: bool) -> list[Cell]:
        return _trial(quick).cells()

    def judge(self, figures: list[dict[str, Any]], quick: bool) -> Outcome:
        verdicts = _trial(quick).verdicts(figures)
        lost = [
            said
            for connection, said in PLAIN.items()
            if not any(v.trained for s, v in verdicts.items() if s.connection == connection)
        ]
        outcome = "does not hold"
        if lost and all(v.all for s, v in verdicts.items() if s.connection == "pre"):
            outcome = "holds" if len(lost) == len(PLAIN) else f"holds under {lost[0]}"
        said = "; ".join(
            f"{s.n_layers} layers of {PLAIN.get(s.connection, 'Pre-LN')}: {v}" for s, v in verdicts.items()
        )
        return Outcome(outcome, named(verdicts), said)


def _trial(quick: bool) -> Trial:
    depths = (24,) if quick else (24, 48)
    grid = Grid((*PLAIN, "pre"), depths, steps=300 if quick else 1000)
    return Trial(grid, tuple(Setting(c, n, True) for c in grid.connections for n in depths), 1 if quick else 3)


CLAIM = NoConnectionTraining()
