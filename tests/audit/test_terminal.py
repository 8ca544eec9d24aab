from __future__ import annotations

import io
import re
from dataclasses import replace

import pytest
from rich.console import Console

from residuum.audit import Audit, judge
from residuum.audit.terminal import print_audit


def shown(audit: Audit, width: int = 100, colour: bool = False) -> str:
    console = Console(
        file=io.StringIO(), width=width, force_terminal=colour, color_system="truecolor" if colour else None
    )
    print_audit(audit, console)
    return console.file.getvalue()


def test_every_connection_of_a_short_stack(healthy: Audit) -> None:
    text = shown(healthy)
    assert "loss: the given loss" in text
    for residual in healthy.graph.residuals:
        assert residual.branch in text
    assert "×" not in text


def test_structure_only_has_no_figures(structure: Audit) -> None:
    text = shown(structure)
    assert "structure only: no value and no gradient was measured" in text
    assert "inputs were made: tokens | 2 × 3" in text
    for code, reason in structure.skipped.items():
        assert re.search(rf"{code}[RS0-9, ]* skipped, because {re.escape(reason)}", " ".join(text.split()))
    assert {"RS201", "RS301"} <= set(structure.skipped)
    assert "blocks.2.mlp" in text
    assert "identity  branch" not in text


@pytest.mark.parametrize("width", [40, 76, 100])
def test_a_deep_stack_fits_a_screen(width: int, deep: Audit) -> None:
    text = shown(deep, width)
    flat = "".join(text.split())
    assert max(map(len, text.splitlines())) <= width
    assert len(text.splitlines()) < 50
    assert "blocks.1…98.attn×98" in flat or width == 40
    if width > 40:  # where a name is broken, figures come between its parts
        assert "blocks.0.attn" in flat
        assert "blocks.99.mlp" in flat
    if width == 100:
        least = min(row.forward.state_rms for row in deep.streams[0][1][2:-2:2])
        assert f"{least:.2g}" in next(line for line in text.splitlines() if "blocks.1…98.attn" in line)


def test_a_thousand_connections_fit_a_screen(deep_structure: Audit) -> None:
    assert len(list(deep_structure.graph.residuals)) == 1000
    assert len(shown(deep_structure).splitlines()) < 20


def test_colour_adds_nothing_but_colour(faults: Audit) -> None:
    coloured = Console(file=io.StringIO(), width=100)
    from rich.text import Text

    coloured.print(Text.from_ansi(shown(faults, colour=True)), end="")
    assert [line.rstrip() for line in coloured.file.getvalue().splitlines()] == [
        line.rstrip() for line in shown(faults).splitlines()
    ]
    assert "\x1b[" in shown(faults, colour=True)


def test_what_was_not_asked_is_said(structure: Audit) -> None:
    audit = judge(structure.seen, "a config", select=["RS1"], ignore=["RS103"])
    assert "not asked, as selected: RS103, RS201, RS202" in " ".join(shown(audit).split())
    assert not {code for code in audit.skipped if not code.startswith("RS1")}


def test_names_are_shown_as_they_are(healthy: Audit) -> None:
    stream = healthy.graph.streams[0]
    named = ["[/x]", "[CLS]", "a\x1b[2Jb"]
    residuals = [replace(r, branch=name) for r, name in zip(stream.residuals, named, strict=False)]
    graph = replace(healthy.graph, streams=[replace(stream, residuals=residuals)])
    text = shown(replace(healthy, target="[red]", seen=replace(healthy.seen, graph=graph, measured=None)))
    for name in ("[/x]", "[CLS]", "a�[2Jb", "[red]: healthy"):
        assert name in text


def test_no_screen_is_too_wide(faults: Audit) -> None:
    assert max(map(len, shown(faults, 300).splitlines())) <= 100
