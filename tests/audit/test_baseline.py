from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from residuum.audit import Audit, Finding
from residuum.audit.baseline import digest, fingerprints, read_baseline, to_baseline, without_known
from residuum.errors import InputError
from residuum.stream import Source


def one_finding(**changes: object) -> str:
    finding = {"code": "RS101", "module": "", "file": "", "function": "", "count": 1, **changes}
    return json.dumps({"schema": "residuum.baseline/1", "findings": [finding]})


def written(audit: Audit, path: Path) -> Path:
    path.write_text(to_baseline(audit))
    return path


def test_what_is_listed_is_known(faults: Audit, tmp_path: Path) -> None:
    baseline = read_baseline(written(faults, tmp_path / "baseline.json"))
    audit = without_known(faults, baseline)
    assert (audit.findings, audit.known, audit.verdict) == ([], faults.findings, "healthy")
    assert audit.at_least("info") == []
    assert audit.headline == "Healthy: no rule found anything new to mend"
    (remark,) = [r for r in audit.remarks if "baseline" in r]
    assert remark.startswith(f"{len(faults.findings)} known findings of the baseline: RS103")
    assert [f["code"] for f in audit.to_dict()["known"]] == [f.code for f in faults.findings]
    assert read_baseline(written(audit, tmp_path / "again.json")) == baseline  # known ones stay in


def test_lines_and_figures_do_not_matter_but_files_and_functions_do(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pyproject.toml").touch()
    there = Source(str(tmp_path / "pkg" / "model.py"), 12, "Block.forward")
    one = Finding("RS301", "warning", "the write is 0.1", "mend", "blocks.3", there)
    assert fingerprints(one) == [("RS301", "blocks.3", "pkg/model.py", "Block.forward")]
    moved = replace(one, message="the write is 0.2", source=replace(there, line=40))
    assert digest(moved) == digest(one)
    for other in (
        replace(one, code="RS302"),
        replace(one, module="blocks.4"),
        replace(one, source=replace(there, function="forward")),
        replace(one, source=replace(there, file=str(tmp_path / "model.py"))),
        replace(one, source=None),
    ):
        assert digest(other) != digest(one)
    monkeypatch.chdir((tmp_path / "pkg2").mkdir() or tmp_path / "pkg2")
    assert fingerprints(one)[0].file == "pkg/model.py"  # from anywhere in the project


def test_installed_files_are_the_same_on_every_machine(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for prefix in ("/usr/lib/python3/site-packages", "/home/you/.venv/lib/site-packages"):
        finding = Finding("RS103", "error", "", "", "", Source(f"{prefix}/pkg/model.py", 1, "f"))
        assert fingerprints(finding)[0].file == "pkg/model.py"
    assert fingerprints(replace(finding, source=Source("/opt/elsewhere/model.py", 1, "f")))[0].file == "model.py"


def test_a_second_one_of_the_same_fingerprint_is_new(faults: Audit, tmp_path: Path) -> None:
    baseline = read_baseline(written(faults, tmp_path / "baseline.json"))
    twice = replace(faults, findings=[*faults.findings, faults.findings[0]])
    audit = without_known(twice, baseline)
    assert audit.findings == [faults.findings[0]]
    assert max(each["count"] for each in json.loads(to_baseline(twice))["findings"]) == 2
    assert without_known(twice, read_baseline(written(twice, tmp_path / "two.json"))).findings == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is no JSON"),
        ("[" * 100_000, "is no JSON"),
        ("[]", "is no baseline of schema residuum.baseline/1"),
        ('{"schema": "residuum.baseline/2", "findings": []}', "is no baseline of schema residuum.baseline/1"),
        ('{"schema": "residuum.audit/1"}', "is no baseline"),
        ('{"schema": "residuum.baseline/1"}', "is a damaged baseline"),
        ('{"schema": "residuum.baseline/1", "findings": [{"code": "RS101"}]}', "is a damaged baseline"),
        ('{"schema": "residuum.baseline/1", "findings": 3}', "is a damaged baseline"),
        ('{"schema": "residuum.baseline/1", "findings": {}}', "is a damaged baseline"),
        (one_finding(count=-5), "is a damaged baseline"),
        (one_finding(count=True), "is a damaged baseline"),
        (one_finding(code=None), "is a damaged baseline"),
        ("\udcff", "is no JSON"),
    ],
)
def test_other_files_are_refused(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "baseline.json"
    path.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(InputError, match=message) as caught:
        read_baseline(path)
    assert str(path) in str(caught.value)


def test_missing_files_and_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"No such file or directory: --write-baseline FILE makes one"):
        read_baseline(tmp_path / "gone.json")
    with pytest.raises(InputError, match="Is a directory"):
        read_baseline(tmp_path)


def test_another_parameter_without_gradient_is_new(faults: Audit, tmp_path: Path) -> None:
    baseline = read_baseline(written(faults, tmp_path / "baseline.json"))
    (old,) = [finding for finding in faults.findings if finding.code == "RS203"]
    assert set(old.names) == {"unused.weight", "unused.bias"}
    more, fewer = replace(old, names=(*old.names, "other.weight")), replace(old, names=old.names[:1])
    assert without_known(replace(faults, findings=[more]), baseline).findings == [more]
    assert without_known(replace(faults, findings=[fewer]), baseline).known == [fewer]  # one was mended
    assert len({digest(finding) for finding in (old, more, fewer)}) == 3
