"""How evenly a run's mixtures of experts were used, from the lines of its metrics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt

from residuum.audit.html import Part
from residuum.audit.page import BRANCH, IDENTITY, STATE, finished, percent, thinned

# A chart shows at most this many steps.
MOST_STEPS = 200

NOTE = (
    "A router sends each token to a few experts of its block. An expert's share is that of its block's choices, in the "
    "training batch of a step; the balance term of the loss draws all shares to the even one."
)


@dataclass(frozen=True)
class Experts:
    """The mixtures of experts of a run, from the `lines` that have `expert_shares`: by block, then by expert."""

    lines: list[dict[str, Any]]

    @property
    def recorded(self) -> Sequence[dict[str, Any]]:
        """Thinned, the last one last."""
        return thinned([line for line in self.lines if "expert_shares" in line], MOST_STEPS)

    def part(self) -> Part | None:
        """Charts for the page; None where nothing was recorded."""
        if not self.recorded:
            return None
        return Part("Mixture of experts", NOTE, [self._map(), self._extremes()])

    def findings(self) -> list[str]:
        """What stands in the newest line, in lines of at most 100 columns; none where nothing was recorded."""
        if not self.recorded:
            return []
        last = self.recorded[-1]
        shares = [share for block in last["expert_shares"] for share in block]
        idle = sum(not share for share in shares)
        said = f"experts take {_range(last)} of their block's choices, {_even(last)} is even"
        return [f"{said}; {idle} of {len(shares)} are idle" if idle else said]

    def _map(self) -> dict[str, Any]:
        last = self.recorded[-1]
        shares = last["expert_shares"]
        _, (most, block, expert) = _extremes(last)
        values = [
            {"block": b, "expert": e, "share": share} for b, of in enumerate(shares) for e, share in enumerate(of)
        ]
        chart = (
            alt.Chart(alt.Data(values=values))
            .mark_rect(color=IDENTITY)
            .encode(
                alt.X("expert:O", title="expert", axis=alt.Axis(labelAngle=0, labelOverlap=True, labelSeparation=8)),
                alt.Y("block:O", title="block", axis=alt.Axis(labelOverlap=True)),
                alt.Opacity(
                    "share:Q",
                    title="share of the block's choices",
                    scale=alt.Scale(domain=[0, most], range=[0.04, 1]),
                    legend=alt.Legend(orient="top", format=".0%", symbolType="square", tickCount=4),
                ),
                tooltip=["block:O", "expert:O", alt.Tooltip("share:Q", format=".2%")],
            )
            .properties(
                title=f"the busiest, expert {expert} of block {block}, took {percent(most)} of its block's choices at "
                f"step {last['step']:,}"
            )
        )
        return finished(chart, max(210, 10 * len(shares)))

    def _extremes(self) -> dict[str, Any]:
        lines = self.recorded
        names = ("busiest", "idlest")
        values = [
            {"step": line["step"], "expert": name, "share": share, "which": f"{expert} of block {block}"}
            for line in lines
            for name, (share, block, expert) in zip(names, reversed(_extremes(line)), strict=True)
        ]
        first, last = lines[0], lines[-1]
        title = f"{_range(last)} at step {last['step']:,}"
        if first is not last:
            title += f", {_range(first)} at step {first['step']:,}"
        title += f"; {_even(last)} is even"
        curves = (
            alt.Chart(alt.Data(values=values))
            .mark_line()
            .encode(
                alt.X("step:Q", title="step", axis=alt.Axis(tickCount=6)),
                alt.Y("share:Q", title="share of its block's choices", axis=alt.Axis(format="~%", tickCount=5)),
                alt.Color(
                    "expert:N",
                    scale=alt.Scale(domain=names, range=[BRANCH, IDENTITY]),
                    legend=alt.Legend(title=None, orient="top"),
                ),
                tooltip=["step:Q", "expert:N", "which:N", alt.Tooltip("share:Q", format=".2%")],
            )
        )
        even = alt.Chart(alt.Data(values=[{"share": 1 / len(last["expert_shares"][0])}]))
        rule = even.mark_rule(strokeDash=[4, 4], color=STATE).encode(y="share:Q")
        return finished(alt.layer(rule, curves).properties(title=title))


def _extremes(line: dict[str, Any]) -> tuple[tuple[float, int, int], tuple[float, int, int]]:
    """Of all blocks the least and the largest share, each with its block and its expert."""
    every = [(share, b, e) for b, shares in enumerate(line["expert_shares"]) for e, share in enumerate(shares)]
    return min(every), max(every)


def _range(line: dict[str, Any]) -> str:
    (least, _, _), (most, _, _) = _extremes(line)
    return f"from {percent(least)} to {percent(most)}"


def _even(line: dict[str, Any]) -> str:
    return percent(1 / len(line["expert_shares"][0]))
