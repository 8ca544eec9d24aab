"""What a model forgot is still in its stream."""

from __future__ import annotations

from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from residuum.model import ModelConfig, Transformer
from residuum.study.cell import Cell, experiment
from residuum.study.claims.claim import Outcome, Undecided
from residuum.study.small import VOCAB, fit, loss_of, text_of
from residuum.study.statistics import interval, paired
from residuum.train.batches import Batch, Batches

MARGIN = 0.1
READ_OUT_STEPS = 200
PLACES = ("middle", "last")
PRIOR = 10


class TaskLeak:
    """The read-out is linear, so what it reads is in the state itself, and not computed by the read-out."""

    id = "task-leak"
    statement = "An old task leaks through the stream of a model that was fine-tuned until it fails at it"
    source = "Davari et al. 2022, https://arxiv.org/abs/2203.13381, for images; here for text"
    experiment = (
        "Pre-LN trained on the standard library's text, then on the names in it alone; control: as many steps on the "
        "names alone; a logistic read-out of the next byte of the text from the middle and from the last state"
    )
    metric = (
        "held-out loss of the read-out in nats per byte, control minus fine-tuned; beside it, without a threshold, the "
        "loss by byte pairs alone, counted where the read-out learned"
    )
    threshold = (
        f"at least {MARGIN} at both states, by the lower end of the 95% interval, where the fine-tuned model itself is "
        "worse on the text than the bytes' frequencies; holds under: one of the states"
    )

    def cells(self, quick: bool) -> list[Cell]:
        layers, old, new, windows, seeds = (4, 200, 120, 64, 1) if quick else (8, 1500, 1000, 256, 3)
        return [
            Cell(
                f"{__name__}:read_outs",
                {
                    "n_layers": layers,
                    "old_steps": old,
                    "new_steps": new,
                    "windows": windows,
                    "control": control,
                    "seed": seed,
                },
                layers * (old + new),
            )
            for control in (False, True)
            for seed in range(seeds)
        ]

    def judge(self, figures: list[dict[str, Any]], quick: bool) -> Outcome:
        tuned, control = ([f for f in figures if f["control"] == given] for given in (False, True))
        if any(f["loss"] < f["unigram"] for f in tuned):
            least = min(f["loss"] for f in tuned)
            raise Undecided(f"a fine-tuned model has not failed at the text yet: {least:.2f} nats per byte")
        gaps = {place: paired([f[place] for f in control], [f[place] for f in tuned]) for place in PLACES}
        leaks = [place for place in PLACES if gaps[place].mean - (gaps[place].half or 0) >= MARGIN]
        outcome = "does not hold"
        if leaks:
            outcome = "holds" if len(leaks) == len(PLACES) else f"holds under the {leaks[0]} state"
        losses = {place: [interval([f[place] for f in some]).mean for some in (tuned, control)] for place in PLACES}
        said = " and ".join(
            f"{losses[p][0]:.2f} from the {p} state (control {losses[p][1]:.2f}, difference {gaps[p]})" for p in PLACES
        )
        return Outcome(
            outcome,
            {
                "before": fmean(f["before"] for f in tuned),
                "after": fmean(f["loss"] for f in tuned),
                "unigram": tuned[0]["unigram"],
                "pairs": fmean(f["pairs"] for f in tuned),
                "gap_middle": gaps["middle"].mean,
                "gap_last": gaps["last"].mean,
            },
            f"fine-tuning takes the text's loss from {fmean(f['before'] for f in tuned):.2f} to "
            f"{fmean(f['loss'] for f in tuned):.2f} nats per byte, where byte frequencies cost "
            f"{tuned[0]['unigram']:.2f}; a linear read-out still has {said}; byte pairs "
            f"alone leave {fmean(f['pairs'] for f in tuned):.2f}",
        )


@experiment(version=4)
def read_outs(settings: dict[str, Any]) -> dict[str, Any]:
    """The text's held-out loss by the model itself and by read-outs of its states, after all training.

    `before` is the model's own before it learned the names; None for the control, which never read the text.
    """
    torch.manual_seed(settings["seed"])
    code, names = text_of("stdlib"), text_of("stdlib-names")
    model = Transformer(ModelConfig(vocab_size=VOCAB, context=64, d_model=48, n_layers=settings["n_layers"]))
    held_out, before = code.held_out_batch(64, 128), None
    if settings["control"]:
        fit(model, names.train, settings["old_steps"] + settings["new_steps"], settings["seed"])
    else:
        fit(model, code.train, settings["old_steps"], settings["seed"])
        before = loss_of(model, held_out)
        fit(model, names.train, settings["new_steps"], settings["seed"])
    learn = Batches(code.train, model.config.context, settings["windows"], settings["seed"]).at(0)
    losses = {place: read_out(*states_at(model, place, learn, held_out)) for place in PLACES}
    return {
        "control": settings["control"],
        "before": before,
        "loss": loss_of(model, held_out),
        "unigram": code.unigram,
        "pairs": loss_by_pairs(learn, held_out),
        **losses,
        "text": code.fingerprint + names.fingerprint,
    }


@torch.no_grad()
def states_at(model: Transformer, place: str, *batches: Batch) -> list[tuple[Tensor, Tensor]]:
    """State and next token at each position of each batch, after half of the blocks or after all."""
    seen: list[Tensor] = []
    block = model.blocks[(len(model.blocks) // 2 if place == "middle" else len(model.blocks)) - 1]
    handle = block.register_forward_hook(lambda _, __, state: seen.append(state.flatten(0, 1)))
    for tokens, _ in batches:
        model(tokens)
    handle.remove()
    return [(state, targets.flatten()) for state, (_, targets) in zip(seen, batches, strict=True)]


def read_out(learn: tuple[Tensor, Tensor], held_out: tuple[Tensor, Tensor]) -> float:
    """Held-out cross-entropy, in nats, of the logistic regression of targets on states, fitted by Adam from 0.

    States are first scaled to mean 0 and deviation 1, feature by feature, as they are in `learn`.
    """
    mean, deviation = learn[0].mean(0), learn[0].std(0) + 1e-6
    weight = torch.zeros(VOCAB, len(mean), requires_grad=True)
    bias = torch.zeros(VOCAB, requires_grad=True)
    optimizer = torch.optim.Adam([weight, bias], lr=0.03)

    def loss(states: Tensor, targets: Tensor) -> Tensor:
        scores = torch.nn.functional.linear((states - mean) / deviation, weight, bias)
        return torch.nn.functional.cross_entropy(scores, targets)

    for _ in range(READ_OUT_STEPS):
        optimizer.zero_grad()
        loss(*learn).backward()
        optimizer.step()
    return float(loss(*held_out).detach())


def loss_by_pairs(learn: Batch, held_out: Batch) -> float:
    """Held-out cross-entropy, in nats, of p(b | a) = (n_ab + k p_b) / (n_a + k), counted in `learn`, with k = PRIOR."""
    counts = torch.zeros(VOCAB, VOCAB).index_put_(
        tuple(part.flatten() for part in learn), torch.ones(()), accumulate=True
    )
    often = (counts.sum(0) + 1) / (counts.sum() + VOCAB)
    likely = (counts + PRIOR * often) / (counts.sum(1, keepdim=True) + PRIOR)
    return -float(likely[tuple(part.flatten() for part in held_out)].log().mean())


CLAIM = TaskLeak()
