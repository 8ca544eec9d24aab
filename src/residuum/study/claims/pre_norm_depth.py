"""Whether Pre-LN trains at great depth without a warm-up."""

from __future__ import annotations

from typing import Any

from residuum.study.cell import Cell
from residuum.study.claims.claim import Outcome
from residuum.study.claims.depth_claim import TRAINED, Setting, Trial, named
from residuum.study.depth import Grid

SETTING = Setting("pre", 104, False)


class PreNormDepth:
    """The skip is never normalised, so no depth stands between the loss and the first layer."""

    id = "pre-norm-depth"
    statement = "Pre-LN trains at more than 100 layers without a warm-up"
    source = "Xiong et al. 2020, https://arxiv.org/abs/2002.04745, who show it at 12 layers; the depth is folklore"
    experiment = (
        f"Pre-LN with {SETTING.n_layers} layers on the standard library's text, the first step at the full rate"
    )
    metric = "gain on byte frequencies, bits per byte of held-out text, as a share of the reference's"
    threshold = f"every seed trains; {TRAINED}"

    def cells(self, quick: bool) -> list[Cell]:
        return _trial(quick).cells()

    def judge(self, figures: list[dict[str, Any]], quick: bool) -> Outcome:
        verdicts = _trial(quick).verdicts(figures)
        verdict = verdicts[SETTING]
        outcome = "holds" if verdict.all else "does not hold"
        return Outcome(outcome, named(verdicts), f"{SETTING.n_layers} layers without warm-up: {verdict}")


def _trial(quick: bool) -> Trial:
    grid = Grid(("pre",), (SETTING.n_layers,), steps=300 if quick else 1000)
    return Trial(grid, (SETTING,), 1 if quick else 3)


CLAIM = PreNormDepth()
