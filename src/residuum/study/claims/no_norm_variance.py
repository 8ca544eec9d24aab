"""Without a norm every layer multiplies."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from residuum.model import ModelConfig, Transformer
from residuum.model.residual import Branch, Residual
from residuum.model.residual.xavier import xavier
from residuum.study.cell import Cell, experiment
from residuum.study.claims.claim import Outcome
from residuum.study.trend import line

AT_MOST_LINEAR = 2.0
STRAIGHT = 0.95


class NoNormVariance:
    """Var(x + f(x)) = (1 + c) Var(x) where f is about homogeneous: a factor a layer. With a norm before f it is + c.

    A straight line that begins above 0 at most doubles over the second half of its length, so what more than doubles
    there grows faster than linearly. Pre-LN stands beside it and has no threshold here: the first full run found 2.4
    times with 48 layers, which is not quite linear either.
    """

    id = "no-norm-variance"
    statement = "Without any norm the stream's variance grows exponentially with depth"
    source = "Zhang et al. 2019, https://arxiv.org/abs/1901.09321, section 2; De, Smith 2020, https://arxiv.org/abs/2002.10444"
    experiment = (
        "y = x + f(x) at Xavier's first weights, which keep a branch's variance about as it is, on random tokens, "
        "beside Pre-LN, which has no threshold, for an earlier run found 2.4 times there; the variance of all entries "
        "of the state after each layer"
    )
    metric = "variance after the last layer over that after the middle one; R² of a straight line through log variance"
    threshold = f"above {AT_MOST_LINEAR:g}, which no straight line exceeds, and R² at least {STRAIGHT}, in every seed"

    def cells(self, quick: bool) -> list[Cell]:
        depths, seeds = ((24,), 1) if quick else ((24, 48), 3)
        return [
            Cell(f"{__name__}:variance_by_layer", {"norm": norm, "n_layers": layers, "seed": seed}, layers)
            for layers in depths
            for norm in (False, True)
            for seed in range(seeds)
        ]

    def judge(self, figures: list[dict[str, Any]], quick: bool) -> Outcome:
        bare, pre = ([f for f in figures if f["norm"] == norm] for norm in (False, True))
        growth, with_norm = min(f["second_half"] for f in bare), max(f["second_half"] for f in pre)
        straight = min(f["exponential_r2"] for f in bare)
        each = math.exp(sum(f["log_growth"] for f in bare) / len(bare))
        return Outcome(
            "holds" if growth > AT_MOST_LINEAR and straight >= STRAIGHT else "does not hold",
            {"second_half": growth, "exponential_r2": straight, "growth_per_layer": each, "with_norm": with_norm},
            f"without norm the variance grows at least {growth:.3g} times over the second half of the layers, on "
            f"average {each:.2f} times a layer (R² of the exponential at least {straight:.3f}); in Pre-LN at most "
            f"{with_norm:.2f} times over that half",
        )


class Bare(Residual):
    """y = x + f(x)."""

    def forward(self, state: Tensor, branch: Branch, *args: Any) -> Tensor:
        return state + branch(state, *args)


@experiment(version=1)
def variance_by_layer(settings: dict[str, Any]) -> dict[str, Any]:
    """The variance of all entries of the state, before the first layer and after each, and how it grows."""
    torch.manual_seed(settings["seed"])
    config = ModelConfig(vocab_size=64, context=16, d_model=64, n_layers=settings["n_layers"])
    model = Transformer(config)
    xavier(model)
    if not settings["norm"]:
        for block in model.blocks:
            block.attn_residual, block.ff_residual = (
                Bare(config, r.place) for r in (block.attn_residual, block.ff_residual)
            )
    states: list[Tensor] = []
    model.blocks[0].register_forward_pre_hook(lambda _, args: states.append(args[0]))
    for block in model.blocks:
        block.register_forward_hook(lambda _, __, state: states.append(state))
    with torch.no_grad():
        model.double()(torch.randint(config.vocab_size, (4, config.context)))
    variances = [float(state.var(correction=0)) for state in states]
    exponential = line(range(len(variances)), [math.log(variance) for variance in variances])
    return {
        "norm": settings["norm"],
        "variances": variances,
        "second_half": variances[-1] / variances[len(variances) // 2],
        "log_growth": exponential.slope,
        "exponential_r2": exponential.r2,
    }


CLAIM = NoNormVariance()
