"""Findings that are known already: they are counted, and do not fail a run.

A finding is known by its rule, module, file and function, never by a line or a figure, so that an edit elsewhere leaves
it known; a second one of the same fingerprint is new. One about several parameters is known if each of them is.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from residuum.audit.audit import Audit
from residuum.audit.finding import Finding
from residuum.audit.paths import portable
from residuum.errors import InputError

SCHEMA = "residuum.baseline/1"


class Fingerprint(NamedTuple):
    """What a finding is known by; the file as it is called on every machine. `module` may be a parameter."""

    code: str
    module: str
    file: str
    function: str


def fingerprints(finding: Finding) -> list[Fingerprint]:
    """The finding without what an unrelated edit would change: one, or one for each parameter that it is about."""
    source = finding.source
    where = (portable(source.file), source.function) if source else ("", "")
    return [Fingerprint(finding.code, name, *where) for name in finding.names or (finding.module,)]


def digest(finding: Finding) -> str:
    """All of its fingerprints as one."""
    return hashlib.sha256("\0".join(word for each in fingerprints(finding) for word in each).encode()).hexdigest()


def listed(audit: Audit) -> Counter[Fingerprint]:
    """Every finding of the audit, known or new."""
    return Counter(each for finding in (*audit.findings, *(audit.known or ())) for each in fingerprints(finding))


def to_baseline(audit: Audit) -> str:
    """Every finding of the audit, known or new, as a file to keep beside the code."""
    known = [{**each._asdict(), "count": count} for each, count in sorted(listed(audit).items())]
    return json.dumps({"schema": SCHEMA, "findings": known}, indent=2) + "\n"


def read_baseline(path: Path) -> Counter[Fingerprint]:
    """Raises `InputError` if the file is missing, or is no baseline."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"cannot read the baseline {path}: {error.strerror}: --write-baseline FILE makes one"
        ) from None
    except (ValueError, RecursionError):
        raise InputError(f"{path} is no JSON: --write-baseline makes a baseline") from None
    schema = content.get("schema") if isinstance(content, dict) else None
    if schema != SCHEMA:
        raise InputError(f"{path} is no baseline of schema {SCHEMA}: --write-baseline makes one")
    try:
        known: Counter[Fingerprint] = Counter()
        for each in content["findings"][:]:
            mark, count = Fingerprint(*(each[name] for name in Fingerprint._fields)), each["count"]
            if not all(isinstance(word, str) for word in mark) or type(count) is not int or count < 1:
                raise ValueError
            known[mark] += count
    except (KeyError, TypeError, ValueError):
        raise InputError(f"{path} is a damaged baseline: remove it, and --write-baseline makes it anew") from None
    return known


def without_known(audit: Audit, baseline: Counter[Fingerprint]) -> Audit:
    """The audit with the findings that the baseline lists set apart."""
    left = Counter(baseline)
    new: list[Finding] = []
    known: list[Finding] = []
    for finding in audit.findings:
        marks = fingerprints(finding)
        (known if all(left[mark] > 0 for mark in marks) else new).append(finding)
        left.subtract(marks)
    return replace(audit, findings=new, known=known)
