"""The GitHub Action and the pre-commit hook say nothing that the command does not know."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import subprocess
import typing
from pathlib import Path

import pytest

from residuum.cli.audit import Options

yaml = pytest.importorskip("yaml", reason="because PyYAML is not installed")
ROOT = Path(__file__).parents[1]
HINTS = typing.get_type_hints(Options)
OPTIONS = {f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(Options)}
ACTION = yaml.safe_load((ROOT / "action.yml").read_text())
SCRIPT = next(step["run"] for step in ACTION["runs"]["steps"] if step.get("id") == "audit")
ENVIRONMENT = next(step["env"] for step in ACTION["runs"]["steps"] if step.get("id") == "audit")


def choices(name: str) -> set[str]:
    return {choice for each in (HINTS[name], *typing.get_args(HINTS[name])) for choice in typing.get_args(each)}


def test_every_option_of_the_action_exists() -> None:
    assert set(re.findall(r"--[a-z-]+", SCRIPT)) <= OPTIONS
    assert set(re.findall(r"--format (\w+)", SCRIPT)) | {ACTION["inputs"]["format"]["default"]} <= choices("format")
    assert set(re.findall(r"--fail-on (\w+)", SCRIPT)) | {ACTION["inputs"]["fail-on"]["default"]} <= choices("fail_on")


def test_every_input_of_the_action_is_used() -> None:
    assert set(ACTION["inputs"]) == {"target", "format", "fail-on", "select", "ignore", "baseline"}
    used = {value: name for name, value in ENVIRONMENT.items()}
    for name in ACTION["inputs"]:
        assert f'"${used[f"${{{{ inputs.{name} }}}}"]}"' in SCRIPT or name == "format"
    assert "${{" not in SCRIPT  # an input pasted into a script could run as one


def test_the_actions_script_runs(tmp_path: Path) -> None:
    """With a stand-in for the command that writes down what it is asked."""
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("because there is no bash")
    command = tmp_path / "residuum"
    command.write_text(
        f'#!{bash}\nprintf "[%s]" "$@" >> "$RUNNER_TEMP/asked"; echo >> "$RUNNER_TEMP/asked"\necho said\n'
        'case "$*" in *--out*) : > "$RUNNER_TEMP/residuum.sarif"; exit 1;; esac\n'  # findings
    )
    command.chmod(0o755)
    given = {
        "TARGET": "a b:c",
        "FORMAT": "sarif",
        "FAIL_ON": "warning",
        "SELECT": "RS1,RS2",
        "IGNORE": "",
        "BASELINE": "",
    }
    places = {
        "RUNNER_TEMP": tmp_path,
        "GITHUB_OUTPUT": tmp_path / "output",
        "GITHUB_STEP_SUMMARY": tmp_path / "summary",
    }
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    environment = {**given, **{name: str(place) for name, place in places.items()}, "PATH": path}
    done = subprocess.run([bash, "-eo", "pipefail", "-c", SCRIPT], env=environment)
    assert done.returncode == 1
    report = tmp_path / "residuum.sarif"
    assert (tmp_path / "asked").read_text().splitlines() == [
        "[audit][a b:c][--select][RS1,RS2][--format][md][--fail-on][never]",
        f"[audit][a b:c][--select][RS1,RS2][--format][sarif][--out][{report}][--fail-on][warning]",
    ]
    assert (tmp_path / "output").read_text() == f"report={report}\n"
    assert (tmp_path / "summary").read_text() == "said\n"


def test_the_hook() -> None:
    (hook,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
    assert hook["id"] == "residuum-audit" and hook["language"] == "python" and hook["pass_filenames"] is False
    assert hook["entry"].split() == ["residuum", "audit"]
    assert set(re.findall(r"--[a-z-]+", " ".join(hook["args"]))) <= OPTIONS
