"""The audit as SARIF 2.1.0 (OASIS, 2020), from which code hosts annotate the line of a connection."""

from __future__ import annotations

import inspect
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import quote

from residuum.audit.audit import STRUCTURE_ONLY, Audit
from residuum.audit.baseline import digest
from residuum.audit.finding import Finding, Rule
from residuum.audit.rules import RULES
from residuum.stream import Source

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
LEVEL = {"error": "error", "warning": "warning", "info": "note"}
INDEX = {rule.code: index for index, rule in enumerate(RULES)}


def render_sarif(audit: Audit) -> str:
    """One run. Rules that were not asked are disabled in it; those that could not run are notifications."""
    states = [(finding, "new") for finding in audit.findings] + [(f, "unchanged") for f in audit.known or ()]
    results = [_result(finding, state if audit.known is not None else None, audit) for finding, state in states]
    notes = [*audit.notes, *([STRUCTURE_ONLY] if audit.seen.measured is None else [])]
    run = {
        "tool": {
            "driver": {"name": "residuum", "semanticVersion": version("residuum"), "rules": list(map(_rule, RULES))}
        },
        "automationDetails": {
            "id": f"residuum/{audit.target}/"
        },  # what a code host tells audits of one commit apart by
        "originalUriBaseIds": {"%SRCROOT%": {"uri": f"{Path.cwd().as_uri().rstrip('/')}/"}},
        "invocations": [
            {
                "executionSuccessful": True,
                "ruleConfigurationOverrides": [
                    {"descriptor": _descriptor(code), "configuration": {"enabled": False}} for code in audit.left_out
                ],
                "toolExecutionNotifications": [
                    *({"level": "note", "message": {"text": note}} for note in notes),
                    *(
                        {
                            "level": "note",
                            "message": {"text": f"{code} skipped, because {reason}"},
                            "associatedRule": _descriptor(code),
                        }
                        for code, reason in audit.skipped.items()
                    ),
                ],
            }
        ],
        "columnKind": "unicodeCodePoints",
        "results": results,
    }
    return json.dumps({"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}, indent=2, allow_nan=False) + "\n"


def _rule(rule: Rule) -> dict[str, Any]:
    paragraphs = inspect.cleandoc(type(rule).__doc__ or rule.title).split("\n\n")
    about = "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)
    return {
        "id": rule.code,
        "name": type(rule).__name__,
        "shortDescription": {"text": rule.title},
        "fullDescription": {"text": about},
        "help": {
            "text": f"{about}\n\nTo mend it: {rule.mend}.",
            "markdown": f"{about}\n\n**To mend it:** {rule.mend}.",
        },
        "defaultConfiguration": {"level": LEVEL[rule.severity]},
    }


def _result(finding: Finding, state: str | None, audit: Audit) -> dict[str, Any]:
    return {
        "ruleId": finding.code,
        "ruleIndex": INDEX[finding.code],
        "level": LEVEL[finding.severity],
        "message": {"text": f"{finding.message}. To mend it: {finding.mend}."},
        "locations": _locations(finding, finding.source or audit.seen.model_source),
        "partialFingerprints": {"residuum/v1": digest(finding)},
        **({"baselineState": state} if state else {}),
    }


def _locations(finding: Finding, source: Source | None) -> list[dict[str, Any]]:
    location: dict[str, Any] = {}
    if source and Path(source.file).is_file():
        location["physicalLocation"] = {
            "artifactLocation": _artifact(Path(source.file)),
            "region": {"startLine": max(source.line, 1)},
        }
    logical = [
        {"fullyQualifiedName": name, "kind": kind}
        for name, kind in ((finding.module, "module"), (source.function if source else "", "function"))
        if name
    ]
    if logical:
        location["logicalLocations"] = logical
    return [location] if location else []


def _artifact(file: Path) -> dict[str, str]:
    """Below the working folder as a code host knows it, elsewhere in full."""
    if file.is_relative_to(Path.cwd()):
        return {"uri": quote(file.relative_to(Path.cwd()).as_posix()), "uriBaseId": "%SRCROOT%"}
    return {"uri": file.resolve().as_uri()}


def _descriptor(code: str) -> dict[str, Any]:
    return {"id": code, "index": INDEX[code]}
