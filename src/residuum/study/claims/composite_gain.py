"""How much the mixings of all layers together amplify the streams."""

from __future__ import annotations

from statistics import fmean
from typing import Any

import torch

from residuum.model import ModelConfig, Transformer
from residuum.model.residual.streams import Streams
from residuum.study.cell import Cell, experiment
from residuum.study.claims.claim import Outcome
from residuum.study.small import VOCAB, fit, text_of

NAMES = ("hyper-connections", "mhc")

CONSERVED = 0.01
"""How far from 1 a doubly stochastic product may be: Sinkhorn's steps leave the sums of rows inexact."""


class CompositeGain:
    """The streams reach the end through A_1 A_2 ⋯, and their gradients come back through its transpose."""

    id = "composite-gain"
    statement = (
        "The product of hyper-connections' mixing matrices over the layers amplifies some stream, that of mHC's doubly "
        "stochastic ones does not"
    )
    source = "Xie et al. 2025, https://arxiv.org/abs/2512.24880, who report gains near 3000 and 1.6 (second-hand)"
    experiment = (
        "four streams, trained on the standard library's text; the mixings of held-out tokens multiplied in order"
    )
    metric = "gain: the largest sum of absolute values in a row or a column of the product, mean over tokens"
    threshold = (
        f"hyper-connections above 1.1 for every seed, mHC within {CONSERVED} of 1 for every seed; holds under: the one "
        'that does, which is told from "does not hold" since a run in which mHC did not'
    )

    def cells(self, quick: bool) -> list[Cell]:
        layers, steps, seeds = (8, 200, 1) if quick else (16, 3000, 3)
        return [
            Cell(
                f"{__name__}:gain", {"residual": name, "n_layers": layers, "steps": steps, "seed": seed}, layers * steps
            )
            for name in NAMES
            for seed in range(seeds)
        ]

    def judge(self, figures: list[dict[str, Any]], quick: bool) -> Outcome:
        free, bound = ([f["gain"] for f in figures if f["residual"] == name] for name in NAMES)
        start = fmean(f["gain_at_start"] for f in figures if f["residual"] == NAMES[0])
        off = max(abs(gain - 1) for gain in bound)
        amplifies, conserves = min(free) > 1.1, off <= CONSERVED
        outcome = "holds" if amplifies and conserves else "does not hold"
        if amplifies is not conserves:
            outcome = f"holds under {'mHC' if conserves else 'hyper-connections'} alone"
        return Outcome(
            outcome,
            {"hyper-connections": fmean(free), "mhc": fmean(bound), "hyper_connections_at_start": start},
            f"gain over {2 * figures[0]['n_layers']} connections: hyper-connections at least {min(free):.3f} (at the "
            f"start {start:.3f}), mHC within {off:.4f} of 1",
        )


@experiment(version=2)
def gain(settings: dict[str, Any]) -> dict[str, Any]:
    """The gain before and after `steps` steps."""
    torch.manual_seed(settings["seed"])
    text = text_of("stdlib")
    config = ModelConfig(
        vocab_size=VOCAB,
        context=64,
        d_model=32,
        n_layers=settings["n_layers"],
        n_heads=2,
        residual=settings["residual"],
    )
    model, (tokens, _) = Transformer(config), text.held_out_batch(64, 8)
    before = _gain(model, tokens)
    fit(model, text.train, settings["steps"], settings["seed"])
    return {
        "residual": settings["residual"],
        "n_layers": settings["n_layers"],
        "gain_at_start": before,
        "gain": _gain(model, tokens),
        "text": text.fingerprint,
    }


@torch.no_grad()
def _gain(model: Transformer, tokens: torch.Tensor) -> float:
    mixes: list[torch.Tensor] = []

    def keep(connection: torch.nn.Module, given: tuple[Any, ...]) -> None:
        assert isinstance(connection, Streams)
        mixes.append(connection.coefficients(given[0]).mix)

    handles = [connection.register_forward_pre_hook(keep) for connection, _ in model.connections()]
    model.eval()(tokens)
    for handle in handles:
        handle.remove()
    product = mixes[0]
    for mix in mixes[1:]:
        product = product @ mix
    sizes = product.abs()
    return float(torch.maximum(sizes.sum(-1).amax(-1), sizes.sum(-2).amax(-1)).mean())


CLAIM = CompositeGain()
