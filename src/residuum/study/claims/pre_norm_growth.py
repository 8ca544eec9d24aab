"""A Pre-LN stream grows."""

from __future__ import annotations

import math
from typing import Any

import torch

from residuum.model import ModelConfig, Transformer
from residuum.model.residual.xavier import xavier
from residuum.stream import flow
from residuum.study.cell import Cell, experiment
from residuum.study.claims.claim import Outcome
from residuum.study.small import VOCAB, fit, text_of
from residuum.study.statistics import interval
from residuum.study.trend import line, rank_correlation

POWER, WITHIN = 0.5, 0.1
TREND, GROWN = 0.9, 2.0


class PreNormGrowth:
    """Independent writes of equal size add their squares: |x_k|² = |x_0|² + k w², so |x_k| grows as √k."""

    id = "pre-norm-growth"
    statement = "A Pre-LN stream's norm grows with depth, at first weights as the square root of it"
    source = "Xiong et al. 2020, https://arxiv.org/abs/2002.04745, lemma 2"
    experiment = (
        "the state's root mean square by depth, in Pre-LN at Xavier's first weights, as in the paper, and in Pre-LN "
        "from GPT-2's first weights trained on the standard library's text"
    )
    metric = (
        "first weights: slope of log size on log number of connections; trained: rank correlation of size with depth, "
        "and the last state's size over the first's"
    )
    threshold = (
        f"slope {POWER} ± {WITHIN}; rank correlation at least {TREND} and {GROWN:g} times the size; in every seed; "
        "holds under training: the latter does"
    )

    def cells(self, quick: bool) -> list[Cell]:
        layers, steps, seeds = (8, 150, 1) if quick else (12, 1000, 3)
        return [
            Cell(
                f"{__name__}:size_by_depth", {"n_layers": depth, "steps": trained, "seed": seed}, depth * (10 + trained)
            )
            for depth, trained in ((24, 0), (layers, steps))
            for seed in range(seeds)
        ]

    def judge(self, figures: list[dict[str, Any]], quick: bool) -> Outcome:
        first, trained = ([f for f in figures if bool(f["steps"]) == after] for after in (False, True))
        powers = [f["power"] for f in first]
        trend, grown = min(f["trend"] for f in trained), min(f["grown"] for f in trained)
        grows, as_root = trend >= TREND and grown >= GROWN, all(abs(power - POWER) <= WITHIN for power in powers)
        outcome = "holds" if grows and as_root else "does not hold"
        if grows and not as_root:
            outcome = "holds under training, not as a square root at first weights"
        return Outcome(
            outcome,
            {"power": interval(powers).mean, "trend": trend, "grown": grown},
            f"at first weights the size goes with depth to the power {interval(powers)}; after training the last state "
            f"is at least {grown:.1f} times as large as the first (rank correlation with depth at least {trend:.2f})",
        )


@experiment(version=2)
def size_by_depth(settings: dict[str, Any]) -> dict[str, Any]:
    """The state's root mean square before the first connection and after each; Xavier's weights where not trained."""
    torch.manual_seed(settings["seed"])
    text = text_of("stdlib")
    model = Transformer(ModelConfig(vocab_size=VOCAB, context=64, d_model=48, n_layers=settings["n_layers"]))
    if settings["steps"]:
        fit(model, text.train, settings["steps"], settings["seed"])
    else:
        xavier(model)
    tokens, _ = text.held_out_batch(model.config.context, 16)
    measured = flow(model.eval(), tokens, loss=lambda scores: scores.logsumexp(-1).mean()).all_measured
    sizes = [measured[0].forward.skip_rms, *(each.forward.state_rms for each in measured)]
    logs = [math.log(size) for size in sizes]
    return {
        "steps": settings["steps"],
        "sizes": sizes,
        "power": line([math.log(k) for k in range(1, len(logs))], logs[1:]).slope,
        "trend": rank_correlation(range(len(sizes)), sizes),
        "grown": sizes[-1] / sizes[0],
        "text": text.fingerprint,
    }


CLAIM = PreNormGrowth()
