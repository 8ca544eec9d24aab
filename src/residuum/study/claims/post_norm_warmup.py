"""Whether deep Post-LN needs a warm-up."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from residuum.study.cell import Cell
from residuum.study.claims.claim import Outcome, Undecided
from residuum.study.claims.depth_claim import TRAINED, Setting, Trial, Verdict
from residuum.study.depth import WARMUP, Grid

XAVIER = "Xavier's"


class PostNormWarmup:
    """The conditions under which a claim holds are part of it: depth, learning rate and first weights are varied.

    Pilots with few steps chose the learning rates.
    """

    id = "post-norm-warmup"
    statement = "Beyond 12 layers Post-LN fails without a warm-up of the learning rate, and trains with it"
    source = "Xiong et al. 2020, https://arxiv.org/abs/2002.04745; Liu et al. 2020, https://arxiv.org/abs/2004.08249"
    experiment = (
        f"Post-LN on the standard library's text, a warm-up over {WARMUP:.0%} of the steps or none, from Xavier's and "
        "from GPT-2's weights; full: also 24 layers, 6 as a control, and other learning rates; pilots chose the rates"
    )
    metric = "gain on byte frequencies, bits per byte of held-out text, as a share of the reference's"
    threshold = (
        "a condition shows it if every seed trains with warm-up and none without; holds: at every depth beyond 12 a "
        f"condition with Xavier's weights does; holds under: whichever conditions beyond 12 do; {TRAINED}"
    )

    def cells(self, quick: bool) -> list[Cell]:
        return [cell for trial in _trials(quick).values() for cell in trial.cells()]

    def judge(self, figures: list[dict[str, Any]], quick: bool) -> Outcome:
        found: dict[Condition, tuple[Verdict, Verdict]] = {}
        rest, skipped = figures, {}
        for (weights, lr), trial in _trials(quick).items():
            count = len(trial.cells())
            own, rest = rest[:count], rest[count:]
            try:
                verdicts = trial.verdicts(own)
            except Undecided as error:
                skipped[f"{lr:g} from {weights} weights"] = str(error)
                continue
            for n_layers in trial.grid.depths:
                with_warmup, without = (verdicts[Setting("post", n_layers, warmup)] for warmup in (True, False))
                found[Condition(n_layers, lr, weights)] = with_warmup, without
        if not any(key.weights == XAVIER for key in found):
            raise Undecided(next(iter(skipped.values())))
        deep = {key.n_layers for key in found if key.n_layers > 12}
        shown = [key for key, (w, v) in found.items() if key.n_layers in deep and w.all and not v.trained]
        outcome = "does not hold"
        if deep <= {key.n_layers for key in shown if key.weights == XAVIER}:
            outcome = "holds"
        elif shown:
            outcome = "holds under " + " and ".join(map(str, shown))
        return Outcome(
            outcome,
            {str(key): {"warm-up": w._asdict(), "none": v._asdict()} for key, (w, v) in found.items()},
            "; ".join(
                [f"{key}: with warm-up {w}, without {v}" for key, (w, v) in found.items()]
                + [f"{key}: {why}" for key, why in skipped.items()]
            ),
        )


class Condition(NamedTuple):
    """One row of the experiment, with warm-up and without."""

    n_layers: int
    lr: float
    weights: str

    def __str__(self) -> str:
        return f"{self.n_layers} layers at {self.lr:g} from {self.weights} weights"


def _trials(quick: bool) -> dict[tuple[str, float], Trial]:
    depths = (14,) if quick else (6, 14, 24)
    weights: dict[str, Literal["residual", "gpt2"]] = {XAVIER: "residual", "GPT-2's": "gpt2"}
    return {
        (name, lr): Trial(
            Grid(("post",), depths, steps=300 if quick else 1000, lr=lr, branch_init=init),
            tuple(Setting("post", n, warmup) for n in depths for warmup in (True, False)),
            3,
        )
        for name, init in weights.items()
        for lr in ((1e-3,) if quick else (3e-4, 1e-3, 3e-3))
    }


CLAIM = PostNormWarmup()
