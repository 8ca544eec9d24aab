"""The stream is a sum."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from residuum.model import ModelConfig, Transformer
from residuum.study.cell import Cell, experiment
from residuum.study.claims.claim import Outcome
from residuum.study.claims.zero_identity import ends_of_stream
from residuum.study.small import VOCAB, fit, text_of

EXACT = 1e-12
OTHERWISE = 0.1


class SumOfWrites:
    """x_L = x_0 + Σ_k write_k, which is what direct attribution to a head or a layer rests on."""

    id = "sum-of-writes"
    statement = "The last state of a Pre-LN stream is the first one plus the sum of all writes"
    source = "Elhage et al. 2021, https://transformer-circuits.pub/2021/framework"
    experiment = (
        "float64 Transformers, every write recorded as it leaves its branch, at first weights and after training; as a "
        "counter-check Post-LN, where each norm takes the sum apart"
    )
    metric = "|x_L − (x_0 + Σ writes)| / |x_L|, Euclidean over all entries"
    threshold = f"at most {EXACT:g} at first weights and after training, and above {OTHERWISE} in Post-LN"

    def cells(self, quick: bool) -> list[Cell]:
        layers, steps, seeds = (4, 20, 1) if quick else (24, 200, 3)
        return [
            Cell(
                f"{__name__}:gap_of_sum",
                {"residual": residual, "n_layers": layers, "steps": trained, "seed": seed},
                layers * (1 + trained),
            )
            for residual, trained in (("pre", 0), ("pre", steps), ("post", 0))
            for seed in range(seeds)
        ]

    def judge(self, figures: list[dict[str, Any]], quick: bool) -> Outcome:
        first = max(f["gap"] for f in figures if f["residual"] == "pre" and not f["steps"])
        trained = max(f["gap"] for f in figures if f["residual"] == "pre" and f["steps"])
        post = min(f["gap"] for f in figures if f["residual"] == "post")
        return Outcome(
            "holds" if max(first, trained) <= EXACT and post > OTHERWISE else "does not hold",
            {"first": first, "trained": trained, "post": post},
            f"the sum differs from the last state by at most {first:.1e} of its size at first weights and "
            f"{trained:.1e} after training; in Post-LN by at least {post:.2g}",
        )


@experiment(version=2)
def gap_of_sum(settings: dict[str, Any]) -> dict[str, Any]:
    """How far first state and writes, added up, are from the last state."""
    torch.manual_seed(settings["seed"])
    config = ModelConfig(
        vocab_size=VOCAB, context=32, d_model=32, n_layers=settings["n_layers"], residual=settings["residual"]
    )
    model, text = Transformer(config).double(), text_of("stdlib")
    if settings["steps"]:
        fit(model, text.train, settings["steps"], settings["seed"])
    writes: list[Tensor] = []
    branches = [branch for _, branch in model.connections() if isinstance(branch, nn.Module)]
    handles = [branch.register_forward_hook(lambda _, __, write: writes.append(write)) for branch in branches]
    first, last = ends_of_stream(model.eval(), text.held_out_batch(config.context, 4)[0])
    for handle in handles:
        handle.remove()
    assert len(writes) == 2 * config.n_layers
    gap = float((last - first - torch.stack(writes).sum(0)).norm() / last.norm())
    return {"residual": settings["residual"], "steps": settings["steps"], "gap": gap, "text": text.fingerprint}


CLAIM = SumOfWrites()
