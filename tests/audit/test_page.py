from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest

from residuum.audit import Audit
from residuum.audit.charts import parts_chart
from residuum.audit.html import render_page


def test_structure_only_has_neither_charts_nor_their_program(structure: Audit) -> None:
    page = structure.to_html()
    assert "Structure only: no value and no gradient was measured" in page
    assert "inputs were made: tokens | 2 × 3." in page
    assert "<script>" not in page
    assert 'class="chart"' not in page
    assert "write share" not in page
    assert page.count("<tr><td") == 6


def test_a_deep_stack_is_folded_and_opens(deep: Audit) -> None:
    text = deep.to_html().partition("<script>")[0]
    folded, _, opened = text.partition("<details>")
    assert folded.count("<tr><td") == 6
    assert "blocks.1…98.attn <small>×98</small>" in folded
    assert "All 200 connections, one by one" in opened
    assert opened.count("<tr><td") == 200
    assert "blocks.57.mlp" in opened


def test_a_short_stack_is_not(healthy: Audit) -> None:
    assert "<details>" not in healthy.to_html()


def test_a_deep_stack_is_drawn_without_points(deep: Audit, healthy: Audit) -> None:
    def drawn(audit: Audit) -> dict:
        return json.loads(re.search(r"const charts = (.*);", audit.to_html())[1])

    assert "layer" in drawn(healthy)["chart-0"]
    assert "layer" not in drawn(deep)["chart-0"]
    assert drawn(deep)["chart-1"]["encoding"]["x"]["axis"]["values"] == list(range(0, 200, 4))


def test_json_of_structure_alone(structure: Audit) -> None:
    content = json.loads(structure.to_json())
    assert (content["loss"], content["parameters"], content["known"]) == (None, None, None)
    assert content["notes"] == structure.notes
    assert [(r["forward"], r["backward"]) for r in content["streams"][0]["residuals"]] == [(None, None)] * 6
    assert content["skipped"] == structure.skipped


def test_figures_come_before_the_source(faults: Audit) -> None:
    head = re.search("<thead>(.*?)</thead>", faults.to_html(), re.DOTALL)
    titles = re.findall(r"<th[^>]*>(.*?)</th>", head[1])
    assert titles[-2:] == ["branch", "where the sum stands"]
    cells = re.search("<tbody>.*?<tr>(.*?)</tr>", faults.to_html(), re.DOTALL)[1].count("<td")
    assert cells == len(titles)


def test_the_headline_counts_all(faults: Audit) -> None:
    told = replace(faults.findings[0], severity="info")
    assert replace(faults, findings=[*faults.findings, told]).headline == "2 findings to look at, and 1 to know of"


def line(step: int, parts: list | None = None) -> dict:
    return {"step": step, "train_bits_per_byte": 3.0} | ({} if parts is None else {"gradient_parts": parts})


def test_both_parts_by_depth_as_an_explicit_run_measured_them(healthy: Audit) -> None:
    recorded = [line(step, [[3.0, 1.0], [float(step), 0.0]]) for step in range(1, 10)]
    chart = parts_chart([{"step": 0, "bigram_bits_per_byte": 4.0}, *recorded])
    assert chart is not None
    assert chart["title"] == "the identity path took 88% of the gradient on average at step 9, 88% at step 1"
    assert chart["steps"] == [1, 3, 5, 7, 9]
    old, new = (layer["data"]["values"] for layer in chart["spec"]["layer"][:2])
    assert {value["step"] for value in old} == {1, 3, 5, 7}
    assert new == [
        {"step": 9, "connection": 0, "part": "identity path", "value": 3.0},
        {"step": 9, "connection": 0, "part": "branch path", "value": 1.0},
        {"step": 9, "connection": 1, "part": "identity path", "value": 9.0},
        {"step": 9, "connection": 1, "part": "branch path", "value": 0.0},
    ]
    assert chart["spec"]["layer"][1]["encoding"]["x"]["axis"]["values"] == [0, 1]
    page = " ".join(render_page(healthy, parts=chart).split())
    assert "in its own backward pass of the training, on the first batch of step 9 (pale: steps 1, 3, 5, 7)." in page
    assert f"<figcaption>{chart['title']}</figcaption>" in page
    assert "Gradient while training" not in healthy.to_html()


@pytest.mark.parametrize("lines", [[], [{"step": 0}], [line(1), line(2)], [line(1, []), line(2, [])]])
def test_no_chart_of_a_run_that_recorded_no_parts(lines: list[dict]) -> None:
    assert parts_chart(lines) is None


def test_a_chart_of_one_step_whose_norms_are_not_all_finite(healthy: Audit) -> None:
    chart = parts_chart([line(1, [[None, 1.0], [1.0, 100.0]])])
    assert chart is not None
    assert chart["title"] == "the identity path took 1% of the gradient on average at step 1"
    assert [value["value"] for value in chart["spec"]["layer"][1]["data"]["values"]] == [1.0, 1.0, 100.0]
    assert "pale" not in render_page(healthy, parts=chart).partition("<script>")[0]
