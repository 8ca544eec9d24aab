from __future__ import annotations

import math
import re
from dataclasses import replace

import pytest
import torch
from markdown_it import MarkdownIt
from torch import Tensor, nn

import residuum
from residuum.audit import Audit, Finding
from residuum.audit.markdown import _blocks, code, table, text
from residuum.audit.rows import Row
from residuum.stream import Residual, Source

QUESTIONS = [
    "Are there residual connections?",
    "Where?",
    "Which order of norm?",
    "Does the gradient reach every parameter?",
    "Is anything NaN or unbounded?",
    "What is to be done?",
]
HOSTILE = [
    "a|b",
    "`x`",
    "``|``",
    "<img src=x>",
    "*bold*",
    "_it_",
    "[a](http://b)",
    "two\nlines",
    "# no",
    "&amp;",
    "$x$",
]


def parse(page: str) -> list:
    return MarkdownIt("commonmark").enable("table").parse(page)


def tables(page: str) -> list[list[list[str]]]:
    """The cells of every table as a reader sees them."""
    found: list[list[list[str]]] = []
    before = ""
    for token in parse(page):
        if token.type == "table_open":
            found.append([])
        elif token.type == "tr_open":
            found[-1].append([])
        elif token.type == "inline" and before in ("th_open", "td_open"):
            found[-1][-1].append("".join(child.content for child in token.children))
        before = token.type
    return found


def section(page: str, question: str) -> str:
    return page.split(f"### {question}\n")[1].split("\n### ")[0].strip()


def test_every_question_is_answered_in_order(healthy: Audit) -> None:
    page = healthy.to_markdown()
    assert re.findall(r"^### (.*)$", page, re.MULTILINE) == QUESTIONS
    assert "**Healthy: no rule found anything to mend.**" in page
    assert section(page, QUESTIONS[0]).startswith("Yes: 6 residual connections in 1 stream, among")
    where = tables(page)[0]
    assert where[0] == ["#", "branch", "where the sum stands", "kind", "norm"]
    assert [row[1] for row in where[1:]] == [f"blocks.{i}.{part}" for i in range(3) for part in ("attn", "mlp")]
    assert all(re.fullmatch(r"tests/audit/conftest\.py:\d+", row[2]) for row in where[1:])
    assert section(page, QUESTIONS[2]) == "- from `embed`: **pre** (6 connections); final norm `final`"
    assert section(page, QUESTIONS[3]).startswith("Yes, every parameter that asks for one.")
    assert tables(page)[1][1:] == [
        ["blocks.0", "first", "none", "none"],
        ["blocks.1", "middle", "none", "none"],
        ["blocks.2", "last", "none", "none"],
    ]
    assert section(page, QUESTIONS[4]).startswith("No: the loss (the given loss, ")
    assert section(page, QUESTIONS[5]) == "Nothing."


def test_parameters_without_gradient_are_told_by_block() -> None:
    class NoBias(nn.Linear):
        """Its bias gets exactly zero."""

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.linear(x, self.weight, 0 * self.bias)

    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList((NoBias if i == 2 else nn.Linear)(4, 4) for i in range(5))

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = x + layer(x).tanh()
            return x

    page = residuum.audit(Masked(), torch.randn(3, 4)).to_markdown()
    assert section(page, QUESTIONS[3]).startswith("No, not 1 parameter of the model: `layers.2.bias`.")
    assert tables(page)[1][1:] == [
        ["layers.0", "first", "none", "none"],
        ["layers.2", "middle", "1: layers.2.bias", "none"],
        ["layers.4", "last", "none", "none"],
    ]


@pytest.mark.parametrize(
    ("modules", "blocks"),
    [
        ([f"h.{i}" for i in range(3) for _ in "ab"], ["h.0", "h.1", "h.2"]),
        (
            [f"encoder.block.{i}.layer.{j}" for i in range(3) for j in range(2)],
            [f"encoder.block.{i}" for i in range(3)],
        ),
        (["stages.0.blocks.0"] * 2 + ["stages.1.blocks.0"] * 2, ["stages.0.blocks.0", "stages.1.blocks.0"]),
        (["1", "2", "3"], ["1", "2", "3"]),
        (["1.0", "1.1", "1.2"], ["1.0", "1.1", "1.2"]),
        (["shared.layer"] * 4, ["shared.layer"]),
        ([""], [""]),
    ],
)
def test_blocks_are_what_repeats(modules: list[str], blocks: list[str]) -> None:
    source = Source("model.py", 1, "f")
    rows = [Row(Residual(i, m, m, source, "identity", "pre", (2,), None)) for i, m in enumerate(modules)]
    assert _blocks(rows) == blocks


def test_what_is_not_finite_is_named() -> None:
    class Breaks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            for i, layer in enumerate(self.layers):
                x = x + layer(x) * (math.nan if i == 1 else 1.0)
            return x

    answer = section(residuum.audit(Breaks(), torch.randn(3, 4)).to_markdown(), QUESTIONS[4])
    assert answer.startswith("Yes:")
    assert "is nan" in answer
    assert "- 5 gradients: `layers.0.weight`" in answer
    assert "- the state from `layers.1` on, at `tests/audit/test_markdown.py:" in answer


def test_structure_only(structure: Audit) -> None:
    page = structure.to_markdown()
    assert "Structure only: no value and no gradient was measured." in page
    assert "> inputs were made: tokens \\| 2 × 3" in page
    for question in QUESTIONS[3:5]:
        assert section(page, question) == "Not known: nothing was run on real values."


def test_no_connection() -> None:
    page = residuum.audit(nn.Sequential(nn.Linear(3, 3), nn.Tanh()), torch.randn(2, 3)).to_markdown()
    assert section(page, QUESTIONS[0]).startswith("No: no residual connection, among")
    assert section(page, QUESTIONS[1]) == "Nowhere."
    assert "**RS101 error**: no residual connection among" in section(page, QUESTIONS[5])


def test_a_deep_stack_stays_short(deep: Audit) -> None:
    where = tables(deep.to_markdown())[0]
    assert [row[:2] for row in where[3:5]] == [["2–196", "blocks.1…98.attn ×98"], ["3–197", "blocks.1…98.mlp ×98"]]
    assert len(where) == 7


@pytest.mark.parametrize("name", HOSTILE)
def test_names_cannot_be_mistaken_for_markup(name: str, healthy: Audit) -> None:
    flat = " ".join(name.split())
    for said in (code, text):
        (cells,) = tables("\n".join(table(["a", "b"], [[said(name), "x"]])))
        assert cells == [["a", "b"], [flat, "x"]]
    finding = Finding("RS301", "warning", name, name, name, Source(f"/elsewhere/{name}", 3, "f"))
    audit = replace(healthy, target=name, findings=[finding], notes=[name])
    page = audit.to_markdown()
    kinds = {token.type for token in parse(page)} | {c.type for t in parse(page) for c in t.children or ()}
    assert not kinds & {"html_block", "html_inline", "link_open", "image"}
    assert len(re.findall(r"^#+ ", page, re.MULTILINE)) == 1 + len(QUESTIONS)
    assert f"/elsewhere/{flat}:3" in "".join(c.content for t in parse(page) for c in t.children or ()).replace(
        "\\|", "|"
    )
