"""What the report says of a run's mixtures of experts, from lines of metrics."""

from __future__ import annotations

from typing import Any

import pytest

from residuum.audit import Audit
from residuum.audit.experts import MOST_STEPS, Experts
from residuum.audit.html import render_page

FIRST = {"step": 1, "expert_shares": [[0.5, 0.5, 0.0, 0.0], [0.25, 0.25, 0.25, 0.25]]}
LAST = {"step": 1200, "expert_shares": [[0.3, 0.2, 0.25, 0.25], [0.005, 0.295, 0.4, 0.3]]}


def charts(experts: Experts) -> list[dict[str, Any]]:
    part = experts.part()
    assert part is not None
    return part.charts


def test_titles_say_what_was_found() -> None:
    assert [chart["title"] for chart in charts(Experts([{"step": 0}, FIRST, {"step": 9}, LAST]))] == [
        "the busiest, expert 2 of block 1, took 40.0% of its block's choices at step 1,200",
        "from 0.50% to 40.0% at step 1,200, from 0.0% to 50.0% at step 1; 25.0% is even",
    ]
    assert charts(Experts([FIRST]))[1]["title"] == "from 0.0% to 50.0% at step 1; 25.0% is even"


def test_the_terminal_is_told_of_idle_ones() -> None:
    assert Experts([FIRST, LAST]).findings() == [
        "experts take from 0.50% to 40.0% of their block's choices, 25.0% is even"
    ]
    assert Experts([FIRST]).findings() == [
        "experts take from 0.0% to 50.0% of their block's choices, 25.0% is even; 2 of 8 are idle"
    ]


def test_every_expert_is_drawn_and_many_steps_thinned() -> None:
    lines = [{**LAST, "step": step} for step in range(1, 2 * MOST_STEPS + 2)]
    drawn, curves = charts(Experts(lines))
    values = drawn["spec"]["data"]["values"]
    assert [value["share"] for value in values] == pytest.approx([*LAST["expert_shares"][0], *LAST["expert_shares"][1]])
    assert [(value["block"], value["expert"]) for value in values] == [(b, e) for b in range(2) for e in range(4)]
    steps = {value["step"] for value in curves["spec"]["layer"][1]["data"]["values"]}
    assert len(steps) <= MOST_STEPS and max(steps) == lines[-1]["step"]


def test_a_run_without_experts_has_no_such_part(healthy: Audit) -> None:
    experts = Experts([{"step": 1, "loss": 2.0}])
    assert experts.part() is None and experts.findings() == []
    assert render_page(healthy, more=[]) == render_page(healthy)
