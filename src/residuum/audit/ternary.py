"""What became of a run's ternary maps while it trained, from the lines of its metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import altair as alt

from residuum.audit.html import Part
from residuum.audit.page import BRANCH, IDENTITY, STATE, finished, percent, thinned
from residuum.train.ternary import FLIPS_OVER

# Of more maps than this a block's are drawn as one: rows and lines would not be told apart.
CROWDED = 42

# A chart shows at most this many steps.
MOST_STEPS = 60

LEVELS = ("−1", "0", "+1")

NOTE = (
    "Levels of the weights, and how many changed; how far the straight-through gradient is from the one without any "
    "rounding; and what rounding takes from activations. Eight bits reach exactly to the largest entry of each token: "
    "nothing is clipped, and what is smaller than half a level becomes 0."
)

Series = dict[str, dict[int, float]]
"""Of each map a value by step."""


@dataclass(frozen=True)
class Maps:
    """The ternary maps of a run; `sizes` are their numbers of weights, in the order of the model."""

    lines: list[dict[str, Any]]
    sizes: Mapping[str, int]

    def part(self) -> Part | None:
        """Charts for the page; None where nothing was recorded."""
        charts = [
            *([self._zeros(), self._levels()] if self.has("ternary_shares") else []),
            *([self._flips()] if self.has("flips") else []),
            *([self._cosine()] if self.has("estimator_cosine") else []),
            *([self._activations()] if self.has("activation_levels") else []),
        ]
        note = NOTE
        if self.has("activation_levels"):
            note += f" {self._plain(self._series('activation_levels', 1))[-1]:.1%} of all entries are at the top level."
        return Part("Ternary weights and eight-bit activations", note, charts) if charts else None

    def has(self, key: str) -> bool:
        return any(key in line for line in self.lines)

    def findings(self) -> list[str]:
        """What stands in the newest lines, in lines of at most 100 columns; none where nothing was recorded."""
        said = []
        if self.has("ternary_shares"):
            said.append(f"{self._weighted(self._series('ternary_shares', 1))[-1]:.0%} of the ternary weights are 0")
        if self.has("flips"):
            said.append(f"{percent(self._weighted(self._series('flips'))[-1])} changed level in {FLIPS_OVER} steps")
        if self.has("estimator_cosine"):
            mean = _mean(_last(self._series("estimator_cosine")).values())
            said.append(f"their gradient’s cosine to that without rounding is {mean:.2f}")
        if self.has("activation_levels"):
            lost = _mean(_last(self._series("activation_levels", 0)).values())
            said.append(f"eight bits round {lost:.1%} of activations to 0")
        return [", ".join(said[place : place + 2]) for place in range(0, len(said), 2)]

    def _zeros(self) -> dict[str, Any]:
        zeros = self._series("ternary_shares", 1)
        first, last = (self._weighted(zeros)[place] for place in (0, -1))
        steps = _steps(zeros)
        title = f"{last:.0%} of the ternary weights are 0 after {steps[-1]:,} steps"
        if len(steps) > 1:
            title += f", {first:.0%} after {steps[0]:,}"
        rows = self._grouped(zeros)
        minus, plus = (self._grouped(self._series("ternary_shares", level)) for level in (0, 2))
        values = [
            {"map": name, "step": step, "−1": minus[name][step], "0": value, "+1": plus[name][step]}
            for name, by_step in rows.items()
            for step, value in by_step.items()
        ]
        chart = (
            alt.Chart(alt.Data(values=values))
            .mark_rect(color=IDENTITY)
            .encode(
                alt.X("step:O", title="step", axis=alt.Axis(labelAngle=0, labelOverlap=True, labelSeparation=8)),
                _rows(rows),
                alt.Opacity(
                    "0:Q",
                    title="share of 0",
                    scale=alt.Scale(domain=[0, 1], range=[0.08, 1]),  # the same in every run: a point is no pattern
                    legend=alt.Legend(orient="top", format=".0%", symbolType="square", values=[0, 0.25, 0.5, 0.75, 1]),
                ),
                tooltip=["map:N", "step:Q", *(alt.Tooltip(f"{level}:Q", format=".1%") for level in LEVELS)],
            )
            .properties(title=title)
        )
        return finished(chart, _height(rows))

    def _levels(self) -> dict[str, Any]:
        every = [self._series("ternary_shares", level) for level in range(3)]
        apart = max(
            abs(value - every[2][name][step]) for name, by_step in every[0].items() for step, value in by_step.items()
        )
        grouped = [_last(self._grouped(series)) for series in every]
        values = [
            {"map": name, "level": level, "place": place, "share": value}
            for place, (level, last) in enumerate(zip(LEVELS, grouped, strict=True))
            for name, value in last.items()
        ]
        chart = (
            alt.Chart(alt.Data(values=values))
            .mark_bar()
            .encode(
                alt.X(
                    "share:Q",
                    title=f"share of the weights, step {_steps(every[0])[-1]:,}",
                    scale=alt.Scale(domain=[0, 1]),
                    axis=alt.Axis(format="~%", tickCount=5),
                ),
                _rows(grouped[0]),
                alt.Color(
                    "level:N",
                    scale=alt.Scale(domain=LEVELS, range=[BRANCH, STATE, IDENTITY]),
                    legend=alt.Legend(title=None, orient="top"),
                ),
                order="place:Q",
                tooltip=["map:N", "level:N", alt.Tooltip("share:Q", format=".1%")],
            )
            .properties(title=f"−1 and +1 share the rest: never more than {100 * apart:.1f} points apart in a map")
        )
        return finished(chart, _height(grouped[0]))

    def _flips(self) -> dict[str, Any]:
        flips = self._series("flips")
        mean, steps = self._weighted(flips), _steps(flips)
        title = f"{percent(mean[-1])} of the weights changed level in the {FLIPS_OVER} steps up to {steps[-1]:,}"
        if len(steps) > 1:
            title += f", {percent(mean[0])} in those up to {steps[0]:,}"
        # A root, where a logarithm would have no place for a map that nothing flips in.
        return self._lines(flips, mean, title, f"share that flips in {FLIPS_OVER} steps", alt.Scale(type="sqrt"), "~%")

    def _cosine(self) -> dict[str, Any]:
        cosine = self._series("estimator_cosine")
        name, least = min(_last(cosine).items(), key=lambda item: item[1])
        mean = self._plain(cosine)
        said = f"{mean[-1]:.2f}, least {least:.2f}".replace("-", "−")
        title = f"the gradient’s cosine to the one without rounding is {said} in {_label(name)}"
        return self._lines(cosine, mean, title, "cosine", alt.Scale(zero=False), ".2~f")

    def _activations(self) -> dict[str, Any]:
        lost = self._series("activation_levels", 0)
        name, most = max(_last(lost).items(), key=lambda item: item[1])
        mean = self._plain(lost)
        title = f"eight bits round {mean[-1]:.1%} of activations to 0, most in {_label(name)}: {most:.1%}"
        return self._lines(lost, mean, title, "share rounded to 0", alt.Scale(), "~%")

    def _lines(
        self, series: Series, mean: list[float], title: str, axis: str, scale: alt.Scale, form: str
    ) -> dict[str, Any]:
        """A thin line a map, coloured by its block from first to last, and their mean."""
        values: list[dict[str, Any]] = [
            {"map": name, "block": _block(name), "step": step, "value": value}
            for name, by_step in self._grouped(series).items()
            for step, value in by_step.items()
        ]
        whole = [{"map": "all", "step": step, "value": value} for step, value in zip(_steps(series), mean, strict=True)]
        x = alt.X("step:Q", title="step", axis=alt.Axis(tickCount=6))
        y = alt.Y("value:Q", title=axis, scale=scale, axis=alt.Axis(format=form, tickCount=5))
        blocks = sorted({value["block"] for value in values})
        colour = alt.Color(
            "block:Q",
            title="block",
            scale=alt.Scale(
                domain=[blocks[0], max(blocks[-1], blocks[0] + 1)], range=[IDENTITY, STATE, BRANCH], interpolate="rgb"
            ),
            legend=alt.Legend(orient="top", format="d", values=[blocks[0], blocks[-1]], gradientLength=90),
        )
        tooltip = ["map:N", "step:Q", alt.Tooltip("value:Q", format=".3g")]
        chart = alt.layer(
            alt.Chart(alt.Data(values=values))
            .mark_line(strokeWidth=1, opacity=0.7)
            .encode(x, y, colour, alt.Detail("map:N"), tooltip=tooltip),
            alt.Chart(alt.Data(values=whole))
            .mark_line(strokeWidth=2.5, color="currentColor")
            .encode(x, y, tooltip=tooltip),
        )
        return finished(chart.properties(title=title))

    def _series(self, key: str, place: int | None = None) -> Series:
        """By map, in the order of the model; `place` is that in a list of values."""
        recorded = [line for line in self.lines if key in line]
        shown = thinned(recorded, MOST_STEPS)
        return {
            name: {
                line["step"]: line[key][name] if place is None else line[key][name][place]
                for line in shown
                if name in line[key]
            }
            for name in self.sizes
            if any(name in line[key] for line in shown)
        }

    def _grouped(self, series: Series) -> Series:
        """The maps themselves, under short names; of many the mean of each block's weights."""
        if len(self.sizes) <= CROWDED:
            return {_label(name): by_step for name, by_step in series.items()}
        blocks: dict[int, Series] = {}
        for name, by_step in series.items():
            blocks.setdefault(_block(name), {})[name] = by_step
        return {str(block): dict(zip(_steps(own), self._weighted(own), strict=True)) for block, own in blocks.items()}

    def _weighted(self, series: Series) -> list[float]:
        """The mean over all weights, step by step."""
        return [
            sum(self.sizes[name] * by_step[step] for name, by_step in series.items() if step in by_step)
            / sum(self.sizes[name] for name, by_step in series.items() if step in by_step)
            for step in _steps(series)
        ]

    def _plain(self, series: Series) -> list[float]:
        """The mean over all maps, step by step."""
        return [_mean([by_step[step] for by_step in series.values() if step in by_step]) for step in _steps(series)]


def _steps(series: Series) -> list[int]:
    return sorted({step for by_step in series.values() for step in by_step})


def _last(series: Series) -> dict[str, float]:
    return {name: by_step[max(by_step)] for name, by_step in series.items()}


def _mean(values: Any) -> float:
    found = list(values)
    return sum(found) / len(found)


def _label(name: str) -> str:
    return name.removeprefix("blocks.")


def _block(name: str) -> int:
    return int(_label(name).partition(".")[0])


def _rows(names: Mapping[str, object]) -> alt.Y:
    return alt.Y("map:N", title=None, sort=list(names), axis=alt.Axis(labelFontSize=9, labelOverlap=True))


def _height(names: Mapping[str, object]) -> int:
    return max(210, 10 * len(names))
