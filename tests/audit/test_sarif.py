from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest

from residuum.audit import Audit, Finding, judge
from residuum.audit.baseline import digest, fingerprints, without_known
from residuum.audit.rules import RULES
from residuum.stream import Source


def obj(required: str = "", **properties) -> dict:
    """An object of these properties and no others."""
    return {
        "type": "object",
        "properties": properties,
        "required": required.split(),
        "additionalProperties": False,
    }


def many(items: dict) -> dict:
    return {"type": "array", "items": items}


STRING = {"type": "string"}
LEVEL = {"enum": ["none", "note", "warning", "error"]}
MESSAGE = obj("text", text={"type": "string", "minLength": 1}, markdown=STRING)
RULE = obj("id", id=STRING, index={"type": "integer", "minimum": 0})
# The parts of SARIF 2.1.0 that a log of ours uses, written from the standard's text (sections 3.13 to 3.58).
COMPACT = obj(
    "version runs",
    **{"$schema": {"type": "string", "format": "uri"}},
    version={"const": "2.1.0"},
    runs=many(
        obj(
            "tool",
            tool=obj(
                "driver",
                driver=obj(
                    "name",
                    name=STRING,
                    semanticVersion=STRING,
                    rules=many(
                        obj(
                            "id", id=STRING, name=STRING, shortDescription=MESSAGE, fullDescription=MESSAGE,
                            help=MESSAGE, defaultConfiguration=obj(level=LEVEL),
                        )
                    ),
                ),
            ),
            automationDetails=obj(id=STRING),
            originalUriBaseIds={"type": "object", "additionalProperties": obj(uri={"type": "string", "pattern": "/$"})},
            invocations=many(
                obj(
                    "executionSuccessful",
                    executionSuccessful={"type": "boolean"},
                    ruleConfigurationOverrides=many(
                        obj("configuration descriptor", configuration=obj(enabled={"type": "boolean"}), descriptor=RULE)
                    ),
                    toolExecutionNotifications=many(obj("message", message=MESSAGE, level=LEVEL, associatedRule=RULE)),
                )
            ),
            columnKind={"enum": ["utf16CodeUnits", "unicodeCodePoints"]},
            results=many(
                obj(
                    "message",
                    ruleId=STRING,
                    ruleIndex={"type": "integer", "minimum": 0},
                    level=LEVEL,
                    message=MESSAGE,
                    locations=many(
                        obj(
                            physicalLocation=obj(
                                "artifactLocation",
                                artifactLocation=obj(uri=STRING, uriBaseId=STRING),
                                region=obj(startLine={"type": "integer", "minimum": 1}),
                            ),
                            logicalLocations=many(obj(fullyQualifiedName=STRING, kind=STRING)),
                        )
                    ),
                    partialFingerprints={"type": "object", "additionalProperties": STRING},
                    baselineState={"enum": ["new", "unchanged", "updated", "absent"]},
                )
            ),
        )
    ),
)  # fmt: skip


def log(audit: Audit) -> dict:
    content = json.loads(audit.to_sarif())
    jsonschema.Draft7Validator(COMPACT).validate(content)
    return content["runs"][0]


@pytest.fixture(params=["healthy", "faults", "structure", "selected", "known"])
def any_audit(request: pytest.FixtureRequest, faults: Audit, healthy: Audit, structure: Audit) -> Audit:
    known = Counter(fingerprints(faults.findings[0]))
    return {
        "healthy": healthy,
        "faults": faults,
        "structure": structure,
        "selected": judge(faults.seen, "it", select=["RS2"]),
        "known": without_known(faults, known),
    }[request.param]


def test_the_standards_own_schema(any_audit: Audit, shared_data: Path) -> None:
    """OASIS's schema is not ours to hand on; where it lies beside this checkout, it is used."""
    file = shared_data / "sarif-schema-2.1.0.json"
    if not file.exists():
        pytest.skip("because sarif-schema-2.1.0.json of OASIS is not in the shared data folder")
    jsonschema.Draft4Validator(json.loads(file.read_text())).validate(json.loads(any_audit.to_sarif()))


