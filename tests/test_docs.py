"""What the pages promise, run as it stands there."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import torch

from residuum.audit.rules import RULES
from residuum.model import ModelConfig, Transformer
from residuum.model.residual import REGISTRY

ROOT = Path(__file__).parents[1]


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
    for page in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        for link in re.findall(r"\]\(([^)#]+)|(?:src|srcset)=\"([^\"]+)\"", (ROOT / page).read_text()):
            assert (ROOT / next(filter(None, link))).exists(), (page, link)
