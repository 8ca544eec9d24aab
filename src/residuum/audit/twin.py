"""A ternary run beside its full-precision twin: what each needed, and what each reached."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import altair as alt

from residuum.audit.html import Part
from residuum.audit.page import BRANCH, IDENTITY, finished
from residuum.train.run_folder import RunFolder
from residuum.train.ternary import sizes

PACKED, FULL = 2, 32
"""Bits of a weight: of a ternary one in a packed file, and of any other as it is trained and saved."""

LAST = 0.1
"""Share of the steps over which a training loss is averaged, for it is noisy from step to step."""

NAMES = ("ternary", "full-precision twin")

NOTE = (
    "Both began with the same weights and read the same batches, each at its own rate. The loss of a ternary "
    "model falls fast, rests, and falls again: a difference in mid-run says nothing of the end, and only the last "
    "step is compared. This is one seed; residuum study claims --only ternary-twin takes several."
)


@dataclass(frozen=True)
class Reached:
    """One of the two after its last step: losses in nats per token, sizes in bits."""

    parameters: int
    matrices: int
    whole: int
    rate: str
    loss: float
    bits_per_byte: float
    exact_match: float | None


@dataclass(frozen=True)
class Twins:
    """Both, with the lines of their metrics."""

    steps: int
    ternary: Reached
    twin: Reached
    lines: tuple[list[dict[str, Any]], list[dict[str, Any]]]

    @classmethod
    def of(cls, folder: RunFolder) -> Twins | None:
        """None unless both runs are finished: before the end a difference says nothing."""
        if not folder.recipe.twin or not folder.twin.recipe_file.is_file():
            return None
        steps, lines = folder.recipe.run.steps, (folder.metrics(), folder.twin.metrics())
        if any(not of or of[-1]["step"] != steps or "bits_per_byte" not in of[-1] for of in lines):
            return None
        weights = sizes(folder.recipe.model)
        steps_of_levels = FULL * len(weights)  # each matrix has one size of a level
        return cls(
            steps,
            _reached(folder, lines[0], sum(weights.values()), PACKED, steps_of_levels),
            _reached(folder.twin, lines[1], sum(weights.values()), FULL, 0),
            lines,
        )

    @property
    def finding(self) -> str:
        """The price and what it buys, in one line."""
        a, b = self.ternary, self.twin
        said = f"{a.bits_per_byte - b.bits_per_byte:+.3f} bits per byte ({a.bits_per_byte:.3f}, {b.bits_per_byte:.3f})"
        if a.exact_match is not None and b.exact_match is not None:
            said = f"{100 * (a.exact_match - b.exact_match):+.1f} points of questions answered right, {said}"
        return f"{b.matrices / a.matrices:.0f} × smaller matrices, {_minus(said)} after {self.steps:,} steps"

    def part(self) -> Part:
        """Curves and figures for the page."""
        return Part("Beside its full-precision twin", NOTE, [self._held_out(), self._loss()], self.finding, self.rows())

    def rows(self) -> list[tuple[str, ...]]:
        """The figures side by side."""
        both = (self.ternary, self.twin)
        told = [
            ("", *NAMES),
            ("parameters", *(f"{each.parameters:,}" for each in both)),
            ("bits of a weight in the branches’ matrices", str(PACKED), str(FULL)),
            ("size of these matrices", *(_size(each.matrices) for each in both)),
            ("size of the whole model", *(_size(each.whole) for each in both)),
            ("peak learning rate", *(each.rate for each in both)),
            (f"training loss, mean of the last {LAST:.0%}, nats per token", *(f"{each.loss:.3f}" for each in both)),
            ("held-out bits per byte", *(f"{each.bits_per_byte:.3f}" for each in both)),
        ]
        if self.ternary.exact_match is not None:
            told.append(("held-out questions answered right", *(f"{each.exact_match:.1%}" for each in both)))
        return told

    def _held_out(self) -> dict[str, Any]:
        asked = self.ternary.exact_match is not None
        key = "exact_match" if asked else "bits_per_byte"
        said = [f"{getattr(each, key):{'.1%' if asked else '.2f'}}" for each in (self.ternary, self.twin)]
        title = f"held-out text costs {said[0]} bits per byte, the twin {said[1]}"
        if asked:
            title = f"{said[0]} of held-out questions are answered right, {said[1]} by the twin"
        axis = alt.Axis(format="~%") if asked else alt.Axis()
        return self._curves(key, title, "answered right" if asked else "bits per byte", axis, point=True)

    def _loss(self) -> dict[str, Any]:
        title = f"the training loss ends at {self.ternary.loss:.2f} nats per token, the twin’s at {self.twin.loss:.2f}"
        return self._curves("loss", title, "nats per token", alt.Axis(), strokeWidth=1, opacity=0.8)

    def _curves(self, key: str, title: str, unit: str, axis: alt.Axis, **mark: Any) -> dict[str, Any]:
        values = [
            {"step": line["step"], "value": line[key], "model": name}
            for name, lines in zip(NAMES, self.lines, strict=True)
            for line in lines
            if key in line
        ]
        chart = (
            alt.Chart(alt.Data(values=values))
            .mark_line(**mark)
            .encode(
                alt.X("step:Q", title="step", axis=alt.Axis(tickCount=6)),
                alt.Y("value:Q", title=unit, scale=alt.Scale(zero=False), axis=axis),
                alt.Color(
                    "model:N",
                    scale=alt.Scale(domain=NAMES, range=[IDENTITY, BRANCH]),
                    legend=alt.Legend(title=None, orient="top", symbolType="stroke", symbolStrokeWidth=3),
                ),
                tooltip=["step:Q", "model:N", alt.Tooltip("value:Q", format=".4g")],
            )
            .properties(title=title)
        )
        return finished(chart)


def _reached(folder: RunFolder, lines: list[dict[str, Any]], n_weights: int, bits: int, more: int) -> Reached:
    last, recipe, parameters = lines[-1], folder.recipe, folder.n_parameters()
    losses = [line["loss"] for line in lines if line["step"] > (1 - LAST) * recipe.run.steps]
    matrices = bits * n_weights + more
    return Reached(
        parameters,
        matrices,
        matrices + FULL * (parameters - n_weights),
        f"{recipe.optim.lr:g}, {recipe.optim.decay}",
        sum(losses) / len(losses),
        last["bits_per_byte"],
        last.get("exact_match"),
    )


def _size(bits: int) -> str:
    return f"{bits / 8e6:.3g} MB" if bits >= 8e6 else f"{bits / 8e3:.3g} kB"


def _minus(said: str) -> str:
    return said.replace("-", "−")
