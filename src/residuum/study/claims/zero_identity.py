"""Branches that start at zero leave the stream as it is."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from residuum.model import ModelConfig, Transformer
from residuum.model.residual import REGISTRY
from residuum.study.cell import Cell, experiment
from residuum.study.claims.claim import Outcome

MOVED = 0.01


class ZeroIdentity:
    """y = x + 0 at every connection, whatever the depth; and the zero does not stay."""

    id = "zero-identity"
    statement = (
        "Branches that are zero at the start make the network exactly the identity, and a gradient reaches every "
        "connection all the same"
    )
    source = (
        "Zhang et al. 2019, https://arxiv.org/abs/1901.09321; Bachlechner et al. 2020, https://arxiv.org/abs/2003.04887"
    )
    experiment = (
        "Pre-LN with last matrices of zero, and every connection that says so of itself, at first weights, on random "
        "tokens; as a counter-check Pre-LN with ordinary first weights"
    )
    metric = "largest |x_L − x_0| over all entries; the smallest, over connections, of the largest |gradient| there"
    threshold = (
        f"exactly 0, with a gradient above 0 at every connection; ordinary weights move x by {MOVED:.0%} or more"
    )

    def cells(self, quick: bool) -> list[Cell]:
        layers, seeds = (4, 1) if quick else (24, 3)
        zero = [("pre", "zero"), *((name, "residual") for name in sorted(REGISTRY) if REGISTRY[name].identity_at_start)]
        return [
            Cell(
                f"{__name__}:moved_at_start",
                {"residual": residual, "branch_init": init, "n_layers": layers, "seed": seed},
                layers,
            )
            for residual, init in [*zero, ("pre", "residual")]
            for seed in range(seeds)
        ]

    def judge(self, figures: list[dict[str, Any]], quick: bool) -> Outcome:
        ordinary = [f for f in figures if (f["residual"], f["branch_init"]) == ("pre", "residual")]
        zero = [f for f in figures if f not in ordinary]
        moved, gradient = max(f["moved"] for f in zero), min(f["gradient"] for f in zero)
        least = min(f["relative"] for f in ordinary)
        names = list(dict.fromkeys(_name(f) for f in zero))
        failed = [name for name in names if any(_name(f) == name and (f["moved"] or not f["gradient"]) for f in zero)]
        return Outcome(
            "holds" if not failed and least >= MOVED else "does not hold",
            {"moved": moved, "gradient": gradient, "ordinary": least, "connections": names, "failed": failed},
            f"{', '.join(names)}: the stream moves by at most {moved:g}, and the smallest gradient at a connection is "
            f"{gradient:.2g}; ordinary first weights move it by {least:.0%} of its size",
        )


@experiment(version=1)
def moved_at_start(settings: dict[str, Any]) -> dict[str, Any]:
    """How far the blocks move the stream at first weights, and what gradient each connection and its branch get.

    The gradient is that of the branch's last matrices where these are zero, and of whatever is at the connection where
    it has a scale of its own that is. `relative` is |x_L − x_0| / |x_0|, both Euclidean.
    """
    torch.manual_seed(settings["seed"])
    config = ModelConfig(
        vocab_size=64,
        context=16,
        d_model=32,
        n_layers=settings["n_layers"],
        residual=settings["residual"],
        branch_init=settings["branch_init"],
    )
    model = Transformer(config)
    rows = torch.randint(config.vocab_size, (2, config.context + 1))
    first, last = ends_of_stream(model, rows[:, :-1])
    model.loss(rows[:, :-1].contiguous(), rows[:, 1:].contiguous()).backward()
    gradients = []
    for connection, branch in model.connections():
        asked = [matrix.weight for matrix in branch.value_path()[1]]
        if settings["branch_init"] != "zero":
            asked += [parameter for module in (connection, *branch.modules()) for parameter in module.parameters()]
        gradients.append(max(float(p.grad.abs().max()) for p in asked if p.grad is not None))
    return {
        "residual": settings["residual"],
        "branch_init": settings["branch_init"],
        "moved": float((last - first).abs().max()),
        "relative": float((last - first).norm() / first.norm()),
        "gradient": min(gradients),
    }


@torch.no_grad()
def ends_of_stream(model: Transformer, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """What is read of the state before the first block, and of that after the last, before a final norm."""
    seen: list[Tensor] = []
    handles = [model.dropout.register_forward_hook(lambda _, __, x: seen.append(x))]
    if isinstance(model.final_norm, nn.Module):
        handles.append(model.final_norm.register_forward_pre_hook(lambda _, args: seen.append(args[0])))
    out = model.states(tokens)
    for handle in handles:
        handle.remove()
    # Some connections scale x on its way into the stream, or begin several streams: blocks do not do that.
    first = model.last_residual.end(model.first_residual.begin(seen[0]))
    return first, seen[1] if len(seen) > 1 else out


def _name(figures: dict[str, Any]) -> str:
    return figures["residual"] + (" with zero writes" if figures["branch_init"] == "zero" else "")


CLAIM = ZeroIdentity()
