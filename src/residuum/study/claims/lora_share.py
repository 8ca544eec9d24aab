"""How little a LoRA writes, and how much that does."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from statistics import fmean, median
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from residuum.model import ModelConfig, Transformer
from residuum.model.feedforward import FeedForward
from residuum.model.linear import Linear
from residuum.study.cell import Cell, experiment
from residuum.study.claims.claim import Outcome, Undecided
from residuum.study.small import VOCAB, fit, loss_of, text_of
from residuum.study.statistics import Interval, interval
from residuum.study.trend import rank_correlation
from residuum.train.batches import Batch

RANK = 4
SMALL, MOST = 0.05, 0.5

LEARNED = 0.1
"""Nats per byte that the updates must gain at least: of less than this a share says nothing."""


class LoraShare:
    """The share is |B A h| / |state| at one connection; the effect is what the loss rises by without that B A.

    How much an update writes is the learning rate's doing, so the claim is asked of several.
    """

    id = "lora-share"
    statement = "Where a LoRA writes a few percent of the stream it makes most of the loss's gain on a new text"
    source = "the LoRA is that of Hu et al. 2021, https://arxiv.org/abs/2106.09685; the claim is folklore"
    experiment = (
        f"Pre-LN trained on the standard library's text, then rank-{RANK} updates of each attention's output and each "
        "feed-forward's last matrix, trained alone on the names in it, from the same model at each of four learning "
        "rates; held-out names; an earlier run at 0.003 alone had no small writes in full, so that pilots with another "
        "seed chose the rates, from almost all writes large to almost all small"
    )
    metric = (
        f"of the loss's gain, what is left when all updates that write more than {SMALL:.0%} of the state's norm are "
        "taken out; beside it, without a threshold, the rank correlation of share and effect"
    )
    threshold = (
        f"at least {MOST:.0%} of the gain, by the lower end of the 95% interval; asked of rates at which every seed "
        f"has small writes and others and gains {LEARNED} nats per byte; holds under: the rates at which it does"
    )

    def cells(self, quick: bool) -> list[Cell]:
        layers, base, steps, seeds = (4, 200, 150, 1) if quick else (8, 1500, 1000, 3)
        rates = (3e-3, 1e-3, 3e-4, 1e-4) if quick else (1e-3, 3e-4, 1e-4, 3e-5)
        return [
            Cell(
                f"{__name__}:shares_and_effects",
                {"n_layers": layers, "base_steps": base, "steps": steps, "rates": rates, "seed": seed},
                layers * (base + len(rates) * steps),
            )
            for seed in range(seeds)
        ]

    def judge(self, figures: list[dict[str, Any]], quick: bool) -> Outcome:
        found = [_at_rate(rows) for rows in zip(*(f["at_rates"] for f in figures), strict=True)]
        sentence = "; ".join(map(str, found))
        asked = [(each.rate, each.left) for each in found if each.left]
        if not asked:
            raise Undecided(sentence)
        able = [f"{rate:g}" for rate, left in asked if left.mean - (left.half or 0) >= MOST]
        outcome = "holds" if len(able) == len(asked) else "does not hold"
        if 0 < len(able) < len(asked):
            outcome = f"holds under a rate of {' and '.join(able)}"
        return Outcome(outcome, {f"{each.rate:g}": each.figures for each in found}, sentence)


class AtRate(NamedTuple):
    """All seeds' mean gain and shares of the state, in rising order, at one learning rate.

    `left`, the share of the gain that small writes make, is None where nothing is asked.
    """

    rate: float
    gain: float
    shares: list[float]
    ranks: Interval
    left: Interval | None

    @property
    def small(self) -> int:
        return sum(share <= SMALL for share in self.shares)

    @property
    def figures(self) -> dict[str, Any]:
        return {
            "gain": self.gain,
            "left": self.left.mean if self.left else None,
            "rank_correlation": self.ranks.mean,
            "median_share": median(self.shares),
            "small": self.small / len(self.shares),
        }

    def __str__(self) -> str:
        return (
            f"at a rate of {self.rate:g} the gain is {self.gain:.2f} nats per byte, {self.small} of "
            f"{len(self.shares)} updates write at most {SMALL:.0%} of the state (median {median(self.shares):.1%}), "
            f"{f'which make {self.left} of it by themselves' if self.left else 'of which nothing is asked'}; "
            f"rank correlation of share and effect {self.ranks}"
        )


def _at_rate(rows: Sequence[dict[str, Any]]) -> AtRate:
    left = None
    gains = [row["base"] - row["adapted"] for row in rows]
    if min(gains) >= LEARNED and all(min(row["shares"]) <= SMALL < max(row["shares"]) for row in rows):
        left = interval([(row["base"] - row["small_alone"]) / gain for row, gain in zip(rows, gains, strict=True)])
    shares = sorted(share for row in rows for share in row["shares"])
    ranks = interval([rank_correlation(row["shares"], row["effects"]) for row in rows])
    return AtRate(rows[0]["rate"], fmean(gains), shares, ranks, left)


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


@experiment(version=3)
def shares_and_effects(settings: dict[str, Any]) -> dict[str, Any]:
    """By learning rate and connection, each update's share of the state and the loss's rise without it; held-out names.

    `base` and `adapted` are the losses without any update and with all, `small_alone` that with the small ones only.
    """
    torch.manual_seed(settings["seed"])
    code, names = text_of("stdlib"), text_of("stdlib-names")
    base = Transformer(ModelConfig(vocab_size=VOCAB, context=64, d_model=48, n_layers=settings["n_layers"]))
    fit(base, code.train, settings["base_steps"], settings["seed"])
    batch = names.held_out_batch(base.config.context, 128)
    at_rates = []
    for rate in settings["rates"]:
        torch.manual_seed(settings["seed"])  # the same first updates at every rate
        model = copy.deepcopy(base)
        updates = adapt(model)
        fit(model, names.train, settings["steps"], settings["seed"], rate)
        at_rates.append({"rate": rate, **_measured(model.eval(), updates, batch)})
    return {"at_rates": at_rates, "text": code.fingerprint + names.fingerprint}


def _measured(model: Transformer, updates: list[Adapted], batch: Batch) -> dict[str, Any]:
    shares = shares_of(model, updates, batch[0])

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
