from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import residuum
from residuum.audit import Audit
from residuum.audit.diff import Diff, compare
from residuum.audit.recorded import read_audit
from residuum.errors import InputError


@pytest.fixture
def content(healthy: Audit) -> dict:
    return healthy.to_dict()


def diff_of(folder: Path, a: dict, b: dict) -> Diff:
    for name, each in (("a.json", a), ("b.json", b)):
        (folder / name).write_text(json.dumps(each))
    return compare(read_audit(folder / "a.json"), read_audit(folder / "b.json"))


def residuals(content: dict) -> list[dict]:
    return content["streams"][0]["residuals"]


def test_an_audit_does_not_differ_from_itself(content: dict, tmp_path: Path) -> None:
    diff = diff_of(tmp_path, content, content)
    assert diff.headline == "no difference"
    assert (diff.added, diff.removed, diff.changed, diff.new, diff.gone, diff.moved) == ([], [], [], [], [], [])
    assert diff.moved_most() == []


def test_structure_that_changed(content: dict, tmp_path: Path) -> None:
    other = copy.deepcopy(content)
    rows = residuals(other)
    del rows[1]
    rows[2]["placement"], rows[3]["kind"] = "post", "scaled"
    rows[0]["source"]["line"] += 40  # an edit above it
    rows[0]["source"]["file"] = "/another/checkout/conftest.py"
    rows[4]["source"]["function"] = "Other.forward"
    diff = diff_of(tmp_path, content, other)
    assert diff.removed == ["blocks.0.mlp"]
    assert [(c.connection, c.what, c.before, c.after) for c in diff.changed] == [
        ("blocks.1.mlp", "placement", "pre", "post"),
        ("blocks.2.attn", "kind", "identity", "scaled"),
        ("blocks.2.mlp", "source", "conftest.py, Block.forward", "conftest.py, Other.forward"),
    ]
    assert diff_of(tmp_path, other, content).added == ["blocks.0.mlp"]
    assert diff.headline == "1 connection removed, 3 details changed"


def test_a_layer_that_runs_twice_is_two_connections(tmp_path: Path) -> None:
    class Shared(nn.Module):
        def __init__(self, times: int) -> None:
            super().__init__()
            self.layer, self.times = nn.Linear(4, 4), times

        def forward(self, x: Tensor) -> Tensor:
            for _ in range(self.times):
                x = x + self.layer(x).tanh()
            return x

    two, three = (residuum.audit(Shared(times), torch.randn(2, 4)).to_dict() for times in (2, 3))
    assert diff_of(tmp_path, two, three).added == ["layer"]


def test_findings_new_and_gone(healthy: Audit, faults: Audit, tmp_path: Path) -> None:
    diff = diff_of(tmp_path, healthy.to_dict(), faults.to_dict())
    assert [f.code for f in diff.new] == [f.code for f in faults.findings]
    assert [f.code for f in diff.at_least("error")] == ["RS103"]
    assert diff.gone == []
    back = diff_of(tmp_path, faults.to_dict(), healthy.to_dict())
    assert (back.new, [f.code for f in back.gone]) == ([], [f.code for f in faults.findings])
    twice = faults.to_dict()
    twice["findings"].append(twice["findings"][0])
    assert len(diff_of(tmp_path, faults.to_dict(), twice).new) == 1
    known = faults.to_dict()
    known["known"], known["findings"] = known["findings"], []
    assert diff_of(tmp_path, known, faults.to_dict()).new == []  # a baseline makes a finding known, not new


def test_figures_that_moved(content: dict, tmp_path: Path) -> None:
    other = copy.deepcopy(content)
    rows = residuals(other)
    rows[0]["forward"]["state_rms"] *= 1.9
    rows[1]["forward"]["state_rms"] *= 2.1
    rows[2]["forward"]["state_rms"] /= 5
    rows[3]["backward"]["branch"] = None  # not a finite number
    other["loss"]["value"] *= 10
    diff = diff_of(tmp_path, content, other)
    assert [(c.connection, c.what) for c in diff.moved or ()] == [
        ("the model", "loss"),
        ("blocks.0.mlp", "forward state rms"),
        ("blocks.1.attn", "forward state rms"),
        ("blocks.1.mlp", "backward branch"),
    ]
    said = diff.moved_most()
    assert said[1].startswith("forward state rms moved at 2 connections, most at blocks.1.attn: ")
    assert said[2].endswith(" → none")
    assert diff.headline == "4 figures moved by more than 2×"


@pytest.mark.parametrize("figure", [float("nan"), float("inf"), None])
def test_what_is_no_finite_number_is_none_everywhere(figure: float | None, content: dict, tmp_path: Path) -> None:
    other = copy.deepcopy(content)
    residuals(other)[0]["forward"]["state_rms"] = figure  # Python's own JSON would write and read NaN
    (moved,) = json.loads(diff_of(tmp_path, content, other).to_json())["moved"]
    assert (moved["what"], moved["after"]) == ("forward state rms", None)
    assert diff_of(tmp_path, other, other).moved == []


def test_without_figures_there_are_none_to_compare(structure: Audit, content: dict, tmp_path: Path) -> None:
    diff = diff_of(tmp_path, content, structure.to_dict())
    assert diff.moved is None
    assert diff.moved_most() == ["figures not compared: one of the audits measured none"]
    assert diff.changed == []


def test_reports_say_it_all(healthy: Audit, faults: Audit, tmp_path: Path) -> None:
    other = faults.to_dict()
    residuals(other)[0]["placement"] = "post|`x`"
    diff = diff_of(tmp_path, healthy.to_dict(), other)
    content = json.loads(diff.to_json())
    assert (content["schema"], content["factor"]) == ("residuum.diff/1", 2.0)
    assert [f["code"] for f in content["new"]] == [f.code for f in faults.findings]
    page = diff.to_markdown()
    assert "### New findings" in page
    assert "- **RS103 error**: " in page
    assert "| `blocks.0.attn` | placement | pre | post\\|\\`x\\` |" in page


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is no JSON: residuum audit TARGET --format json --out"),
        ("\udcff", "is no JSON"),
        ("[1]", "is no audit"),
        ("[" * 100_000, "is no JSON"),
        (
            f'{{"schema": "residuum.audit/1", "streams": [], "findings": [], "loss": {{"value": 1{"0" * 400}}}}}',
            "is a damaged",
        ),
        ("{}", "is no audit"),
        ('{"schema": "residuum.baseline/1"}', "is no audit"),
        ('{"schema": "residuum.audit/x"}', "is no audit"),
        (
            '{"schema": "residuum.audit/2"}',
            "is of schema residuum.audit/2, this residuum reads residuum.audit/1: update",
        ),
        ('{"schema": "residuum.audit/1"}', "is a damaged audit"),
        ('{"schema": "residuum.audit/1", "streams": [{"residuals": [3]}]}', "is a damaged audit"),
        (
            '{"schema": "residuum.audit/1", "target": "", "streams": [], "loss": null, "findings": '
            '[{"severity": "fatal", "code": "", "module": "", "source": null, "message": ""}]}',
            "is a damaged audit",
        ),
    ],
)
def test_other_files_are_refused(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "audit.json"
    path.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(InputError) as caught:
        read_audit(path)
    assert str(caught.value).startswith(f"{path} {message}")


def test_missing_files_and_folders_are_refused(tmp_path: Path) -> None:
    for path, reason in ((tmp_path / "gone.json", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(InputError, match=f"cannot read .*: {reason}"):
            read_audit(path)
