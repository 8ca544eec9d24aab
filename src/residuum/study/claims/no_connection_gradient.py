"""Without connections the gradient does not arrive."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from residuum.model import ModelConfig, Transformer
from residuum.model.residual.xavier import xavier
from residuum.study.cell import Cell, experiment
from residuum.study.claims.claim import Outcome
from residuum.study.claims.without_skip import NORMED

GONE, THERE = 1e-3, 0.1
WEIGHTS = {"gpt2": "GPT-2's", "xavier": "Xavier's"}
PLAIN = {"none": "no norm", NORMED: "norms"}


class NoConnectionGradient:
    """dL/dx = J_fᵀ g has no path on which nothing is multiplied."""

    id = "no-connection-gradient"
    statement = (
        "Without residual connections the gradient at layer 1 is orders of magnitude below that at the last layer"
    )
    source = "He et al. 2016, https://arxiv.org/abs/1603.05027; Glorot, Bengio 2010, https://proceedings.mlr.press/v9/glorot10a.html"
    experiment = (
        "24 layers and more in float64, y = f(x), y = f(norm(x)) and Pre-LN, at first weights, on random tokens; "
        "GPT-2's last matrices are small, which is unfair to a network without connections, so Xavier's weights are "
        "tried too; earlier runs left the norm out with the skip, and held"
    )
    metric = "|dL/dx after layer 1| / |dL/dx after the last layer|, Euclidean"
    threshold = (
        f"below {GONE:g} without connections, with norms and without, above {THERE} in Pre-LN, with both kinds of "
        "first weights; holds under: those conditions in which it does"
    )

    def cells(self, quick: bool) -> list[Cell]:
        depths, seeds = ((24,), 1) if quick else ((24, 48, 96), 3)
        return [
            Cell(
                f"{__name__}:gradient_by_layer",
                {"residual": residual, "weights": weights, "n_layers": layers, "seed": seed},
                layers,
            )
            for layers in depths
            for residual in (*PLAIN, "pre")
            for weights in WEIGHTS
            for seed in range(seeds)
        ]

    def judge(self, figures: list[dict[str, Any]], quick: bool) -> Outcome:
        def ratios(residual: str, weights: str) -> list[float]:
            return [f["ratio"] for f in figures if (f["residual"], f["weights"]) == (residual, weights)]

        pre = {weights: min(ratios("pre", weights)) for weights in WEIGHTS}
        most = {
            f"{said} and {WEIGHTS[weights]} first weights": (max(ratios(residual, weights)), pre[weights])
            for residual, said in PLAIN.items()
            for weights in WEIGHTS
        }
        held = [condition for condition, (without, joined) in most.items() if without < GONE and joined > THERE]
        outcome = "holds" if len(held) == len(most) else "does not hold"
        if 0 < len(held) < len(most):
            outcome = "holds under " + "; ".join(held)
        said = ", ".join(f"{without:.2g} ({condition})" for condition, (without, _) in most.items())
        joined = " and ".join(f"{pre[weights]:.2g} ({WEIGHTS[weights]})" for weights in WEIGHTS)
        return Outcome(
            outcome,
            {"without": {condition: without for condition, (without, _) in most.items()}, "pre": pre},
            "of the last layer's gradient layer 1 gets, without connections, at most "
            f"{said}; in Pre-LN at least {joined}",
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
