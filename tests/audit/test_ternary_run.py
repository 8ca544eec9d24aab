"""The audit of a run whose maps are ternary: what a reader is shown of the gradient."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from residuum.audit import Audit
from residuum.audit.run import audit_run
from residuum.audit.terminal import print_audit
from residuum.train import RunFolder, load_recipe, train
from residuum.train.recipe import as_dict, recipe_from

BLOCKS = 3
BRANCHES = [f"blocks.{i}.{branch}" for i in range(BLOCKS) for branch in ("attn", "ff")]


@pytest.fixture(scope="module")
def audit(tmp_path_factory: pytest.TempPathFactory) -> Audit:
    content = as_dict(load_recipe("bitnet-arithmetic"))
    content["model"] |= {"d_model": 24, "n_layers": BLOCKS, "n_heads": 2}
    content["run"] |= {"steps": 30, "eval_every": 30, "checkpoint_every": 30, "eval_tokens": 256, "sample_tokens": 0}
    content["optim"] |= {"batch_size": 4, "warmup": 5}
    folder = RunFolder(tmp_path_factory.mktemp("ternary") / "run")
    train(folder, recipe_from(content, "test"))
    return audit_run(folder)


def test_a_gradient_takes_both_paths_through_every_block(audit: Audit) -> None:
    assert [m.residual.branch for m in audit.flow.all_measured] == BRANCHES
    for m in audit.flow.all_measured:
        assert (m.residual.kind, m.residual.placement) == ("identity", "pre")
        assert m.backward is not None
        assert m.backward.identity > 0
        assert m.backward.branch > 0
    assert audit.at_least("warning") == []


def test_the_terminal_shows_both(audit: Audit) -> None:
    console = Console(file=io.StringIO(), width=100)
    print_audit(audit, console)
    text = console.file.getvalue()
    assert re.search(r"^\d+ ternary maps, \d+%–\d+% of the weights 0$", text, re.M)
    for branch in BRANCHES:
        (row,) = [line for line in text.splitlines() if f" {branch} " in line]
        assert all(float(figure) > 0 for figure in row.split()[-2:]), row


def test_the_page_shows_both(audit: Audit) -> None:
    page = audit.to_html()
    assert "of the weights 0</li>" in page
    assert "asks for no gradient" not in page
    for branch in BRANCHES:
        (row,) = re.findall(rf"<tr><td[^>]*>\d+</td><td>{re.escape(branch)}</td>.*?</tr>", page, re.S)
        figures = re.findall(r'<td class="n">([^<]*)</td>', row)
        assert all(float(figure) > 0 for figure in figures[-2:]), row


def test_the_file_has_every_map(audit: Audit) -> None:
    maps = audit.to_dict()["ternary"]
    assert len(maps) == 7 * BLOCKS
    for each in maps:
        assert each["minus"] + each["zero"] + each["plus"] == pytest.approx(1)
        assert each["learns"] is True
