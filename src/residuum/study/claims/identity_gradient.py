"""The gradient passes an addition as it is."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from residuum.engine.explicit import Explicit
from residuum.model import ModelConfig, Transformer
from residuum.model.residual import Residual
from residuum.study.cell import Cell, experiment
from residuum.study.claims.claim import Outcome


class IdentityGradient:
    """y = x + f(norm(x)): of dL/dx = g + (J_f J_norm)ᵀ g the identity part is g itself."""

    id = "identity-gradient"
    statement = "At a Pre-LN connection the gradient on the identity path is the arriving gradient times exactly 1"
    source = "He et al. 2016, https://arxiv.org/abs/1603.05027, equation 5"
    experiment = "float64 Transformers at their first weights; every connection, in the explicit engine and in autograd"
    metric = "largest |identity part − arriving gradient| over all entries and connections"
    threshold = "0: equal bit for bit, in both engines"

    def cells(self, quick: bool) -> list[Cell]:
        layers, seeds = (4, 1) if quick else (24, 3)
        return [Cell(f"{__name__}:both_engines", {"n_layers": layers, "seed": seed}, layers) for seed in range(seeds)]

    def judge(self, figures: list[dict[str, Any]], quick: bool) -> Outcome:
        explicit, autograd = (max(f[engine] for f in figures) for engine in ("explicit", "autograd"))
        connections = sum(f["connections"] for f in figures)
        return Outcome(
            "holds" if explicit == autograd == 0 else "does not hold",
            {"connections": connections, "explicit": explicit, "autograd": autograd},
            f"at {connections} connections the identity part differs from the arriving gradient by at most "
            f"{autograd:g} in autograd, and by at most {explicit:g} in the explicit engine, which is asked at all but "
            "the last of each network",
        )


@experiment(version=1)
def both_engines(settings: dict[str, Any]) -> dict[str, Any]:
    """The largest deviation from a factor of 1, by the explicit engine's parts and by autograd's own additions.

    The arriving gradient of the explicit engine is what the connection above sent down, both parts of it; that of
    autograd is what its addition node receives, and the identity part what that node sends along the skip. Above the
    last connection stands the final norm, so there autograd alone is asked.
    """
    torch.manual_seed(settings["seed"])
    config = ModelConfig(vocab_size=64, context=16, d_model=32, n_layers=settings["n_layers"])
    model = Transformer(config).double()
    rows = torch.randint(config.vocab_size, (2, config.context + 1))
    batch = rows[:, :-1].contiguous(), rows[:, 1:].contiguous()
    _, parts = Explicit().loss_and_grads(model, batch, flow=True)
    above = [part.identity + part.branch for part in parts[1:]]
    by_hand = [_gap(part.identity, arriving) for part, arriving in zip(parts[:-1], above, strict=True)]
    by_autograd = _gaps_of_additions(model, batch)
    return {"connections": len(by_autograd), "explicit": max(by_hand), "autograd": max(by_autograd)}


def _gaps_of_additions(model: Transformer, batch: tuple[Tensor, Tensor]) -> list[float]:
    """Of every connection: how far what its addition sends along the skip is from what arrives at the sum."""
    gaps: list[float] = []

    def watch(module: Any, args: Any, y: Tensor) -> None:  # noqa: ARG001
        assert y.grad_fn is not None and y.grad_fn.name() == "AddBackward0"
        y.grad_fn.register_hook(lambda sent, arriving: gaps.append(_gap(sent[0], arriving[0])))

    connections = [module for module in model.modules() if isinstance(module, Residual)]
    handles = [connection.register_forward_hook(watch) for connection in connections]
    model.loss(*batch).backward()
    for handle in handles:
        handle.remove()
    assert len(gaps) == len(connections)
    return gaps


def _gap(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


CLAIM = IdentityGradient()
