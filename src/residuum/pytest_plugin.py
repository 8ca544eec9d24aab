"""A pytest fixture: `residual_audit(model, x).assert_clean()`.

pytest imports this file wherever residuum is installed, so nothing heavy may load here before the fixture is used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from residuum.audit import Audit, Finding
    from residuum.audit.settings import FailOn


@dataclass(frozen=True)
class Audited:
    """An audit that a test can ask to be clean; `audit` is the whole of it."""

    audit: Audit

    def assert_clean(self, fail_on: FailOn = "error", ignore: Iterable[str] = ()) -> None:
        """Fail with every finding of severity `fail_on` or worse (`never`: with none) whose code is not in `ignore`.

        `ignore` takes codes (RS301) or their beginnings (RS3), as a list or with commas between. Raises `InputError`
        for what is no severity or code.
        """
        __tracebackhide__ = True
        from residuum.audit.audit import counted
        from residuum.audit.finding import SEVERITIES
        from residuum.audit.selection import chosen_rules
        from residuum.errors import InputError

        if fail_on not in (*SEVERITIES, "never"):
            raise InputError(f"fail_on is {fail_on!r}: choose {', '.join(SEVERITIES)}, never")
        codes = [code.strip() for code in ignore.split(",")] if isinstance(ignore, str) else list(ignore)
        asked = {rule.code for rule in chosen_rules((), codes)}
        if fail_on == "never":
            return
        found = [finding for finding in self.audit.at_least(fail_on) if finding.code in asked]
        if found:
            count = counted(len(found), "finding")
            raise AssertionError("\n".join([f"residual audit of {self.audit.target}: {count}", *map(_said, found)]))


@pytest.fixture
def residual_audit() -> Callable[..., Audited]:
    """`residual_audit(model, *inputs, loss=None, **inputs).assert_clean()`; the arguments of `residuum.audit`."""

    def run(model: Any, *args: Any, **kwargs: Any) -> Audited:
        from residuum.audit import audit

        return Audited(audit(model, *args, **kwargs))

    return run


def _said(finding: Finding) -> str:
    from residuum.audit.paths import shorten

    where = f"{shorten(finding.source.file)}:{finding.source.line}: " if finding.source else ""
    return f"{finding.code} {finding.severity}: {where}{finding.message}\n  {finding.mend}"
