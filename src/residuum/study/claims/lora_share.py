"""How little a LoRA writes, and how much that does."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from residuum.model import ModelConfig, Transformer
from residuum.model.feedforward import FeedForward
from residuum.model.linear import Linear
from residuum.study.cell import Cell, experiment
from residuum.study.claims.claim import Outcome, Undecided
from residuum.study.small import VOCAB, fit, loss_of, text_of
from residuum.study.statistics import interval
from residuum.study.trend import rank_correlation

RANK = 4
SMALL, MOST = 0.05, 0.5

LEARNED = 0.1
"""Nats per byte that the updates must gain at least: of less than this a share says nothing."""


class LoraShare:
    """The share is |B A h| / |state| at one connection; the effect is what the loss rises by without that B A."""

    id = "lora-share"
    statement = "Where a LoRA writes a few percent of the stream it makes most of the loss's gain on a new text"
    source = "the LoRA is that of Hu et al. 2021, https://arxiv.org/abs/2106.09685; the claim is folklore"
    experiment = (
        f"Pre-LN trained on the standard library's text, then rank-{RANK} updates of each attention's output and each "
        "feed-forward's last matrix, trained alone on the names in it; held-out names"
    )
    metric = (
        f"of the loss's gain, what is left when all updates that write more than {SMALL:.0%} of the state's norm are "
        "taken out; beside it, without a threshold, the rank correlation of share and effect"
    )
    threshold = f"at least {MOST:.0%} of the gain, by the lower end of the 95% interval"

    def cells(self, quick: bool) -> list[Cell]:
        layers, base, adapted, seeds = (4, 200, 150, 1) if quick else (8, 1500, 1000, 3)
        return [
            Cell(
                f"{__name__}:shares_and_effects",
                {"n_layers": layers, "base_steps": base, "steps": adapted, "seed": seed},
                layers * (base + adapted),
            )
            for seed in range(seeds)
        ]

    def judge(self, figures: list[dict[str, Any]], quick: bool) -> Outcome:
        ranks = interval([rank_correlation(f["shares"], f["effects"]) for f in figures])
        shares = sorted(share for f in figures for share in f["shares"])
        small, middle = sum(share <= SMALL for share in shares), shares[len(shares) // 2]
        wrote = f"{small} of {len(shares)} updates write at most {SMALL:.0%} of the state (median {middle:.1%})"
        ranked = f"rank correlation of share and effect {ranks}"
        if not all(min(f["shares"]) <= SMALL < max(f["shares"]) for f in figures):
            raise Undecided(f"{wrote}, and not every seed has small ones and others: {ranked}")
        if any(f["base"] - f["adapted"] < LEARNED for f in figures):
            raise Undecided(
                f"not every seed's updates gained {LEARNED} nats per byte on the new text; {wrote}; {ranked}"
            )
        left = interval([(f["base"] - f["small_alone"]) / (f["base"] - f["adapted"]) for f in figures])
        return Outcome(
            "holds" if left.mean - (left.half or 0) >= MOST else "does not hold",
            {"left": left.mean, "rank_correlation": ranks.mean, "median_share": middle, "small": small / len(shares)},
            f"{wrote} and make {left} of the gain by themselves; {ranked}",
        )


class Adapted(nn.Module):
    """y = W x + B A x with W frozen, A ~ N(0, 1/d_in) and B = 0 at the start. `wrote` is the norm of the last B A x."""

    def __init__(self, base: Linear) -> None:
        super().__init__()
        d_out, d_in = base.weight.shape
        self.base = base
        self.a = nn.Parameter(torch.randn(RANK, d_in) / d_in**0.5)
        self.b = nn.Parameter(torch.zeros(d_out, RANK))
        self.on, self.wrote = True, 0.0

    def forward(self, x: Tensor) -> Tensor:
        if not self.on:
            return self.base(x)
        write = x @ self.a.t() @ self.b.t()
        self.wrote = float(write.detach().norm())
        return self.base(x) + write


@experiment(version=2)
def shares_and_effects(settings: dict[str, Any]) -> dict[str, Any]:
    """By connection, each update's share of the state and the rise of the loss without it; held-out names.

    `base` and `adapted` are the losses without any update and with all, `small_alone` that with the small ones only.
    """
    torch.manual_seed(settings["seed"])
    code, names = text_of("stdlib"), text_of("stdlib-names")
    model = Transformer(ModelConfig(vocab_size=VOCAB, context=64, d_model=48, n_layers=settings["n_layers"]))
    fit(model, code.train, settings["base_steps"], settings["seed"])
    updates = adapt(model)
    fit(model, names.train, settings["steps"], settings["seed"])
    batch = names.held_out_batch(model.config.context, 128)
    shares = shares_of(model.eval(), updates, batch[0])

    def loss_with(chosen: Iterable[int]) -> float:
        for place, update in enumerate(updates):
            update.on = place in chosen
        return loss_of(model, batch)

    everywhere = range(len(updates))
    adapted = loss_with(everywhere)
    return {
        "base": loss_with([]),
        "adapted": adapted,
        "small_alone": loss_with([place for place in everywhere if shares[place] <= SMALL]),
        "shares": shares,
        "effects": [loss_with([each for each in everywhere if each != place]) - adapted for place in everywhere],
        "text": code.fingerprint + names.fingerprint,
    }


def adapt(model: Transformer) -> list[Adapted]:
    """Freeze the model and put an update beside the last matrix of every branch, in order of depth."""
    model.requires_grad_(False)
    updates = []
    for block in model.blocks:
        assert isinstance(block.ff, FeedForward)
        block.attn.out, block.ff.down = Adapted(block.attn.out), Adapted(block.ff.down)  # type: ignore[assignment]
        updates += [block.attn.out, block.ff.down]
    return updates  # type: ignore[return-value]


@torch.no_grad()
def shares_of(model: Transformer, updates: list[Adapted], tokens: Tensor) -> list[float]:
    """|update's write| / |state after it| at each connection, Euclidean over all entries."""
    states: list[float] = []
    handles = [
        connection.register_forward_hook(lambda _, __, state: states.append(float(state.norm())))
        for connection, _ in model.connections()
    ]
    model(tokens)
    for handle in handles:
        handle.remove()
    return [update.wrote / state for update, state in zip(updates, states, strict=True)]


CLAIM = LoraShare()
