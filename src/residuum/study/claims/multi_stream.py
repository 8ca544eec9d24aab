"""Whether several streams are worth their compute."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from residuum.study.cell import Cell
from residuum.study.claims.claim import Outcome, Undecided
from residuum.study.depth import Grid
from residuum.study.statistics import paired
from residuum.study.training import training_cell

EXTRA = {"hyper-connections": 1.25, "mhc": 1.6}
"""How many times the steps of each Pre-LN gets: its matrix products come to 1.17 and 1.51 times Pre-LN's here."""


class MultiStream:
    """Pre-LN is given more steps than the others' own products come to: a win against it is one at equal compute.

    Their clock would give it more still: what has many small operations takes longer than its products say.
    """

    id = "multi-stream"
    statement = "At equal compute hyper-connections and mHC reach a lower loss than Pre-LN"
    source = (
        "Zhu et al. 2024, https://arxiv.org/abs/2409.19606; Xie et al. 2025, https://arxiv.org/abs/2512.24880; both "
        "compare at equal steps"
    )
    experiment = (
        "four streams against Pre-LN on the standard library's text, same seeds, at equal steps and with more for "
        "Pre-LN, so that its matrix products come to no less: "
        + " and ".join(f"{extra:g} times against {name}" for name, extra in EXTRA.items())
        + " (an earlier run: 1.25 times against both); 8 layers, full: 12 and more steps"
    )
    metric = "bits per byte of held-out text, the difference seed by seed"
    threshold = (
        "holds: for both the 95% interval of (theirs − Pre-LN's with more steps) lies below 0; holds under equal "
        "steps: it does with equal steps only"
    )

    def cells(self, quick: bool) -> list[Cell]:
        grid = _grid(quick)
        equal = [grid.cells(name, grid.depths[0], True) for name in ("pre", *EXTRA)]
        return [cell for row in (*equal, *(_longer(grid, extra) for extra in EXTRA.values())) for cell in row]

    def judge(self, figures: list[dict[str, Any]], quick: bool) -> Outcome:
        seeds = _grid(quick).seeds
        bits = [f["bits_per_byte"] for f in figures]
        rows = [bits[start : start + seeds] for start in range(0, len(bits), seeds)]
        pre, *rest = rows
        theirs, longer = (dict(zip(EXTRA, some, strict=True)) for some in (rest[: len(EXTRA)], rest[len(EXTRA) :]))
        if any(None in row for row in (pre, *longer.values())):
            raise Undecided("a run of Pre-LN diverged: there is nothing to compare with")
        if diverged := [name for name, row in theirs.items() if None in row]:
            return Outcome(
                "does not hold", {"bits_per_byte": theirs}, f"{' and '.join(diverged)} diverged in some seed"
            )
        at_steps = {name: paired(row, pre) for name, row in theirs.items()}
        at_compute = {name: paired(row, longer[name]) for name, row in theirs.items()}
        outcome = "does not hold"
        if all(gap.mean < 0 and gap.excludes_zero for gap in at_compute.values()):
            outcome = "holds"
        elif all(gap.mean < 0 and gap.excludes_zero for gap in at_steps.values()):
            outcome = "holds under equal steps"
        return Outcome(
            outcome,
            {name: {"equal_steps": vars(at_steps[name]), "equal_compute": vars(at_compute[name])} for name in EXTRA},
            "; ".join(
                f"{name} − Pre-LN: {at_steps[name]} bits per byte at equal steps, {at_compute[name]} against "
                f"{extra:g} times the steps"
                for name, extra in EXTRA.items()
            ),
        )


def _grid(quick: bool) -> Grid:
    return Grid(("pre", *EXTRA), (8,) if quick else (12,), seeds=3 if quick else 5, steps=300 if quick else 2000)


def _longer(grid: Grid, extra: float) -> list[Cell]:
    longer = replace(grid, steps=round(extra * grid.steps))
    recipes = [longer.recipe("pre", grid.depths[0], True, seed) for seed in range(grid.seeds)]
    return [training_cell(recipe, f"pre, {longer.steps} steps, seed {seed}") for seed, recipe in enumerate(recipes)]


CLAIM = MultiStream()
