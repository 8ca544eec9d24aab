"""Which of its 2ⁿ paths a gradient takes."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from residuum.model import ModelConfig, Transformer
from residuum.model.residual.pre import Pre
from residuum.study.cell import Cell, experiment
from residuum.study.claims.claim import Outcome
from residuum.study.small import VOCAB, fit, text_of
from residuum.study.statistics import interval

MOST = 0.9


class PathLength:
    """dL/dx_0 = Π (1 + J_k)ᵀ g: a sum over all subsets of the n connections of the product of their J, 2ⁿ paths.

    The paper weighs a length k by C(n, k) times the mean norm of single paths, sampled; the claim uses that. Paths of
    one length may cancel, so the norm of their sum, which is exact and no sample, is given beside it.
    """

    id = "path-length"
    statement = "Most of the gradient comes by paths shorter than half of the connections"
    source = "Veit et al. 2016, https://arxiv.org/abs/1605.06431, section 4.3"
    experiment = (
        "Pre-LN at first weights and trained on the standard library's text; from the last state back to the first, "
        "random sets of k connections of which only the branch is taken, of all others only the identity"
    )
    metric = "share of Σ_k C(n, k) · mean gradient norm over paths of length k that lengths below n / 2 have"
    threshold = f"at least {MOST:.0%} in trained networks, by the lower end of the 95% interval"

    def cells(self, quick: bool) -> list[Cell]:
        layers, steps, samples, seeds = (8, 200, 12, 1) if quick else (12, 1500, 50, 3)
        return [
            Cell(
                f"{__name__}:gradient_by_length",
                {"n_layers": layers, "steps": trained, "samples": samples, "seed": seed},
                layers * (20 + trained),
            )
            for trained in (0, steps)
            for seed in range(seeds)
        ]

    def judge(self, figures: list[dict[str, Any]], quick: bool) -> Outcome:
        trained = [f for f in figures if f["steps"]]
        short = interval([share_below_half(f["sampled"]) for f in trained])
        exact = interval([share_below_half(f["summed"]) for f in trained])
        first = interval([share_below_half(f["sampled"]) for f in figures if not f["steps"]])
        n = len(trained[0]["sampled"]) - 1
        typical = interval([mean_length(f["sampled"]) for f in trained])
        return Outcome(
            "holds" if short.mean - (short.half or 0) >= MOST else "does not hold",
            {
                "short": short.mean,
                "summed": exact.mean,
                "first_weights": first.mean,
                "mean_length": typical.mean,
                "n": n,
            },
            f"trained, paths of fewer than {n / 2:g} of {n} connections have {short} of the gradient, of mean length "
            f"{typical.mean:.1f} ({exact} where paths of one length may cancel); at first weights {first}",
        )


@experiment(version=2)
def gradient_by_length(settings: dict[str, Any]) -> dict[str, Any]:
    """By number of connections whose branch is taken, 0 to n: `sampled` C(n, k) · mean norm, and `summed` norms."""
    torch.manual_seed(settings["seed"])
    text = text_of("stdlib")
    model = Transformer(ModelConfig(vocab_size=VOCAB, context=64, d_model=48, n_layers=settings["n_layers"]))
    if settings["steps"]:
        fit(model, text.train, settings["steps"], settings["seed"])
    branches, arriving = unrolled(model.double().eval(), text.held_out_batch(model.config.context, 4))
    n, chance = len(branches), torch.Generator().manual_seed(settings["seed"])
    sampled = []
    for k in range(n + 1):
        subsets = [torch.randperm(n, generator=chance)[:k].tolist() for _ in range(settings["samples"])]
        norms = [float(along(branches, arriving, subset).norm()) for subset in subsets]
        sampled.append(math.comb(n, k) * sum(norms) / len(norms))
    summed = [float(gradient.norm()) for gradient in by_length(branches, arriving)]
    return {"steps": settings["steps"], "sampled": sampled, "summed": summed, "text": text.fingerprint}


class BranchJacobian:
    """Jᵀ of one branch where the model is, its norm included."""

    def __init__(self, x: Tensor, write: Tensor) -> None:
        self.x, self.write = x, write

    def __call__(self, gradient: Tensor) -> Tensor:
        (back,) = torch.autograd.grad(self.write, self.x, gradient, retain_graph=True)
        return back


def unrolled(model: Transformer, batch: tuple[Tensor, Tensor]) -> tuple[list[BranchJacobian], Tensor]:
    """Every branch of a Pre-LN model, each cut off from the one before it, and dL/dx at the last state."""
    seen: list[Tensor] = []
    handle = model.dropout.register_forward_hook(lambda _, __, x: seen.append(x))
    with torch.no_grad():
        model(batch[0])
    handle.remove()
    x, branches = seen[0], []
    for connection, branch in model.connections():
        assert isinstance(connection, Pre)
        leaf = x.detach().requires_grad_()
        write = branch(connection.norm(leaf))
        branches.append(BranchJacobian(leaf, write))
        x = leaf + write
    assert model.final_norm is not None and model.head is not None
    last = x.detach().requires_grad_()
    scores = model.head(model.final_norm(last))
    loss = torch.nn.functional.cross_entropy(scores.flatten(0, 1), batch[1].flatten())
    return branches, torch.autograd.grad(loss, last)[0]


def along(branches: list[BranchJacobian], gradient: Tensor, taken: Iterable[int]) -> Tensor:
    """The gradient that comes by one path: through the branches `taken`, past all others."""
    for k in sorted(taken, reverse=True):
        gradient = branches[k](gradient)
    return gradient


def by_length(branches: list[BranchJacobian], gradient: Tensor) -> list[Tensor]:
    """The sum over all paths of each length, 0 to n: at a connection g_k becomes g_k + Jᵀ g_{k−1}."""
    lengths = [gradient]
    for branch in reversed(branches):
        longer = [branch(each) for each in lengths]
        none = torch.zeros_like(gradient)
        lengths = [past + through for past, through in zip([*lengths, none], [none, *longer], strict=True)]
    return lengths


def share_below_half(by_length: list[float]) -> float:
    """Of values for lengths 0 to n, the share that lengths below n / 2 have."""
    n = len(by_length) - 1
    return sum(value for k, value in enumerate(by_length) if k < n / 2) / sum(by_length)


def mean_length(by_length: list[float]) -> float:
    """The mean length, each weighed by its value."""
    return sum(k * value for k, value in enumerate(by_length)) / sum(by_length)


CLAIM = PathLength()
