from __future__ import annotations

import json
import re
from dataclasses import replace

from residuum.audit import Audit


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
