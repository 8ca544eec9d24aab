"""Write docs/rules/: one page per audit rule, said by the rule itself, and a table of all. `make docs` runs it."""

from __future__ import annotations

import inspect
from pathlib import Path

from residuum.audit.finding import Rule
from residuum.audit.rules import RULES
from residuum.files import write_whole

FOLDER = Path(__file__).parent / "rules"
INDEX = """\
# The rules of an audit

Each page is written from the rule's own source by `make docs`. The severity is the one that the rule gives unless its
page says when it gives another. Rules that look at *structure* need no values: they run on meta tensors too.

| code | finds | severity | looks at |
|---|---|---|---|
"""
NEEDS = {"1": "structure", "2": "gradients", "3": "values"}


def pages() -> dict[str, str]:
    """Every page's text by its file name."""
    return {"README.md": _index(), **{f"{rule.code}.md": _page(rule) for rule in RULES}}


def _index() -> str:
    rows = [f"| [{rule.code}]({rule.code}.md) | {rule.title} | {rule.severity} | {_needs(rule)} |" for rule in RULES]
    return INDEX + "\n".join(rows) + "\n"


def _page(rule: Rule) -> str:
    parts = [
        f"# {rule.code}: {rule.title}",
        f"Severity: {rule.severity}. Looks at {_needs(rule)}. [All rules](README.md)",
        "## What is measured",
        inspect.getdoc(type(rule)) or "",
        "## How to mend",
        _sentence(rule.mend),
    ]
    if rule.example:
        parts += ["## Example", f"```python\n{rule.example.strip()}\n```"]
    return "\n\n".join(parts) + "\n"


def _needs(rule: Rule) -> str:
    return NEEDS[rule.code[2]]


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def main() -> None:
    """Write every page, and remove those of rules that are gone."""
    FOLDER.mkdir(exist_ok=True)
    written = pages()
    for old in FOLDER.glob("*.md"):
        if old.name not in written:
            old.unlink()
    for name, text in written.items():
        write_whole(FOLDER / name, text)


if __name__ == "__main__":
    main()
