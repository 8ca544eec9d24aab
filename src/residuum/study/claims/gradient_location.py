"""Where Post-LN's gradient is, and where Pre-LN's."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from residuum.model import ModelConfig, Transformer
from residuum.model.feedforward import FeedForward
from residuum.model.linear import Linear
from residuum.study.cell import Cell, experiment
from residuum.study.claims.claim import Outcome
from residuum.study.trend import line

LARGER, SLOPE, WITHIN = 2.0, -0.5, 0.25


class GradientLocation:
    """Theorem 1 of the paper bounds the last layer's gradient: O(d √ln d) in Post-LN, and 1/√L of it in Pre-LN."""

    id = "gradient-location"
    statement = (
        "At first weights Post-LN's feed-forward gradient is largest at the last layers, Pre-LN's is not, and at the "
        "last layer it falls as 1/√L"
    )
    source = "Xiong et al. 2020, https://arxiv.org/abs/2002.04745, theorem 1 and figure 3"
    experiment = (
        "Post-LN and Pre-LN, both with the paper's first weights, Xavier's normal ones, and its ReLU; several depths "
        "L, random tokens; the gradient of each layer's second feed-forward matrix"
    )
    metric = "gradient norm at the last layer over that at the first; slope of log norm at the last layer on log L"
    threshold = (
        f"deepest model: last over first above {LARGER:g} in Post-LN, at most 1 in Pre-LN; slope {SLOPE} ± {WITHIN} in "
        f"Pre-LN, 0 ± {WITHIN} in Post-LN"
    )

    def cells(self, quick: bool) -> list[Cell]:
        depths, seeds = ((4, 8, 16), 1) if quick else ((4, 8, 16, 32, 64), 3)
        return [
            Cell(f"{__name__}:gradient_of_layers", {"residual": residual, "n_layers": layers, "seed": seed}, layers)
            for residual in ("post", "pre")
            for layers in depths
            for seed in range(seeds)
        ]

    def judge(self, figures: list[dict[str, Any]], quick: bool) -> Outcome:
        post, pre = ([f for f in figures if f["residual"] == residual] for residual in ("post", "pre"))
        deepest = max(f["n_layers"] for f in figures)
        post_ratios, pre_ratios = (
            [f["norms"][-1] / f["norms"][0] for f in some if f["n_layers"] == deepest] for some in (post, pre)
        )
        post_ratio, pre_ratio = min(post_ratios), max(pre_ratios)
        post_slope, pre_slope = (
            line([math.log(f["n_layers"]) for f in some], [math.log(f["norms"][-1]) for f in some]).slope
            for some in (post, pre)
        )
        located = post_ratio > LARGER and pre_ratio <= 1
        scaled = abs(pre_slope - SLOPE) <= WITHIN and abs(post_slope) <= WITHIN
        return Outcome(
            "holds" if located and scaled else "does not hold",
            {"post_ratio": post_ratio, "pre_ratio": pre_ratio, "post_slope": post_slope, "pre_slope": pre_slope},
            f"with {deepest} layers the last one's gradient is {_span(post_ratios)} times the first one's in Post-LN, "
            f"{_span(pre_ratios)} times in Pre-LN; it goes with L to the power {post_slope:.2f} in Post-LN, "
            f"{pre_slope:.2f} in Pre-LN",
        )


def _span(values: list[float]) -> str:
    least, most = min(values), max(values)
    return f"{least:.3g}" if least == most else f"{least:.3g} to {most:.3g}"


@experiment(version=1)
def gradient_of_layers(settings: dict[str, Any]) -> dict[str, Any]:
    """The norm of the loss's gradient by each layer's second feed-forward matrix, from the first layer to the last."""
    torch.manual_seed(settings["seed"])
    config = ModelConfig(
        vocab_size=64,
        context=16,
        d_model=64,
        n_layers=settings["n_layers"],
        activation="relu",
        residual=settings["residual"],
    )
    model = Transformer(config)
    for _, branch in model.connections():
        for part in branch.modules():
            if isinstance(part, Linear):
                nn.init.xavier_normal_(part.weight)
    rows = torch.randint(config.vocab_size, (8, config.context + 1))
    model.loss(rows[:, :-1].contiguous(), rows[:, 1:].contiguous()).backward()
    downs = [block.ff.down.weight for block in model.blocks if isinstance(block.ff, FeedForward)]
    norms = [float(down.grad.norm()) for down in downs if down.grad is not None]
    return {"residual": settings["residual"], "n_layers": settings["n_layers"], "norms": norms}


CLAIM = GradientLocation()
