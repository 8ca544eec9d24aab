"""Whether three levels a weight are enough."""

from __future__ import annotations

from math import log
from statistics import fmean
from typing import Any

from residuum.model import ModelConfig
from residuum.study.cell import Cell
from residuum.study.claims.claim import Outcome, Undecided
from residuum.study.statistics import Interval, paired
from residuum.study.training import training_cell
from residuum.train.recipe import DataConfig, OptimConfig, Recipe, RunConfig

MARGIN = log(12.87 / 12.33) / log(12.33)
"""By what share of its twin's loss the source's smallest model, of 700 million parameters, is behind: 1.7%."""

TWIN, TERNARY, WIDE = "twin", "ternary", "ternary, twice as wide"

SEEDS = 3

Best = dict[str, tuple[float, list[float]]]
"""By name the rate with the lowest mean, and its seeds' bits per byte."""

RATES = {TWIN: 4e-3, TERNARY: 2e-3, WIDE: 4e-3}
"""Peak learning rates that pilots with one seed found best for the quick experiment; the full one tries others, too."""


class TernaryTwin:
    """The source says it of three billion parameters and more; here it is asked of what a small machine can train.

    A difference in mid-run would say nothing, for the loss of ternary weights falls in an S: each model is judged by
    its last step, after a schedule of its own (two stages for ternary weights, a cosine for the twin).
    """

    id = "ternary-twin"
    statement = "A ternary Transformer learns what its full-precision twin learns"
    source = (
        "Ma et al. 2024, https://arxiv.org/abs/2402.17764, from 3 billion parameters on; Nielsen, Schneider-Kamp 2024, "
        "https://arxiv.org/abs/2407.09527: small ones with twice the width"
    )
    experiment = (
        "BitNet b1.58's linear maps against plain ones, and twice as wide, on the standard library's text: 4 layers, "
        "the same tokens, a schedule of their own and a learning rate that pilots with one seed chose; full: the best "
        "of that rate, its half and its quarter and, where a first run found that rate the best of them, its double"
    )
    metric = "bits per byte of held-out text after the last step, the difference seed by seed"
    threshold = (
        f"at most {MARGIN:.1%} above the twin's mean by the upper end of the 95% interval, as far as the source's "
        "smallest model, of 700 million parameters, is behind; holds under twice the width: the wide one alone does"
    )

    def cells(self, quick: bool) -> list[Cell]:
        return [
            training_cell(_recipe(name, lr, seed, quick), f"{name}, lr {lr:g}, seed {seed}")
            for name in RATES
            for lr in _rates(name, quick)
            for seed in range(SEEDS)
        ]

    def judge(self, figures: list[dict[str, Any]], quick: bool) -> Outcome:
        bits = iter(f["bits_per_byte"] for f in figures)
        found = {name: {lr: [next(bits) for _ in range(SEEDS)] for lr in _rates(name, quick)} for name in RATES}
        stable = {name: {lr: row for lr, row in rows.items() if None not in row} for name, rows in found.items()}
        if not stable[TWIN]:
            raise Undecided("the full-precision twin diverged at every rate: there is nothing to compare with")
        best = {name: min(rows.items(), key=lambda item: fmean(item[1])) for name, rows in stable.items() if rows}
        twin = best[TWIN][1]
        gaps = {name: paired(best[name][1], twin) for name in (TERNARY, WIDE) if name in best}
        near = [name for name, gap in gaps.items() if gap.mean + (gap.half or 0) <= MARGIN * fmean(twin)]
        outcome = "holds" if TERNARY in near else "holds under twice the width" if near else "does not hold"
        return Outcome(
            outcome,
            {
                "margin": MARGIN * fmean(twin),
                **{name: {"lr": lr, "bits_per_byte": fmean(row)} for name, (lr, row) in best.items()},
                "gaps": {name: vars(gap) for name, gap in gaps.items()},
            },
            f"the twin needs {fmean(twin):.3f} bits per byte ({_rate(TWIN, best, quick)}); ternary "
            f"{_more(TERNARY, best, gaps, quick)}, twice as wide {_more(WIDE, best, gaps, quick)}, where "
            f"{MARGIN * fmean(twin):.3f} more is allowed",
        )


def _rates(name: str, quick: bool) -> list[float]:
    """The wide model's best lay in the middle of three."""
    factors = (1,) if quick else (0.25, 0.5, 1) if name == WIDE else (0.25, 0.5, 1, 2)
    return [RATES[name] * factor for factor in factors]


def _recipe(name: str, lr: float, seed: int, quick: bool) -> Recipe:
    steps, width = (240, 48) if quick else (3000, 96)
    if name == WIDE:
        width *= 2
    return Recipe(
        RunConfig(
            steps=steps, seed=seed, log_every=steps // 50, eval_every=steps // 5, eval_tokens=16_384, sample_tokens=0,
            checkpoint_every=steps // 5, keep_checkpoints=1, precision="float32",
        ),
        DataConfig(max_bytes=2_000_000 if quick else 20_000_000),
        ModelConfig(
            context=64, d_model=width, n_layers=4, n_heads=width // 16, activation="swiglu", norm="rmsnorm",
            positions="rotary", linear="float" if name == TWIN else "ternary",
        ),
        OptimConfig(
            batch_size=8, lr=lr, min_lr=lr / 50, warmup=steps // 10, decay="cosine" if name == TWIN else "two-stage"
        ),
        engine="explicit",
    )  # fmt: skip


def _more(name: str, best: Best, gaps: dict[str, Interval], quick: bool) -> str:
    if name not in gaps:
        return "diverged at every rate"
    gap = gaps[name]
    return f"{gap} {'more' if gap.mean >= 0 else '(fewer)'} ({_rate(name, best, quick)})"


def _rate(name: str, best: Best, quick: bool) -> str:
    """A best rate that lies at the edge of those that were tried may not be the best there is."""
    rate, tried = best[name][0], _rates(name, quick)
    edge = "" if len(tried) < 2 else {tried[0]: ", the lowest tried", tried[-1]: ", the highest tried"}.get(rate, "")
    return f"rate {rate:g}{edge}"


CLAIM = TernaryTwin()
