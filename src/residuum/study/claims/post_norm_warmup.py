"""Whether deep Post-LN needs a warm-up."""

from __future__ import annotations

from typing import Any

from residuum.study.cell import Cell
from residuum.study.claims.claim import Outcome
from residuum.study.claims.depth_claim import TRAINED, Setting, Trial, Verdict
from residuum.study.depth import WARMUP, Grid


class PostNormWarmup:
    """The condition under which a claim holds is part of it: depth and learning rate are varied, and named.

    Pilots chose the learning rates: at 3e-4 and below, depth made no difference in so few steps.
    """

    id = "post-norm-warmup"
    statement = "Beyond 12 layers Post-LN fails without a warm-up of the learning rate, and trains with it"
    source = "Xiong et al. 2020, https://arxiv.org/abs/2002.04745; Liu et al. 2020, https://arxiv.org/abs/2004.08249"
    experiment = (
        f"Post-LN with Xavier's first weights on the standard library's text, a warm-up over {WARMUP:.0%} of the steps "
        "or none, at several learning rates"
    )
    metric = "gain on byte frequencies, bits per byte of held-out text, as a share of the reference's"
    threshold = (
        "holds: at every depth beyond 12 there is a learning rate at which every seed trains with warm-up and no seed "
        f"without; holds under: at some depth; {TRAINED}"
    )

    def cells(self, quick: bool) -> list[Cell]:
        return [cell for trial in _trials(quick).values() for cell in trial.cells()]

    def judge(self, figures: list[dict[str, Any]], quick: bool) -> Outcome:
        found: dict[tuple[int, float], tuple[Verdict, Verdict]] = {}
        rest = figures
        for lr, trial in _trials(quick).items():
            count = len(trial.cells())
            verdicts, rest = trial.verdicts(rest[:count]), rest[count:]
            for n_layers in trial.grid.depths:
                with_warmup, without = (verdicts[Setting("post", n_layers, warmup)] for warmup in (True, False))
                found[n_layers, lr] = with_warmup, without
        needed = [key for key, (with_warmup, without) in found.items() if with_warmup.all and not without.trained]
        deep = {n_layers for n_layers, _ in found if n_layers > 12}
        outcome = "does not hold"
        if deep <= {n_layers for n_layers, _ in needed}:
            outcome = "holds"
        elif needed:
            outcome = "holds under " + " and ".join(f"{n} layers at {lr:g}" for n, lr in needed)
        return Outcome(
            outcome,
            {
                f"{n} layers at {lr:g}": {"warm-up": w._asdict(), "none": v._asdict()}
                for (n, lr), (w, v) in found.items()
            },
            "; ".join(f"{n} layers at {lr:g}: with warm-up {w}, without {v}" for (n, lr), (w, v) in found.items()),
        )


def _trials(quick: bool) -> dict[float, Trial]:
    depths = (14,) if quick else (6, 14, 24)
    return {
        lr: Trial(
            Grid(("post",), depths, steps=300 if quick else 1000, lr=lr),
            tuple(Setting("post", n, warmup) for n in depths for warmup in (True, False)),
            3,
        )
        for lr in ((1e-3, 2e-3) if quick else (5e-4, 1e-3, 2e-3))
    }


CLAIM = PostNormWarmup()
