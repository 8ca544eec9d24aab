"""Write into docs/backprop/ where each formula lives: the lines of every object that a link names. `make docs` runs it.

A link's text begins with the object's name and its address is the file; `Norm.backward` in norm.py becomes
[`Norm.backward`, norm.py, lines 3–9](../../src/norm.py#L3-L9).
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

from residuum.files import write_whole

FOLDER = Path(__file__).parent / "backprop"
LINK = re.compile(r"\[`(?P<name>\w+(?:\.(?!py`)\w+)*)`[^]]*\]\((?P<file>[^)#]+\.py)(?:#[^)]*)?\)")


def pages() -> dict[str, str]:
    """Every page's text by its file name. Raises `LookupError` where a link names what its file does not have."""
    return {page.name: _with_lines(page.name, page.read_text()) for page in sorted(FOLDER.glob("*.md"))}


def _with_lines(page: str, text: str) -> str:
    def line(link: re.Match[str]) -> str:
        name, file = link["name"], link["file"]
        path = FOLDER / file
        found = _lines(path, name) if path.is_file() else None
        if found is None:
            raise LookupError(f"docs/backprop/{page}: there is no {name} in {file}; write in the link what it is now")
        first, last = found
        where = f"lines {first}–{last}" if last > first else f"line {first}"
        return f"[`{name}`, {path.name}, {where}]({file}#L{first}-L{last})"

    return LINK.sub(line, text)


def _lines(file: Path, name: str) -> tuple[int, int] | None:
    """The first and the last line of what `name` (such as Class.method) is in the end, its decorators among them."""
    node: ast.AST | None = ast.parse(file.read_text())
    for part in name.split("."):
        named = [child for child in getattr(node, "body", []) if _name(child) == part]
        node = named[-1] if named else None  # of overloads the last one is the function
    if not isinstance(node, ast.stmt):
        return None
    decorators = getattr(node, "decorator_list", [])
    return min(found.lineno for found in (node, *decorators)), node.end_lineno or node.lineno


def _name(node: ast.stmt) -> str | None:
    match node:
        case ast.FunctionDef() | ast.ClassDef():
            return node.name
        case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
            return name
    return None


def main() -> None:
    """Write every page whose lines have moved."""
    for name, text in pages().items():
        if (FOLDER / name).read_text() != text:
            write_whole(FOLDER / name, text)


if __name__ == "__main__":
    main()
