"""Whether several streams are worth their compute."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from residuum.study.cell import Cell
from residuum.study.claims.claim import Outcome
from residuum.study.depth import Grid
from residuum.study.statistics import paired
from residuum.study.training import training_cell

MULTI = ("hyper-connections", "mhc")

EXTRA = 1.25
"""How many times the steps of the others Pre-LN gets."""


class MultiStream:
    """Pre-LN is given more steps than the others' extra time could make: a win against it is one at equal compute."""

    id = "multi-stream"
    statement = "At equal compute hyper-connections and mHC reach a lower loss than Pre-LN"
    source = (
        "Zhu et al. 2024, https://arxiv.org/abs/2409.19606; Xie et al. 2025, https://arxiv.org/abs/2512.24880; both "
        "compare at equal steps"
    )
    experiment = (
        "four streams against Pre-LN on the standard library's text, same seeds, at equal steps and with "
        f"{EXTRA:g} times the steps for Pre-LN; 8 layers, full: 12 and more steps"
    )
    metric = "bits per byte of held-out text, the difference seed by seed"
    threshold = (
        "holds: for both the 95% interval of (theirs − Pre-LN's with more steps) lies below 0; holds under equal "
        "steps: it does with equal steps only"
    )

    def cells(self, quick: bool) -> list[Cell]:
        grid = _grid(quick)
        equal = [grid.cells(name, grid.depths[0], True) for name in ("pre", *MULTI)]
        return [cell for row in (*equal, _longer(grid)) for cell in row]

    def judge(self, figures: list[dict[str, Any]], quick: bool) -> Outcome:
        seeds = _grid(quick).seeds
        bits = [f["bits_per_byte"] for f in figures]
        rows = [bits[start : start + seeds] for start in range(0, len(bits), seeds)]
        if None in bits:
            return Outcome("does not hold", {"bits_per_byte": rows}, "a run diverged")
        pre, *theirs, longer = rows
        at_steps = {name: paired(row, pre) for name, row in zip(MULTI, theirs, strict=True)}
        at_compute = {name: paired(row, longer) for name, row in zip(MULTI, theirs, strict=True)}
        outcome = "does not hold"
        if all(gap.mean < 0 and gap.excludes_zero for gap in at_compute.values()):
            outcome = "holds"
        elif all(gap.mean < 0 and gap.excludes_zero for gap in at_steps.values()):
            outcome = "holds under equal steps"
        return Outcome(
            outcome,
            {name: {"equal_steps": vars(at_steps[name]), "equal_compute": vars(at_compute[name])} for name in MULTI},
            "; ".join(
                f"{name} − Pre-LN: {at_steps[name]} bits per byte at equal steps, {at_compute[name]} against "
                f"{EXTRA:g} times the steps"
                for name in MULTI
            ),
        )


def _grid(quick: bool) -> Grid:
    return Grid(("pre", *MULTI), (8,) if quick else (12,), seeds=3 if quick else 5, steps=300 if quick else 2000)


def _longer(grid: Grid) -> list[Cell]:
    longer = replace(grid, steps=round(EXTRA * grid.steps))
    recipes = [longer.recipe("pre", grid.depths[0], True, seed) for seed in range(grid.seeds)]
    return [training_cell(recipe, f"pre, {longer.steps} steps, seed {seed}") for seed, recipe in enumerate(recipes)]


CLAIM = MultiStream()
