"""One model against another: the same seeds, text and steps, so that what a seed does to both is no noise."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from residuum.errors import InputError, meant
from residuum.model.residual import REGISTRY
from residuum.study.cell import Cell
from residuum.study.depth import Grid
from residuum.study.launch import Launch, locally
from residuum.study.run import Progress, run
from residuum.study.statistics import LEAST_SEEDS, Interval, interval, paired
from residuum.study.store import Store
from residuum.study.training import training_cell
from residuum.train import Recipe, load_recipe

SCHEMA = "residuum.study.compare/1"

# How often held-out text is looked at, for the comparison at equal time.
EVALUATIONS = 10


def recipes(a: str, b: str, n_layers: int | None = None, steps: int | None = None) -> tuple[Recipe, Recipe]:
    """Two connections by name, each in the small model of the depth study, or two recipes, built in or TOML files.

    `n_layers` and `steps` replace what both have. Raises `InputError` for a mixture, or recipes that read other text.
    """
    kinds = [name in REGISTRY or ":" in name for name in (a, b)]
    if all(kinds):
        layers, steps = 8 if n_layers is None else n_layers, 1000 if steps is None else steps
        one, other = (Grid((name,), (layers,), steps=steps).recipe(name, layers, True, 0) for name in (a, b))
    elif any(kinds):
        known, none = (a, b) if kinds[0] else (b, a)
        raise InputError(
            f"'{known}' is a residual connection and '{none}' is none{meant(none, REGISTRY)}: give two connections "
            "(residuum check --help lists them) or two recipes (a built-in one's name, or a TOML file)"
        )
    else:
        one, other = (_recipe(name, n_layers, steps) for name in (a, b))
    for field in ("source", "documents", "held_out", "max_bytes"):
        values = getattr(one.data, field), getattr(other.data, field)
        if values[0] != values[1]:
            raise InputError(f"data.{field} is {values[0]!r} in {a} and {values[1]!r} in {b}: give both the same text")
    if one.run.steps != other.run.steps:
        raise InputError(f"run.steps is {one.run.steps} in {a} and {other.run.steps} in {b}: give --steps for both")
    return one, other


def _recipe(name: str, n_layers: int | None, steps: int | None) -> Recipe:
    try:
        recipe = load_recipe(name)
    except InputError as error:
        if name.endswith(".toml"):
            raise
        raise InputError(f"{error}; or two residual connections, which residuum check --help lists") from None
    model, run = recipe.model, dataclasses.replace(recipe.run, sample_tokens=0)
    if n_layers is not None:
        model = dataclasses.replace(model, n_layers=n_layers)
    if steps is not None:
        run = dataclasses.replace(run, steps=steps)
    return dataclasses.replace(recipe, model=model, run=run)


@dataclass(frozen=True)
class Comparison:
    """A and B seed by seed, in bits per byte of held-out text.

    `at_equal_time` is the difference when the slower one is stopped at the time at which the faster one finished all
    its steps; its learning rate has not decayed by then, which is to its disadvantage. `seconds_per_step` are medians.
    Both are None where the cells ran on different processors.
    """

    a: str
    b: str
    steps: int
    seeds: list[int]
    bits: tuple[list[float | None], list[float | None]]
    missing: int
    difference: Interval | None = None
    at_equal_time: Interval | None = None
    seconds_per_step: tuple[float, float] | None = None
    unigram: float | None = None

    @property
    def verdict(self) -> str:
        """One sentence."""
        if self.missing:
            return f"not judged: {self.missing} cells are not finished"
        fails = [
            f"{name} diverged with {sum(value is None for value in values)} of {len(values)} seeds"
            for name, values in zip((self.a, self.b), self.bits, strict=True)
            if None in values
        ]
        if fails or self.difference is None:
            return "not judged: " + " and ".join(fails)
        little = ""
        if self.unigram is not None and all(value >= self.unigram for row in self.bits for value in row if value):
            little = f"; neither has learned more than byte frequencies ({self.unigram:.2f}) yet: give more --steps"
        mean, half, n = self.difference.mean, self.difference.half or 0.0, self.difference.n
        if not self.difference.excludes_zero:
            return (
                f"no difference seen: {mean:+.3f} ± {half:.3f} bits per byte over {n} seeds, and the interval holds 0"
                + little
            )
        lower = self.a if mean < 0 else self.b
        return f"{lower} is lower by {abs(mean):.3f} ± {half:.3f} bits per byte over {n} seeds" + little

    @property
    def time(self) -> str | None:
        """What a step costs, and the difference at equal time, in a sentence."""
        if self.seconds_per_step is None or self.at_equal_time is None:
            return None
        a, b = self.seconds_per_step
        slow, fast = (self.a, self.b) if a >= b else (self.b, self.a)
        return (
            f"a step of {slow} takes {max(a, b) / min(a, b):.2f} times one of {fast}; at equal time "
            f"{self.a} − {self.b} is {self.at_equal_time} bits per byte"
        )

    def to_json(self) -> str:
        """The figures and the verdict."""
        content = {"schema": SCHEMA, **dataclasses.asdict(self), "verdict": self.verdict, "time": self.time}
        return json.dumps(content, indent=2, allow_nan=False) + "\n"

    def to_markdown(self) -> str:
        """The verdict, and a row for each seed."""
        lines = [f"**{self.verdict}**", ""]
        lines += [self.time, ""] if self.time else []
        lines += [f"| seed | {self.a} | {self.b} | {self.a} − {self.b} |", "|---|---|---|---|"]
        return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in self.rows())]) + "\n"

    def rows(self) -> list[tuple[str, ...]]:
        """Seed, A, B and their difference, then the means."""
        rows: list[tuple[str, ...]] = []
        for seed, x, y in zip(self.seeds, *self.bits, strict=True):
            difference = "–" if x is None or y is None else f"{x - y:+.3f}"
            rows.append((str(seed), *("–" if value is None else f"{value:.3f}" for value in (x, y)), difference))
        if self.difference is not None:
            a, b = (str(interval([value for value in values if value is not None])) for values in self.bits)
            rows.append(("mean", a, b, str(self.difference)))
        return rows


def compare(
    a: str,
    b: str,
    store: Store,
    n_layers: int | None = None,
    steps: int | None = None,
    seeds: int = LEAST_SEEDS,
    progress: Callable[[Progress], None] = lambda _: None,
    shard: tuple[int, int] = (1, 1),
    launch: Launch = locally,
) -> Comparison:
    """Train A and B with every seed, and take their difference seed by seed."""
    if seeds < LEAST_SEEDS:
        raise InputError(f"--seeds is {seeds}: give at least {LEAST_SEEDS}, for fewer have no interval worth it")
    both = recipes(a, b, n_layers, steps)
    total = both[0].run.steps
    cells = [[_cell(recipe, name, seed) for seed in range(seeds)] for name, recipe in zip((a, b), both, strict=True)]
    if [cell.key for cell in cells[0]] == [cell.key for cell in cells[1]]:
        raise InputError(f"{a} and {b} are the same model: give two that differ")
    # A seed's two cells one after the other: what else the machine does slows both.
    run([cell for pair in zip(*cells, strict=True) for cell in pair], store, progress, shard, launch)
    results = [[store.result(cell) for cell in row] for row in cells]
    finished = [[result for result in row if result is not None] for row in results]
    bits = [[None if each is None else each.figures["bits_per_byte"] for each in row] for row in results]
    sound = [[value for value in row if value is not None] for row in bits]
    found = Comparison(
        a, b, total, list(range(seeds)), (bits[0], bits[1]), sum(result is None for row in results for result in row)
    )
    if any(len(row) < seeds for row in sound):
        return found
    unigram = finished[0][0].figures["unigram_bits_per_byte"]
    found = dataclasses.replace(found, difference=paired(*sound), unigram=unigram)
    if len({result.made_with["cpu"] for row in finished for result in row}) > 1:
        return found  # their times cannot be compared
    seconds = [[_seconds(each.figures, recipe) for each in row] for row, recipe in zip(finished, both, strict=True)]
    figures = [[each.figures for each in row] for row in finished]
    medians = _median(seconds[0]), _median(seconds[1])
    return dataclasses.replace(
        found,
        at_equal_time=interval([_at_equal_time(pair, medians, total) for pair in zip(*figures, strict=True)]),
        seconds_per_step=medians,
    )


def _cell(recipe: Recipe, name: str, seed: int) -> Cell:
    steps = recipe.run.steps
    run = dataclasses.replace(
        recipe.run,
        seed=seed,
        log_every=max(1, steps // 50),
        eval_every=-(-steps // EVALUATIONS),
        checkpoint_every=-(-steps // EVALUATIONS),
        keep_checkpoints=1,
        sample_tokens=0,
    )
    return training_cell(dataclasses.replace(recipe, run=run), f"{name}, seed {seed}")


def _seconds(figures: dict[str, Any], recipe: Recipe) -> float:
    """What a step took, the median of the run, without evaluations and checkpoints."""
    return recipe.optim.batch_size * recipe.optim.accumulate * recipe.model.context / figures["tokens_per_second"]


def _at_equal_time(pair: Sequence[dict[str, Any]], seconds: tuple[float, ...], steps: int) -> float:
    """A − B at the time when the faster one is done; between two evaluations it is read off the line through them."""
    end = min(seconds) * steps
    a, b = (_bits_at(each["held_out"], end / second) for each, second in zip(pair, seconds, strict=True))
    return a - b


def _bits_at(held_out: list[list[float]], step: float) -> float:
    for (before, low), (after, high) in pairwise(held_out):
        if before <= step <= after:
            return low + (high - low) * (step - before) / (after - before)
    return held_out[0][1] if step < held_out[0][0] else held_out[-1][1]


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]
