"""Whether connections made for great depth reach it."""

from __future__ import annotations

from typing import Any

from residuum.study.cell import Cell
from residuum.study.claims.claim import Outcome, Undecided
from residuum.study.claims.depth_claim import TRAINED, Setting, Trial, named
from residuum.study.depth import Grid

DEEP = 200
ASKED, CONTROL, BESIDE = ("weighted", "rezero", "deepnorm"), "post", "pre"


class TwoHundredLayers:
    """Each holds down what a write changes: weighted by 1/√depth, ReZero from 0 on, DeepNorm by a stronger skip.

    If Post-LN trains as well, so many layers are no obstacle here; if Pre-LN does, nobody needs the three for it.
    """

    id = "two-hundred-layers"
    statement = "Weighted connections, ReZero and DeepNorm train at 200 layers"
    source = (
        "Bachlechner et al. 2020, https://arxiv.org/abs/2003.04887; Wang et al. 2022, https://arxiv.org/abs/2203.00555"
    )
    experiment = (
        f"{DEEP} layers on the standard library's text, with warm-up; beside them Post-LN from Xavier's weights, which "
        "should fail, as it does at this rate from 14 layers on, and Pre-LN, of which nothing is asked; an earlier run "
        "had neither"
    )
    metric = "gain on byte frequencies, bits per byte of held-out text, as a share of the reference's"
    threshold = (
        "every seed of all three trains; holds under: of those whose seeds all do; not judged where a seed of Post-LN "
        f"trains; {TRAINED}"
    )

    def cells(self, quick: bool) -> list[Cell]:
        return _trial(quick).cells()

    def judge(self, figures: list[dict[str, Any]], quick: bool) -> Outcome:
        verdicts = _trial(quick).verdicts(figures)
        sentence = "; ".join(f"{setting.connection}: {verdict}" for setting, verdict in verdicts.items())
        if any(verdict.trained for setting, verdict in verdicts.items() if setting.connection == CONTROL):
            raise Undecided(f"what should fail trains too: {sentence}")
        asked = {setting.connection: v.all for setting, v in verdicts.items() if setting.connection in ASKED}
        able = [name for name, trained in asked.items() if trained]
        outcome = "holds" if len(able) == len(asked) else "does not hold"
        if 0 < len(able) < len(asked):
            outcome = f"holds under {' and '.join(able)}"
        return Outcome(outcome, named(verdicts), sentence)


def _trial(quick: bool) -> Trial:
    grid = Grid((*ASKED, CONTROL, BESIDE), (DEEP,), steps=300 if quick else 1000)
    return Trial(grid, tuple(Setting(name, DEEP, True) for name in grid.connections), 1 if quick else 3)


CLAIM = TwoHundredLayers()
