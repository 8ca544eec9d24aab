"""residuum check: what it prints, what it writes for scripts, and how it ends."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from residuum.cli import main
from residuum.engine.check import BOUNDS, Row, check, parts
from residuum.model.residual import REGISTRY

THEIRS = """
from residuum.model.residual import Residual, register

@register("half")
class Half(Residual):
    slip = {slip}

    def forward(self, x, branch, *args):
        return x + 0.5 * branch(x, *args)
"""
BARE = """
from residuum.model.residual import Residual

class Half(Residual):
    use = "Nothing."
"""
PAIR = """
    def explicit_forward(self, x, branch, *args):
        write, of_branch = branch.explicit_forward(x, *args)
        return x + 0.5 * write, (branch, of_branch)

    def explicit_backward(self, dy, saved, parts=None):
        branch, of_branch = saved
        return dy + branch.explicit_backward((0.5 + self.slip) * dy, of_branch)
"""


@pytest.fixture
def theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where a module `their_half` may be put; it is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    yield tmp_path / "their_half.py"
    sys.modules.pop("their_half", None)
    REGISTRY.pop("half", None)


def said(capsys: pytest.CaptureFixture[str], *args: str, status: int = 0) -> str:
    assert main(["check", *args]) == status
    return capsys.readouterr().out


def test_all_is_within_its_bounds_and_readable(capsys: pytest.CaptureFixture[str]) -> None:
    before = torch.get_rng_state(), torch.get_num_threads()
    text = said(capsys, "all")
    assert torch.equal(torch.get_rng_state(), before[0])
    assert torch.get_num_threads() == before[1]
    assert max(map(len, text.splitlines())) <= 100
    assert "\x1b" not in text
    assert text.rstrip().endswith("comparisons, all within their bounds")
    for name in parts():
        assert name in text or name == "residual"
    for compared in BOUNDS:
        assert compared in text


def test_every_part_can_be_asked_for_and_is_the_same_each_time() -> None:
    everything = list(check("all"))
    assert {row.part for row in everything} == {*parts()} - {"residual"}
    for name in ("norm", "rmsnorm", "tied", "engines"):
        assert list(check(name)) == [row for row in everything if name in (row.part, row.name)] != []
    assert {row.part for row in check("residual")} == set(REGISTRY)


def test_json_has_every_comparison(capsys: pytest.CaptureFixture[str]) -> None:
    report = json.loads(said(capsys, "norm", "--format", "json"))
    assert report["schema"] == "residuum.check/1"
    assert [(r["name"], r["compared"]) for r in report["rows"]] == [(r.name, r.compared) for r in check("norm")]
    assert all(r["error"] <= r["bound"] and r["ok"] and r["skipped"] is None for r in report["rows"])


def test_no_such_part(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "atention"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("residuum: 'atention' is no part (perhaps you meant attention): choose all, or one ")
    assert len(error.splitlines()[0]) <= 120
    assert error.count("\n") == 1


def test_a_connection_of_ones_own(theirs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    theirs.write_text(THEIRS.format(slip=0.0) + PAIR)
    assert "4 comparisons, all within their bounds" in said(capsys, "their_half:Half")
    assert "half" in said(capsys, "residual")  # it is registered now
    assert str(Path.cwd()) not in sys.path


def test_a_slip_of_one_in_ten_million_is_found(theirs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    theirs.write_text(THEIRS.format(slip=1e-7) + PAIR)
    text = said(capsys, "their_half:Half", status=1)
    assert "half: autograd, 2.1e-07 at blocks.0.ff.up.bias" in text
    assert "4 comparisons, 2 above their bound" in text


def test_nothing_to_compare_is_no_success(theirs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    theirs.write_text(THEIRS.format(slip=0.0))
    assert main(["check", "their_half:Half"]) == 2
    error = capsys.readouterr().err
    assert "'their_half:Half' has no explicit_forward and explicit_backward, so that nothing can be compared" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("content", "target", "message"),
    [
        ("Half = 3", "their_half:Half", "is no residual connection: give package.module:Class"),
        ("", "their_half:Half", "module their_half has no Half: name the class"),
        ("1 / 0", "their_half:Half", "importing their_half raised ZeroDivisionError"),
        ("", "nowhere.at_all:Half", "there is no module nowhere, here or where Python looks"),
        ("", ":Half", "'' is no module's name: give package.module:Class"),
        ("", "../their_half:Half", "'../their_half' is no module's name"),
        (BARE, "their_half:Half", "'their_half:Half' has no name: put @register"),
        (
            BARE + '    name = "half"',
            "their_half:Half",
            'is not among the parts: put @register("half") above the class',
        ),
    ],
)
def test_no_such_connection(
    theirs: Path, capsys: pytest.CaptureFixture[str], content: str, target: str, message: str
) -> None:
    theirs.write_text(content)
    assert main(["check", target]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_what_is_no_number_is_too_large() -> None:
    row = Row("part", "name", "autograd", 1e-10, float("nan"), "x")
    assert not row.ok
    assert json.dumps(row.to_dict(), allow_nan=False)