def test_the_parts_we_use(any_audit: Audit) -> None:
    log(any_audit)


def test_rules_explain_themselves(healthy: Audit) -> None:
    rules = log(healthy)["tool"]["driver"]["rules"]
    assert [rule["id"] for rule in rules] == [rule.code for rule in RULES]
    for rule, ours in zip(rules, RULES, strict=True):
        assert rule["shortDescription"]["text"] == ours.title
        assert ours.mend in rule["help"]["markdown"]
    assert log(healthy)["results"] == []


def test_results_point_at_the_line(faults: Audit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])
    run = log(faults)
    first = run["results"][0]
    assert (first["ruleId"], first["level"]) == ("RS103", "error")
    assert run["tool"]["driver"]["rules"][first["ruleIndex"]]["id"] == "RS103"
    (location,) = first["locations"]
    place = location["physicalLocation"]
    assert place["artifactLocation"] == {"uri": "tests/audit/conftest.py", "uriBaseId": "%SRCROOT%"}
    line = (Path(__file__).parent / "conftest.py").read_text().splitlines()[place["region"]["startLine"] - 1]
    assert "x.detach() +" in line
    assert location["logicalLocations"] == [
        {"fullyQualifiedName": "blocks.1", "kind": "module"},
        {"fullyQualifiedName": "Detached.forward", "kind": "function"},
    ]
    assert run["originalUriBaseIds"]["%SRCROOT%"]["uri"] == f"{Path.cwd().as_uri()}/"


def test_a_finding_without_a_place_stands_at_the_models_class(faults: Audit) -> None:
    result = next(r for r in log(faults)["results"] if r["ruleId"] == "RS203")
    place = result["locations"][0]["physicalLocation"]
    line = (Path(__file__).parent / "conftest.py").read_text().splitlines()[place["region"]["startLine"] - 1]
    assert line.startswith("class Deep(")
    nowhere = replace(faults, seen=replace(faults.seen, model_source=None))
    result = next(r for r in log(nowhere)["results"] if r["ruleId"] == "RS203")
    assert all("physicalLocation" not in location for location in result["locations"])


def test_places_outside_and_awkward_names(healthy: Audit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for file in (tmp_path / "a b.py", tmp_path / "here" / "ü #1.py"):
        file.touch()
    findings = [
        Finding("RS301", "info", "m", "m", "", Source(str(file), 0, "f"))
        for file in (tmp_path / "a b.py", tmp_path / "here" / "ü #1.py", "<string>")
    ]
    outside, inside, none = log(replace(healthy, findings=findings))["results"]
    assert outside["locations"][0]["physicalLocation"]["artifactLocation"] == {"uri": (tmp_path / "a b.py").as_uri()}
    assert inside["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] == "%C3%BC%20%231.py"
    assert inside["level"] == "note"
    assert "physicalLocation" not in none["locations"][0]


def test_baseline_states_and_fingerprints(faults: Audit) -> None:
    assert all("baselineState" not in result for result in log(faults)["results"])
    audit = without_known(faults, Counter(fingerprints(faults.findings[0])))
    results = log(audit)["results"]
    assert [r["baselineState"] for r in results] == ["new"] * (len(faults.findings) - 1) + ["unchanged"]
    for result, finding in zip(results, [*audit.findings, *(audit.known or [])], strict=True):
        assert result["partialFingerprints"]["residuum/v1"] == digest(finding)


def test_what_did_not_run_is_said(structure: Audit) -> None:
    (invocation,) = log(structure)["invocations"]
    said = invocation["toolExecutionNotifications"]
    assert said[0]["message"]["text"] == structure.notes[0]
    assert said[1]["message"]["text"].startswith("structure only")
    assert {note["associatedRule"]["id"] for note in said[2:]} == set(structure.skipped)
    (invocation,) = log(judge(structure.seen, "it", ignore=["RS2"]))["invocations"]
    off = {each["descriptor"]["id"] for each in invocation["ruleConfigurationOverrides"]}
    assert off == {rule.code for rule in RULES if rule.code.startswith("RS2")}
