"""Without connections the gradient does not arrive."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from residuum.model import ModelConfig, Transformer
from residuum.model.residual.xavier import xavier
from residuum.study.cell import Cell, experiment
from residuum.study.claims.claim import Outcome

GONE, THERE = 1e-3, 0.1
WEIGHTS = {"gpt2": "GPT-2's first weights", "xavier": "Xavier's first weights"}


class NoConnectionGradient:
    """dL/dx = J_fᵀ g has no path on which nothing is multiplied."""

    id = "no-connection-gradient"
    statement = (
        "Without residual connections the gradient at layer 1 is orders of magnitude below that at the last layer"
    )
    source = "He et al. 2016, https://arxiv.org/abs/1603.05027; Glorot, Bengio 2010, https://proceedings.mlr.press/v9/glorot10a.html"
    experiment = (
        "24 layers and more in float64, without connections and as Pre-LN, at first weights, on random tokens; GPT-2's "
        "last matrices are small, which is unfair to a network without connections, so Xavier's weights are tried too"
    )
    metric = "|dL/dx after layer 1| / |dL/dx after the last layer|, Euclidean"
    threshold = f"below {GONE:g} without connections, above {THERE} in Pre-LN, with both kinds of first weights"

    def cells(self, quick: bool) -> list[Cell]:
        depths, seeds = ((24,), 1) if quick else ((24, 48, 96), 3)
        return [
            Cell(
                f"{__name__}:gradient_by_layer",
                {"residual": residual, "weights": weights, "n_layers": layers, "seed": seed},
                layers,
            )
            for layers in depths
            for residual in ("none", "pre")
            for weights in WEIGHTS
            for seed in range(seeds)
        ]

    def judge(self, figures: list[dict[str, Any]], quick: bool) -> Outcome:
        def ratios(residual: str, weights: str) -> list[float]:
            return [f["ratio"] for f in figures if (f["residual"], f["weights"]) == (residual, weights)]

        none = {weights: max(ratios("none", weights)) for weights in WEIGHTS}
        pre = {weights: min(ratios("pre", weights)) for weights in WEIGHTS}
        held = [weights for weights in WEIGHTS if none[weights] < GONE and pre[weights] > THERE]
        outcome = "holds" if len(held) == len(WEIGHTS) else "does not hold"
        if len(held) == 1:
            outcome = f"holds under {WEIGHTS[held[0]]}"
        said = (f"{none[w]:.1g} in a network without connections, at least {pre[w]:.2g} in Pre-LN" for w in WEIGHTS)
        return Outcome(
            outcome,
            {"none": none, "pre": pre},
            "of the last layer's gradient layer 1 gets at most "
            + "; ".join(f"{each}, {WEIGHTS[w]}" for each, w in zip(said, WEIGHTS, strict=True)),
        )


@experiment(version=1)
def gradient_by_layer(settings: dict[str, Any]) -> dict[str, Any]:
    """The norm of the loss's gradient at the state after each layer, and its ratio, layer 1 to the last."""
    torch.manual_seed(settings["seed"])
    config = ModelConfig(
        vocab_size=64, context=16, d_model=32, n_layers=settings["n_layers"], residual=settings["residual"]
    )
    model = Transformer(config)
    if settings["weights"] == "xavier":
        xavier(model)
    model.double()
    rows = torch.randint(config.vocab_size, (2, config.context + 1))
    states: list[Tensor] = []
    for block in model.blocks:
        block.register_forward_hook(lambda _, __, state: states.append(state))
    loss = model.loss(rows[:, :-1].contiguous(), rows[:, 1:].contiguous())
    norms = [float(gradient.norm()) for gradient in torch.autograd.grad(loss, states)]
    return {
        "residual": settings["residual"],
        "weights": settings["weights"],
        "norms": norms,
        "ratio": norms[0] / norms[-1],
    }


CLAIM = NoConnectionGradient()
