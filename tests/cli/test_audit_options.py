"""residuum audit: what is asked, what is known, what is written, what is compared."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from residuum.cli import main

MODELS = """
import os, torch
from torch import nn

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.map = nn.LayerNorm(4), nn.Linear(4, 4)
    def forward(self, x):
        return x + self.map(self.norm(x))

class Detached(Block):
    def forward(self, x):
        return x.detach() + self.map(self.norm(x))

def loud():
    os.system("echo from a shell")
    os.write(1, b"from the system\\n")
    return healthy()

def healthy():
    return nn.Sequential(nn.Linear(4, 4), Block(), Block(), Block()), torch.randn(2, 4)

def faulty():
    return nn.Sequential(nn.Linear(4, 4), Block(), Detached(), Block()), torch.randn(2, 4)
"""


STDOUT_CLOSED = "residuum: standard output is closed: leave it open, or send it to /dev/null\n"


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of somebody's, and the working folder in it."""
    (tmp_path / "zoo_of_options.py").write_text(MODELS)
    (tmp_path / "pyproject.toml").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "zoo_of_options", raising=False)
    return tmp_path


def audit(name: str, *args: object) -> int:
    return main(["audit", f"zoo_of_options:{name}", *map(str, args)])


def fails(capsys: pytest.CaptureFixture[str], *args: object) -> str:
    assert main(["audit", *map(str, args)]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.count("\n") == 1, shown.err
    assert shown.err.startswith("residuum: ")
    return shown.err


def test_formats(capsys: pytest.CaptureFixture[str]) -> None:
    assert audit("faulty", "--format", "md") == 1
    assert capsys.readouterr().out.startswith("## Residual audit of `zoo_of_options:faulty`\n")
    assert audit("faulty", "--format", "sarif", "--out", "deep/audit.sarif") == 1
    assert capsys.readouterr().out == "deep/audit.sarif\n"
    results = json.loads(Path("deep/audit.sarif").read_text())["runs"][0]["results"]
    result = next(result for result in results if result["ruleId"] == "RS103")
    place = result["locations"][0]["physicalLocation"]
    assert place["artifactLocation"] == {"uri": "zoo_of_options.py", "uriBaseId": "%SRCROOT%"}
    assert "x.detach()" in MODELS.splitlines()[place["region"]["startLine"] - 1]


def test_select_and_ignore(capsys: pytest.CaptureFixture[str]) -> None:
    assert audit("faulty", "--select", "RS2, RS301") == 0
    assert "not asked, as selected: RS101, RS102, RS103" in capsys.readouterr().out
    assert audit("faulty", "--ignore", "RS103") == 0
    assert audit("faulty", "--ignore", "RS1", "--select", "RS103") == 1


def test_a_baseline_from_its_making_to_a_new_fault(capsys: pytest.CaptureFixture[str], project: Path) -> None:
    assert audit("faulty", "--write-baseline", "known.json") == 0
    shown = capsys.readouterr()
    assert re.search(r"\d+ known findings? of the baseline: .*RS103", shown.out)
    assert shown.err == "baseline: known.json\n"
    assert audit("faulty", "--baseline", "known.json", "--format", "json") == 0
    content = json.loads(capsys.readouterr().out)
    assert (content["verdict"], content["findings"]) == ("healthy", [])
    assert "RS103" in [finding["code"] for finding in content["known"]]
    source = project / "zoo_of_options.py"
    source.write_text("# a line above\n\n" + source.read_text())
    sys.modules.pop("zoo_of_options")
    assert audit("faulty", "--baseline", "known.json") == 0
    source.write_text(source.read_text().replace("(4, 4), Block(), Detached()", "(4, 4), Detached(), Detached()"))
    sys.modules.pop("zoo_of_options")
    assert audit("faulty", "--baseline", "known.json") == 1


def test_the_file_speaks_where_the_command_line_does_not(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "pyproject.toml").write_text('[tool.residuum]\nignore = ["RS103"]\n')
    assert audit("faulty") == 0
    assert audit("faulty", "--ignore", "RS301") == 1
    (project / "pyproject.toml").write_text('[tool.residuum]\nfail-on = "never"\n')
    assert audit("faulty") == 0
    assert audit("faulty", "--fail-on", "error") == 1
    (project / "pyproject.toml").write_text('[tool.residuum.target."zoo_of_options:faulty"]\nbaseline = "gone.json"\n')
    assert audit("healthy") == 0
    capsys.readouterr()
    assert f"cannot read the baseline {project / 'gone.json'}" in fails(capsys, "zoo_of_options:faulty")


def test_two_audits_compared(capsys: pytest.CaptureFixture[str], project: Path) -> None:
    for name in ("healthy", "faulty"):
        audit(name, "--format", "json", "--out", f"{name}.json")
    capsys.readouterr()
    assert main(["audit", "--diff", "healthy.json", "faulty.json"]) == 1
    shown = capsys.readouterr().out
    assert re.match(r"healthy.json → faulty.json: \d+ findings? new", shown)
    assert "+ RS103 error: " in shown
    assert main(["audit", "--diff", "faulty.json", "healthy.json"]) == 0
    assert "− RS103 error: " in capsys.readouterr().out
    assert main(["audit", "--diff", "healthy.json", "faulty.json", "--fail-on", "never", "--format", "md"]) == 0
    assert capsys.readouterr().out.startswith("## Residual audit of `faulty.json` against `healthy.json`")
    assert main(["audit", "--diff", "healthy.json", "faulty.json", "--format", "json", "--out", "diff.json"]) == 1
    assert "RS103" in [finding["code"] for finding in json.loads(Path("diff.json").read_text())["new"]]
    (project / "pyproject.toml").write_text('[tool.residuum]\nfail-on = "never"\n')
    assert main(["audit", "--diff", "healthy.json", "faulty.json"]) == 0


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["T", "--select", "RS9"], "no rule 'RS9': choose of RS101, "),
        (["T", "--select", ""], "no rule '': choose of"),
        (["T", "--ignore", "RS1,,RS2"], "no rule '': choose of"),
        (["T", "--ignore", "RS"], "select and ignore leave no rule to ask"),
        (["T", "--baseline", "gone.json"], "cannot read the baseline gone.json: No such file or directory"),
        (["T", "--baseline", "folder"], "cannot read the baseline folder: Is a directory"),
        (["T", "--baseline", "broken.json"], "broken.json is no JSON"),
        (["T", "--write-baseline", "folder"], "it is no regular file"),
        (["T", "--format", "md", "--out", "folder"], "it is no regular file"),
        (["T", "--format", "sarif", "--out", "broken.json/x"], "it is no folder: choose another place"),
        (["T", "--write-baseline", "broken.json"], "broken.json is no JSON"),
        (["T", "--write-baseline", "new.json", "--format", "md", "--out", "folder"], "it is no regular file"),
        (["T", "--write-baseline", "new.json", "--baseline", "gone.json"], "give one of them"),
        (["T", "--baseline", ""], "cannot read the baseline .: Is a directory"),
        (["T", "--out", "x"], "--out goes with --format md, html, json or sarif"),
        (["T", "--fail-on", "fatal"], "invalid choice 'fatal'"),
        (["--diff", "gone.json", "broken.json"], "cannot read gone.json: No such file or directory"),
        (["--diff", "folder", "broken.json"], "cannot read folder: Is a directory"),
        (["--diff", "broken.json", "broken.json"], "broken.json is no JSON"),
        (["--diff", "broken.json"], "--diff takes two files, A and B"),
        (["T", "--diff", "a", "b"], "--diff compares two audits as they are"),
        (["--diff", "a", "b", "--select", "RS1"], "--diff compares two audits as they are"),
        (["--diff", "a", "b", "--format", "sarif"], "--diff cannot be written as sarif: choose terminal, md or json"),
        ([], "audit what? residuum audit TARGET, or --diff A B"),
    ],
)
def test_mistakes_are_one_line(
    args: list[str], message: str, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "folder").mkdir()
    (project / "broken.json").write_text("{")
    before = sorted(project.rglob("*"))
    assert message in fails(capsys, *("zoo_of_options:healthy" if arg == "T" else arg for arg in args))
    assert [p for p in sorted(project.rglob("*")) if "__pycache__" not in p.parts] == before


