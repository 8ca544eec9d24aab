"""Which rules are asked: codes or their beginnings, as linters take them."""

from __future__ import annotations

from collections.abc import Sequence

from residuum.audit.finding import Rule
from residuum.audit.rules import RULES
from residuum.errors import InputError


def chosen_rules(select: Sequence[str] = (), ignore: Sequence[str] = ()) -> list[Rule]:
    """The rules that are selected (all, if none is named) and not ignored; the longer code wins where both name a rule.

    Raises `InputError` for a code that no rule has, and where no rule is left.
    """
    for code in (*select, *ignore):
        if not code or not any(rule.code.startswith(code) for rule in RULES):
            codes = ", ".join(rule.code for rule in RULES)
            raise InputError(f"no rule '{code}': choose of {codes}, or a beginning such as RS2")
    chosen = [rule for rule in RULES if _closest(rule.code, select or [""]) > _closest(rule.code, ignore)]
    if not chosen:
        raise InputError("select and ignore leave no rule to ask: ignore fewer")
    return chosen


def _closest(code: str, beginnings: Sequence[str]) -> int:
    return max((len(beginning) for beginning in beginnings if code.startswith(beginning)), default=-1)
