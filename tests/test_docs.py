"""What the pages promise, run as it stands there."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from residuum.audit.rules import RULES
from residuum.model import ModelConfig, Transformer
from residuum.model.residual import REGISTRY
from residuum.study.register import chosen

ROOT = Path(__file__).parents[1]
BACKPROP = sorted((ROOT / "docs" / "backprop").glob("*.md"))
EXECUTED = [*BACKPROP, ROOT / "docs" / "loose-formulas.md", ROOT / "docs" / "gallery" / "README.md"]


def python_blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


def test_the_readmes_examples(tmp_path: Path) -> None:
    blocks = python_blocks("README.md")
    block = blocks[0]
    script = tmp_path / "example.py"
    script.write_text("\n".join(blocks))
    done = subprocess.run([sys.executable, "-W", "error", script], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    line = block.splitlines().index(next(x for x in block.splitlines() if "return x + self.down" in x)) + 1
    shown = done.stdout.splitlines()
    assert shown[0] == "healthy"
    assert [x.split(" on the identity path")[0].rsplit(" ", 1)[0] for x in shown[1:]] == [
        f"1 pre {line}",
        f"2 pre {line}",
    ]
    (measured,) = (tmp_path / "monitor.jsonl").read_text().splitlines()
    assert len(json.loads(measured)["connections"]) == 2


def test_a_connection_takes_one_file() -> None:
    block = python_blocks("CONTRIBUTING.md")[0]
    try:
        exec(compile(block, "half.py", "exec"), {"__name__": "half"})
        model = Transformer(ModelConfig(vocab_size=9, context=4, d_model=6, n_layers=1, n_heads=2, residual="half"))
        assert model(torch.zeros(1, 4, dtype=torch.long)).shape == (1, 4, 9)
    finally:
        REGISTRY.pop("half", None)


def test_the_readme_lists_every_rule() -> None:
    text = (ROOT / "README.md").read_text()
    assert [rule.code for rule in RULES if rule.code not in text] == []


def test_links_lead_somewhere() -> None:
    for page in (*(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")), *EXECUTED):
        prose = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
        for link in re.findall(r"\]\(([^)#]+)|(?:src|srcset)=\"([^\"]+)\"", prose):
            address = next(filter(None, link))
            assert address.startswith("https://") or (page.parent / address).exists(), (page.name, address)


@pytest.mark.parametrize("page", EXECUTED, ids=lambda page: page.stem)
def test_what_pages_derive_or_say_is_so(page: Path) -> None:
    text, names = page.read_text(), {"__name__": page.stem}
    for block in re.finditer(r"```python\n(.*?)```", text, re.DOTALL):
        above = "\n" * text.count("\n", 0, block.start(1))  # so that a traceback names the page's own lines
        exec(compile(above + block[1], str(page), "exec"), names)


def script(name: str) -> ModuleType:
    """One of those that write pages."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_gallery_has_a_card_for_every_connection_as_it_is_now() -> None:
    folder, pages = ROOT / "docs" / "gallery", script("write_gallery").pages()
    assert (folder / "README.md").read_text() == pages["README.md"], "run python docs/write_gallery.py"
    own = {name for name, kind in REGISTRY.items() if kind.__module__.startswith("residuum.")}
    assert {path.stem for path in folder.glob("*.svg")} == own
    for name in own:
        card = pages["README.md"].split(f"\n## {name}\n")[1].split("\n## ")[0]
        assert "https://" in card or name == "none", name
        assert "Use: " in card, name


@pytest.mark.parametrize("name", ["claims.md", "claims-full.md"])
def test_the_register_has_every_claim_as_it_is_now(name: str) -> None:
    """What came out is the page's; what was asked is the code's."""
    page = (ROOT / "docs" / name).read_text()
    sections = dict(re.findall(r"^## (\S+)\n\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL))
    assert list(sections) == [claim.id for claim in chosen()]
    for claim in chosen():
        for text in (claim.statement, claim.source, claim.experiment, claim.metric, claim.threshold):
            assert text in sections[claim.id]


def test_every_derivation_names_the_lines_it_lives_on_now() -> None:
    writer = script("write_backprop_lines")
    committed = {page.name: page.read_text() for page in BACKPROP}
    stale = [name for name, text in writer.pages().items() if text != committed[name]]
    assert not stale, "run python docs/write_backprop_lines.py"
    for page, text in committed.items():
        lines = [link for link in re.findall(r"\[[^]]*\]\([^)]+\)", text) if ".py#" in link]
        assert [link for link in lines if not writer.LINK.fullmatch(link)] == [], f"{page}: no object is named"
        assert lines, page


def test_the_index_lists_every_derivation() -> None:
    index = (ROOT / "docs" / "backprop" / "README.md").read_text()
    assert [page.name for page in BACKPROP if f"]({page.name})" not in index] == ["README.md"]
