"""What a network loses with one of its layers."""

from __future__ import annotations

from statistics import fmean
from typing import Any

import torch

from residuum.model import ModelConfig, Transformer
from residuum.model.residual.xavier import xavier
from residuum.study.cell import Cell, experiment
from residuum.study.claims.claim import Outcome, Undecided
from residuum.study.claims.without_skip import WithoutSkip
from residuum.study.small import VOCAB, fit, loss_of, text_of
from residuum.study.statistics import Interval, paired

LEARNED = 0.3


class LayerRemoval:
    """With connections a layer's successors read what n − 1 others wrote, without them what it wrote alone.

    Pilots chose the plain network: one of four layers learned in 300 steps no more than how frequent each byte is, with
    the norm or without, one of two layers did in 1200. A connected network of that size stands beside it.
    """

    id = "layer-removal"
    statement = (
        "Taking a middle layer out of a trained residual network hurts less than the first or the last, and out of a "
        "network without connections it destroys it"
    )
    source = "Veit et al. 2016, https://arxiv.org/abs/1605.06431, section 4.1"
    experiment = (
        "networks trained on the standard library's text; each attention and each feed-forward taken out on its own: "
        "Pre-LN, and y = f(norm(x)), of a size at which pilots found that it learns; held-out text"
    )
    metric = "rise of the held-out loss, nats per byte; of the middle half of the branches the mean rise"
    threshold = (
        "connected: the middle's rise below the first's and below the last's, 95% intervals; plain: the loss rises to "
        f"that of byte frequencies or above whichever is taken out, from at least {LEARNED} below it; holds under: the "
        "networks in which it does"
    )

    def cells(self, quick: bool) -> list[Cell]:
        seeds = 1 if quick else 3
        shapes = ((True, 8, 200), (True, 2, 300), (False, 2, 1000))
        if not quick:
            shapes = ((True, 12, 1500), (True, 2, 3000), (False, 2, 3000))
        return [
            Cell(
                f"{__name__}:rises",
                {"connected": connected, "n_layers": layers, "steps": steps, "seed": seed},
                steps * (1 + layers),
            )
            for connected, layers, steps in shapes
            for seed in range(seeds)
        ]

    def judge(self, figures: list[dict[str, Any]], quick: bool) -> Outcome:
        deepest = max(f["n_layers"] for f in figures)
        deep = [f for f in figures if f["connected"] and f["n_layers"] == deepest]
        shallow = [f for f in figures if f["connected"] and f["n_layers"] < deepest]
        plain = [f for f in figures if not f["connected"]]
        middle = [fmean(_middle(f["rises"])) for f in deep]
        first, last = ([f["rises"][place] for f in deep] for place in (0, -1))
        gaps = _gaps([f["rises"] for f in deep])
        alike = [_gaps([f["rises"][kind::2] for f in deep]) for kind in (0, 1)]
        spared = all(gap.mean > (gap.half or 0) for gap in gaps)
        if any(f["loss"] > f["unigram"] - LEARNED for f in plain):
            losses = f"{max(f['loss'] for f in plain):.2f} nats per byte, byte frequencies {plain[0]['unigram']:.2f}"
            raise Undecided(f"not every plain network learned to be {LEARNED} below byte frequencies: {losses}")
        destroyed = all(f["loss"] + rise >= f["unigram"] for f in plain for rise in f["rises"])
        outcome = "holds" if spared and destroyed else "does not hold"
        if spared is not destroyed:
            outcome = f"holds under {'connected' if spared else 'plain'} networks alone"
        least_plain, least_shallow = (min(min(f["rises"]) for f in some) for some in (plain, shallow))
        each = [fmean(f["rises"][place] for f in deep) for place in range(2 * deepest)]
        costliest = max(range(2 * deepest), key=each.__getitem__)
        return Outcome(
            outcome,
            {
                "middle": fmean(middle),
                "first": fmean(first),
                "last": fmean(last),
                "attentions_alone": [gap.mean for gap in alike[0]],
                "feed_forwards_alone": [gap.mean for gap in alike[1]],
                "costliest": costliest + 1,
                "costliest_rise": each[costliest],
                "plain_loss": fmean(f["loss"] for f in plain),
                "unigram": plain[0]["unigram"],
                "plain_least_rise": least_plain,
                "connected_least_rise": least_shallow,
            },
            f"taken out of {2 * deepest} connected branches, the first costs {fmean(first):.3f} nats per byte, a "
            f"middle one {fmean(middle):.3f}, the last {fmean(last):.3f}, the costliest (number {costliest + 1}) "
            f"{each[costliest]:.2f} (first − middle {gaps[0]}, last − middle {gaps[1]}; of attentions alone "
            f"{alike[0][0]} and {alike[0][1]}, of feed-forwards {alike[1][0]} and {alike[1][1]}), where the loss is "
            f"{fmean(f['loss'] for f in deep):.2f}; of {len(plain[0]['rises'])} plain ones, whose loss is "
            f"{fmean(f['loss'] for f in plain):.2f} where byte frequencies cost {plain[0]['unigram']:.2f}, the least "
            f"costs {least_plain:.2f}, of as many connected ones {least_shallow:.2f}",
        )


@experiment(version=2)
def rises(settings: dict[str, Any]) -> dict[str, Any]:
    """The held-out loss, and how much it rises when y = x takes the place of each branch in turn."""
    torch.manual_seed(settings["seed"])
    text = text_of("stdlib")
    config = ModelConfig(vocab_size=VOCAB, context=64, d_model=48, n_layers=settings["n_layers"])
    model = Transformer(config)
    if not settings["connected"]:
        for block in model.blocks:
            block.attn_residual, block.ff_residual = (
                WithoutSkip(config, r.place) for r in (block.attn_residual, block.ff_residual)
            )
        xavier(model)  # GPT-2's last matrices are small because writes add up, and here nothing does
    fit(model, text.train, settings["steps"], settings["seed"])
    held_out = text.held_out_batch(config.context, 128)
    loss = loss_of(model.eval(), held_out)
    without = []
    for connection, _ in model.connections():
        handle = connection.register_forward_hook(lambda _, args, __: args[0])
        without.append(loss_of(model, held_out))
        handle.remove()
    return {
        "connected": settings["connected"],
        "n_layers": settings["n_layers"],
        "loss": loss,
        "unigram": text.unigram,
        "rises": [each - loss for each in without],
        "text": text.fingerprint,
    }


def _gaps(rises: list[list[float]]) -> tuple[Interval, Interval]:
    """First − middle and last − middle of each seed's rises."""
    middle = [fmean(_middle(each)) for each in rises]
    first, last = (paired([each[place] for each in rises], middle) for place in (0, -1))
    return first, last


def _middle(values: list[float]) -> list[float]:
    quarter = len(values) // 4
    return values[quarter : len(values) - quarter]


CLAIM = LayerRemoval()
