"""The fixture in somebody else's test suite."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from importlib.metadata import entry_points
from pathlib import Path

SUITE = """
import pytest, torch
from torch import nn

class Model(nn.Module):
    def __init__(self, detached=False):
        super().__init__()
        self.up, self.down, self.detached = nn.Linear(5, 7), nn.Linear(7, 5), detached
        self.first = nn.Linear(3, 5)
    def forward(self, x):
        x = self.first(x)
        f = self.down(self.up(x).relu())
        return (x.detach() if self.detached else x) + f  # the sum

X = torch.ones(2, 4, 3)

def test_healthy(residual_audit):
    audited = residual_audit(Model(), X)
    audited.assert_clean()
    assert len(list(audited.audit.graph.residuals)) == 1

def test_detached(residual_audit):
    residual_audit(Model(True), X).assert_clean()

def test_ignored(residual_audit):
    residual_audit(Model(True), X).assert_clean(fail_on="error", ignore=("RS103",))

def test_never(residual_audit):
    residual_audit(Model(True), X).assert_clean(fail_on="never")
    residual_audit(Model(True), X).assert_clean(ignore="RS103, RS2")

def test_strict(residual_audit):
    model = Model()
    model.spare = nn.Linear(2, 2)
    residual_audit(model, X, loss=lambda y: y.sum()).assert_clean()
    residual_audit(model, X, loss=lambda y: y.sum()).assert_clean(fail_on="warning", ignore="RS1")

def test_wrong_code(residual_audit):
    residual_audit(Model(), X).assert_clean(ignore=("RS999",))

def test_wrong_severity(residual_audit):
    residual_audit(Model(), X).assert_clean(fail_on="fatal")
"""


def test_a_suite(tmp_path: Path) -> None:
    (tmp_path / "test_model.py").write_text(SUITE)
    installed = "residuum" in entry_points(group="pytest11").names
    plugin = [] if installed else ["-p", "residuum.pytest_plugin"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *plugin, "test_model.py"],
        capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    said = done.stdout
    assert "4 failed, 3 passed" in said, said + done.stderr
    line = SUITE.splitlines().index(next(x for x in SUITE.splitlines() if "# the sum" in x)) + 1
    assert "AssertionError: residual audit of Model: 1 finding" in said
    assert f"RS103 error: test_model.py:{line}: " in said
    assert "add the skip itself, not a detached" in said
    assert "RS203 warning: " in said and "spare.weight" in said
    assert "no rule 'RS999': choose of RS101" in said
    assert "fail_on is 'fatal': choose info, warning, error, never" in said
    assert "pytest_plugin.py" not in said.split("test_wrong_code")[0]  # the failure points at the user's line


def test_the_plugin_is_light_and_registered() -> None:
    code = "import sys, residuum.pytest_plugin; print('torch' in sys.modules, 'rich' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split()[0] == "False"
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["pytest11"] == {"residuum": "residuum.pytest_plugin"}
