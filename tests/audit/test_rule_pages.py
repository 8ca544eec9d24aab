"""The rules' pages in the docs say what the rules say now."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from residuum.audit.rules import RULES

DOCS = Path(__file__).parents[2] / "docs"


def test_committed_pages_are_what_the_rules_say_now() -> None:
    spec = importlib.util.spec_from_file_location("write_rule_pages", DOCS / "write_rule_pages.py")
    assert spec is not None
    assert spec.loader is not None
    writer = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(writer)
    committed = {page.name: page.read_text() for page in (DOCS / "rules").glob("*.md")}
    assert committed == writer.pages(), "run python docs/write_rule_pages.py"
    assert set(committed) == {"README.md"} | {f"{rule.code}.md" for rule in RULES}


def test_every_example_is_python() -> None:
    for rule in RULES:
        compile(f"def f(self, x):\n{_indented(rule.example)}\n    return x", rule.code, "exec")


def _indented(text: str) -> str:
    return "\n".join("    " + line for line in text.splitlines())