def test_a_mistake_in_the_file_is_one_line(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "pyproject.toml").write_text("[tool.residuum]\nselct = []\n")
    said = fails(capsys, "zoo_of_options:healthy")
    assert f"{project / 'pyproject.toml'}: tool.residuum.selct is unknown" in said
    (project / "pyproject.toml").write_text('[tool.residuum]\nselect = ["RS9"]\n')
    assert "no rule 'RS9'" in fails(capsys, "zoo_of_options:healthy")


@pytest.mark.skipif(sys.platform == "win32", reason="because there is no shell to close an output in")
def test_nobody_reads(project: Path) -> None:
    for shell in ("| :", ">&-"):
        command = f"set -o pipefail; {sys.executable} -m residuum audit zoo_of_options:healthy {shell}"
        done = subprocess.run(["bash", "-c", command], cwd=project, capture_output=True, text=True)
        assert done.returncode == 2
        assert done.stderr == ("" if shell == "| :" else STDOUT_CLOSED)


def test_what_a_model_prints_is_not_the_audit(capfd: pytest.CaptureFixture[str]) -> None:
    assert audit("loud", "--format", "json") == 0
    shown = capfd.readouterr()
    assert json.loads(shown.out)["verdict"]
    assert "from a shell" in shown.err and "from the system" in shown.err
