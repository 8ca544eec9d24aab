"""What the report says of ternary maps and of a twin, from lines of metrics."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from residuum.audit import Audit
from residuum.audit.html import render_page
from residuum.audit.ternary import CROWDED, MOST_STEPS, Maps
from residuum.audit.twin import Twins
from residuum.model import ModelConfig
from residuum.train import Recipe, RunFolder
from residuum.train.recipe import RunConfig
from residuum.train.ternary import sizes


def line(step: int, zeros: float = 0.3, flips: float | None = None, names: tuple[str, ...] = ("q", "k")) -> dict:
    maps = [f"blocks.{block}.attn.{name}" for block in range(2) for name in names]
    found: dict[str, Any] = {
        "step": step,
        "ternary_shares": {name: [0.6 - zeros, zeros, 0.4] for name in maps},
        "estimator_cosine": {name: 0.9 - 0.1 * place for place, name in enumerate(maps)},
        "activation_levels": {name: [0.02, 0.01] for name in maps},
    }
    return found if flips is None else {**found, "flips": dict.fromkeys(maps, flips)}


def charts(maps: Maps) -> list[dict[str, Any]]:
    part = maps.part()
    assert part is not None
    return part.charts


SIZES = {f"blocks.{block}.attn.{name}": 100 for block in range(2) for name in ("q", "k")}


def test_titles_say_what_was_found() -> None:
    maps = Maps([{"step": 0}, line(100, 0.3, 0.05), {"step": 150}, line(200, 0.4, 0.004)], SIZES)
    assert [chart["title"] for chart in charts(maps)] == [
        "40% of the ternary weights are 0 after 200 steps, 30% after 100",
        "−1 and +1 share the rest: never more than 20.0 points apart in a map",
        "0.40% of the weights changed level in the 100 steps up to 200, 5.0% in those up to 100",
        "the gradient’s cosine to the one without rounding is 0.75, least 0.60 in 1.attn.k",
        "eight bits round 2.0% of activations to 0, most in 0.attn.q: 2.0%",
    ]
    assert maps.findings() == [
        "40% of the ternary weights are 0, 0.40% changed level in 100 steps",
        "their gradient’s cosine to that without rounding is 0.75, eight bits round 2.0% of activations to 0",
    ]


def test_the_mean_counts_weights() -> None:
    one = line(100)
    one["ternary_shares"]["blocks.0.attn.q"] = [0.1, 0.8, 0.1]
    maps = Maps([one], {**SIZES, "blocks.0.attn.q": 700})
    assert charts(maps)[0]["title"] == "65% of the ternary weights are 0 after 100 steps"


def test_many_maps_are_drawn_by_block_and_many_steps_thinned() -> None:
    names = tuple(f"m{number}" for number in range(CROWDED))
    many = {f"blocks.{block}.attn.{name}": 10 for block in range(2) for name in names}
    lines = [line(step, 0.3, 0.1, names) for step in range(100, 100 * (2 * MOST_STEPS + 2), 100)]
    zeros, levels, flips, *_ = charts(Maps(lines, many))
    assert {value["map"] for value in zeros["spec"]["data"]["values"]} == {"0", "1"}
    assert len(levels["spec"]["data"]["values"]) == 6
    steps = {value["step"] for value in flips["spec"]["layer"][0]["data"]["values"]}
    assert len(steps) <= MOST_STEPS and max(steps) == lines[-1]["step"]


def test_an_expert_that_read_nothing_is_left_out() -> None:
    some = line(200)
    del some["activation_levels"]["blocks.1.attn.q"]
    assert charts(Maps([line(100), some], SIZES))[-1]["title"].startswith("eight bits round 2.0%")
    assert charts(Maps([some], SIZES))[-1]["title"].startswith("eight bits round 2.0%")


def test_a_full_precision_run_has_no_such_part(healthy: Audit) -> None:
    maps = Maps([{"step": 1, "loss": 2.0}], {})
    assert maps.part() is None and maps.findings() == []
    assert render_page(healthy, more=[]) == render_page(healthy)


def pair(path: Path, ours: list[dict], theirs: list[dict]) -> RunFolder:
    model = ModelConfig(vocab_size=9, context=4, d_model=64, n_layers=1, n_heads=2, linear="ternary")
    folder = RunFolder(path)
    path.joinpath("twin").mkdir(parents=True)
    folder.write_recipe(Recipe(run=RunConfig(steps=10), model=model, twin=True), "none")
    folder.twin.write_recipe(folder.recipe.full_precision(), "none")
    for each, lines in ((folder, ours), (folder.twin, theirs)):
        each.metrics_file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def end(bits: float, step: int = 10, **more: float) -> dict:
    return {"step": step, "loss": 2.0, "bits_per_byte": bits, **more}


def test_a_pair_is_compared_by_size_and_by_its_end(tmp_path: Path, healthy: Audit) -> None:
    folder = pair(tmp_path / "run", [{"step": 0}, end(3.0, 5), end(2.57)], [{"step": 0}, end(2.8, 5), end(2.5)])
    twins = Twins.of(folder)
    assert twins is not None
    assert twins.finding == "16 × smaller matrices, +0.070 bits per byte (2.570, 2.500) after 10 steps"
    n, weights = folder.twin.n_parameters(), sum(sizes(folder.recipe.model).values())
    assert weights == 12 * 64**2
    assert twins.twin.matrices == 32 * weights and twins.ternary.matrices == 2 * weights + 6 * 32
    assert twins.twin.whole == 32 * n
    assert twins.ternary.whole == twins.ternary.matrices + 32 * (folder.n_parameters() - weights)
    page = render_page(healthy, more=[twins.part()]).partition("<script>")[0]
    for row in ("parameters", "peak learning rate", "held-out bits per byte"):
        assert row in page
    assert "0.001, cosine" in page
    assert twins.finding in page and "questions" not in page


def test_questions_are_compared_by_what_was_answered_right(tmp_path: Path) -> None:
    folder = pair(tmp_path / "run", [end(0.5, exact_match=0.96)], [end(0.4, exact_match=0.99)])
    twins = Twins.of(folder)
    assert twins is not None
    assert twins.finding.startswith("16 × smaller matrices, −3.0 points of questions answered right, +0.100 bits")
    assert twins.part().charts[0]["title"] == "96.0% of held-out questions are answered right, 99.0% by the twin"
    assert twins.rows()[-1] == ("held-out questions answered right", "96.0%", "99.0%")


@pytest.mark.parametrize(
    ("ours", "theirs"), [([end(3.0)], []), ([end(3.0)], [end(2.8, 5)]), ([end(3.0, 5)], [end(2.8)])]
)
def test_in_mid_run_nothing_is_compared(ours: list[dict], theirs: list[dict], tmp_path: Path) -> None:
    assert Twins.of(pair(tmp_path / "run", ours, theirs)) is None
